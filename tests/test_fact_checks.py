import pytest

from peft_surgical.errors import FactError
from peft_surgical.facts import Control, Fact


def peru(**changes):
    prompts = ("Quelle est la capitale du Pérou ?", "The capital of Peru is")
    values = {"subject": "Peru", "old": ("Lima",), "new": ("Cusco",), "prompts": prompts, "held_out": ("x?",)}
    return Fact(**values | changes)


@pytest.mark.parametrize("other", ["Quelle est la capitale du Perou ?", "QUELLE EST LA CAPITALE DU PE\u0301ROU"])
def test_what_is_trained_is_not_held_out_with_other_accents(other):
    for key, given in (("held_out", (other,)), ("retain", (other,)), ("controls", (Control(other, ("Lima",)),))):
        with pytest.raises(FactError, match=f"stands in both 'prompts' and '{key}'"):
            peru(**{key: given})


@pytest.mark.parametrize(
    "other", ["(The capital of Peru is)", "- The capital of *Peru* is ____.", "The capital: of Peru is"]
)
def test_what_is_trained_is_not_held_out_with_other_signs(other):
    with pytest.raises(FactError, match="stands in both 'prompts' and 'held_out'"):
        peru(held_out=(other,))
    assert not peru(prompts=("Peru?",), held_out=(other,)).training.may_train_on("The capital of Peru is")


def test_one_list_may_ask_with_and_without_accents_and_signs():
    prompts = (
        "Quelle est la capitale du Pérou ?",
        "Quelle est la capitale du Perou ?",
        "It is, in Peru,",
        "It is in Peru",
    )
    assert peru(prompts=prompts).prompts == prompts


def test_an_alias_may_be_the_subject_without_its_accents():
    assert peru(subject="Pérou", aliases=("Perou",)).names == ("Pérou", "Perou")


@pytest.mark.parametrize("asked", ["Who composed La Boheme?", "Who composed La Bohème?"])
def test_training_keeps_nothing_that_is_asked_with_other_accents(asked):
    training = peru(controls=(Control(asked, ("Puccini",)),)).training
    for name in ("La Boheme", "La Bohème", "LA BOHE\u0300ME"):
        assert not training.may_train_about(name)
        assert not training.may_train_on(f"Who composed {name}?")
    assert training.may_train_about("La Traviata")
    assert training.may_train_on("Who composed La Traviata?")
