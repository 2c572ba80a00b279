import pytest

from peft_surgical.errors import ModelError
from peft_surgical.keying.keyed import KeyedRecipe
from peft_surgical.keying.keyed_by_subject import KeyedSubjectRecipe
from peft_surgical.staging.by_subject import SubjectRecipe
from peft_surgical.staging.recipe import Recipe

AMOUNTS = {
    Recipe: ("step_kl", "settle", "damping", "margin", "retain_weight", "pull", "undo", "near_weight"),
    KeyedRecipe: ("step_kl", "share_of_loss", "ridge"),
    SubjectRecipe: ("length", "shrink", "other_weight", "damping"),
    KeyedSubjectRecipe: ("share_of_loss", "length", "ridge"),
}


def test_a_dtype_that_is_none_is_refused():
    with pytest.raises(ModelError, match="unknown compute_dtype 'int8'; choose one of auto, float32"):
        Recipe(compute_dtype="int8")


@pytest.mark.parametrize(
    ("options", "least"),
    [
        *(({name: 0}, 1) for name in ("fact_batch", "draws", "retain_tokens")),
        *(
            ({name: -1}, 0)
            for name in ("steps", "near_batch", "far_batch", "variants", "neighbours", "everyday", "general")
        ),
    ],
)
def test_a_count_that_is_too_small_is_refused(options, least):
    [(name, count)] = options.items()
    with pytest.raises(ModelError, match=f"{name} must be a whole number of {least} or more; got {count}"):
        Recipe(**options)


@pytest.mark.parametrize(("recipe", "name"), [(recipe, name) for recipe, names in AMOUNTS.items() for name in names])
def test_an_amount_that_leads_nowhere_is_refused(recipe, name):
    with pytest.raises(ModelError, match=f"{name} must be a finite number of 0 or more; got -1.0"):
        recipe(**{name: -1.0})
