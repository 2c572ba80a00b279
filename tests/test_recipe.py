import pytest

from peft_surgical.errors import ModelError
from peft_surgical.staging.recipe import Recipe


def test_a_dtype_that_is_none_is_refused():
    with pytest.raises(ModelError, match="unknown compute_dtype 'int8'; choose one of auto, float32"):
        Recipe(compute_dtype="int8")


@pytest.mark.parametrize(
    ("options", "least"),
    [
        *(({name: 0}, 1) for name in ("fact_batch", "draws", "retain_tokens")),
        *(({name: -1}, 0) for name in ("steps", "near_batch", "far_batch", "variants", "neighbours", "general")),
    ],
)
def test_a_count_that_is_too_small_is_refused(options, least):
    [(name, count)] = options.items()
    with pytest.raises(ModelError, match=f"{name} must be a whole number of {least} or more; got {count}"):
        Recipe(**options)
