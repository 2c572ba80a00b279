"""Any file, and any mapping, is a fact that survives being written and read, or a `FactError` and no other exception.

`tests/test_fuzz_likely_facts.py` draws facts from likely values; here a whole fact has something wrong in it, and
files are bytes.
"""

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_surgical.errors import FactError
from peft_surgical.facts import Control, Fact, PortabilityQuestion, Probe

from .fuzzing import VALUES, flipped, mutated
from .localizing import capital

QUICK = settings(max_examples=120, deadline=None)
RIVER = {"kind": "one_hop", "prompt": "which river ?", "answer": ["rhône", "saône"], "before": ["seine"]}
FACT = capital(
    probes=[{"prompt": "is it paris ?", "kind": "doubt"}], portability=[RIVER], subject="العربية 👩‍👩‍👧"
).to_dict()
WORDS = st.text(st.sampled_from("ab Aé\u0301\u200d\u202e\ud800\0👩ى \n?."), max_size=6)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("facts") / "fact.yaml"


def checked(make, path):
    """Whether it is a fact and not refused; one that is made survives JSON and YAML."""
    try:
        fact = make()
    except FactError:
        return False
    data = fact.to_dict()
    assert Fact.from_dict(data) == fact
    assert len(fact.training.prompts) == len(fact.prompts)
    for text in (json.dumps(data), yaml.safe_dump(data), yaml.safe_dump(data, allow_unicode=True)):
        path.write_text(text, encoding="utf-8")
        assert Fact.from_file(path) == fact
    return True


def test_what_is_damaged_here_is_a_fact(path):
    assert checked(lambda: Fact.from_dict(FACT), path)
    assert checked(lambda: Fact(**vars(Fact.from_dict(FACT))), path)
    assert not checked(lambda: Fact.from_dict({**FACT, "old": 1}), path)


@QUICK
@given(mutated(FACT) | VALUES)
def test_any_value_in_any_place(path, value):
    checked(lambda: Fact.from_dict(value), path)


@QUICK
@given(st.data())
def test_any_bytes(path, draw):
    content = yaml.safe_dump(FACT, allow_unicode=draw.draw(st.booleans())).encode()
    if draw.draw(st.booleans()):
        content = json.dumps(FACT).encode()
    bit = draw.draw(st.integers(0, 8 * len(content) - 1))
    inserted = content[: bit // 8] + draw.draw(st.binary(max_size=4)) + content[bit // 8 :]
    for damaged in (flipped(content, bit), content[: bit // 8], inserted, draw.draw(st.binary(max_size=60))):
        path.write_bytes(damaged)
        checked(lambda: Fact.from_file(path), path.with_name("again.yaml"))


@QUICK
@given(st.data())
def test_any_fact_made_in_code(path, draw):
    texts = st.lists(WORDS | VALUES, max_size=3)
    values = {
        "subject": WORDS | VALUES,
        "refusal": WORDS | VALUES,
        "answer": WORDS | VALUES,
        "controls": st.lists(st.builds(Control, WORDS | VALUES, texts | VALUES), max_size=2) | VALUES,
        "probes": st.lists(st.builds(Probe, WORDS | VALUES, WORDS | VALUES), max_size=2) | VALUES,
        "portability": VALUES
        | st.lists(
            st.builds(PortabilityQuestion, WORDS | VALUES, st.just("alias") | VALUES, texts, texts | VALUES),
            max_size=2,
        ),
    }
    whole = vars(Fact.from_dict(FACT)).copy()
    for key in draw.draw(st.lists(st.sampled_from([key for key in whole if key != "source"]), max_size=3)):
        whole[key] = draw.draw(values.get(key, texts | VALUES))
    checked(lambda: Fact(**whole), path)
