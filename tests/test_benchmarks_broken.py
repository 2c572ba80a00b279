import pytest

import peft_surgical as ps
from benchmarks.broken import unless_broken


def fails(message):
    raise ps.ModelError(message)


def test_only_a_broken_model_answers_nothing():
    assert unless_broken(lambda: ["Lyon"], [""]) == ["Lyon"]
    assert unless_broken(lambda: fails("the model answers with logits that are not finite; …"), [""]) == [""]
    with pytest.raises(ps.ModelError, match="positions"):
        unless_broken(lambda: fails("a prompt does not fit the model's positions"), [""])
