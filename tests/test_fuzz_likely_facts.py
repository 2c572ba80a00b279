"""Facts drawn from likely values are facts, or refused by a `FactError` and no other exception."""

import json
from dataclasses import fields

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_surgical.errors import FactError
from peft_surgical.facts import Fact
from peft_surgical.texts.fact_checks import PORTABILITY_KINDS
from peft_surgical.texts.text import contains

from .test_facts import data

KEYS = [f.name for f in fields(Fact)]
ALPHABET = st.text(st.sampled_from("abAB .?!'-é\u200b\u0301東🍎ß\n:[]{}*&"), max_size=6)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | ALPHABET | st.text(max_size=4)
NESTED = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ALPHABET, inner, max_size=2)
)
TEXTS = st.lists(ALPHABET, max_size=3)
LIKELY = {
    "subject": ALPHABET,
    "refusal": ALPHABET,
    "answer": ALPHABET,
    "controls": st.lists(st.fixed_dictionaries({"prompt": ALPHABET, "answer": TEXTS | ALPHABET}), max_size=2),
    "probes": st.lists(st.fixed_dictionaries({"prompt": ALPHABET, "kind": ALPHABET}), max_size=2),
    "portability": st.lists(
        st.fixed_dictionaries(
            {"prompt": ALPHABET, "kind": st.sampled_from(PORTABILITY_KINDS) | ALPHABET, "answer": TEXTS | ALPHABET},
            optional={"before": TEXTS | ALPHABET},
        ),
        max_size=2,
    ),
}
CHANGES = st.dictionaries(st.sampled_from(KEYS), st.none(), min_size=1, max_size=3).flatmap(
    lambda keys: st.fixed_dictionaries({key: LIKELY.get(key, TEXTS) for key in keys if key != "source"})
)
FACTS = CHANGES.map(lambda changes: data(**changes))


def checked(make):
    try:
        fact = make()
    except FactError:
        return
    again = Fact.from_dict(fact.to_dict())
    assert again == fact
    assert contains(fact.answer, fact.new, besides=fact.subject)
    assert not contains(fact.answer, fact.old, besides=fact.subject)


@settings(max_examples=300, deadline=None)
@given(FACTS | st.dictionaries(st.sampled_from(KEYS) | ALPHABET, NESTED, max_size=6) | NESTED)
def test_any_value_gives_a_fact_or_a_fact_error(value):
    checked(lambda: Fact.from_dict(value, source="f"))


@settings(max_examples=150, deadline=None)
@given(
    FACTS.map(yaml.safe_dump) | FACTS.map(json.dumps) | st.text(max_size=60) | NESTED.map(yaml.safe_dump), st.data()
)
def test_any_file_gives_a_fact_or_a_fact_error(tmp_path_factory, text, draw):
    cut = draw.draw(st.integers(0, len(text)))
    path = tmp_path_factory.mktemp("facts") / "fact.yaml"
    for content in (text, text[:cut] + "!" + text[cut:]):
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
        checked(lambda: Fact.from_file(path))
