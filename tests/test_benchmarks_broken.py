import pytest

import peft_surgical as ps
from benchmarks.broken import unless_broken
from peft_surgical.errors import NotFiniteError


def fails(error):
    raise error


def test_only_a_broken_model_answers_nothing():
    assert unless_broken(lambda: ["Lyon"], [""]) == ["Lyon"]
    assert unless_broken(lambda: fails(NotFiniteError("its weights are damaged")), [""]) == [""]
    with pytest.raises(ps.ModelError, match="positions"):
        unless_broken(lambda: fails(ps.ModelError("a prompt does not fit the model's positions")), [""])
