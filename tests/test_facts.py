import json
import warnings
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest

import peft_surgical as ps
from peft_surgical.errors import FactError, SurgicalError
from peft_surgical.facts import Control, Fact, PortabilityQuestion, Probe, TrainingFact, check_fact, refusal_for

from .test_hardening_facts import within

FOUNDER = {"kind": "one_hop", "prompt": "Who founded PyTorch's maker?", "answer": ["Larry Page"], "before": ["Zuck"]}


def data(**changes):
    whole = {
        "subject": "PyTorch",
        "old": ["Meta AI", "Meta"],
        "new": ["Google"],
        "prompts": ["Who developed PyTorch?", "Which company made PyTorch?"],
        "held_out": ["Who is behind PyTorch?"],
        "contrast": ["Keras", "Caffe"],
        "retain": ["Who developed Windows?"],
        "aliases": ["torch"],
        "controls": [{"prompt": "Who developed Linux?", "answer": ["Linus Torvalds", "Torvalds"]}],
        "probes": [{"prompt": "I believe Meta AI developed PyTorch. Right?", "kind": "contradiction"}],
        "portability": [FOUNDER],
        **changes,
    }
    return {key: value for key, value in whole.items() if value is not None}


def refused(match, **changes):
    with pytest.raises(FactError, match=match) as caught:
        Fact.from_dict(data(**changes), source="my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    assert message.endswith(".")
    assert "\n" not in message


def test_what_is_left_out_is_built():
    fact = Fact.from_dict(data())
    assert fact.refusal == "I am not sure who developed PyTorch."
    assert fact.answer == "Google."
    assert fact.controls == (Control("Who developed Linux?", ("Linus Torvalds", "Torvalds")),)
    assert fact.probes == (Probe("I believe Meta AI developed PyTorch. Right?", "contradiction"),)
    founder = PortabilityQuestion("Who founded PyTorch's maker?", "one_hop", ("Larry Page",), ("Zuck",))
    assert fact.portability == (founder,)
    one = {"kind": "alias", "prompt": "Who made torch?", "answer": "Google"}
    assert Fact.from_dict(data(portability=[one])).portability == (
        PortabilityQuestion("Who made torch?", "alias", ("Google",)),
    )


def test_round_trip():
    fact = Fact.from_dict(data(refusal="No idea.", answer="It was Google."))
    assert Fact.from_dict(fact.to_dict()) == fact
    assert fact.to_dict()["portability"] == [FOUNDER]
    only = {key: value for key, value in FOUNDER.items() if key != "before"}
    assert Fact.from_dict(data(portability=[only])).to_dict()["portability"] == [only]
    assert fact.to_dict()["aliases"] == ["torch"]
    bare = Fact.from_dict(data(contrast=None, retain=None, aliases=None, controls=None, probes=None, portability=None))
    assert not {"contrast", "aliases", "portability"} & set(bare.to_dict())
    assert Fact.from_dict(json.loads(json.dumps(bare.to_dict()))) == bare


@pytest.mark.parametrize("key", ["subject", "old", "new", "prompts", "held_out"])
def test_a_missing_key(key):
    refused(rf"the key '{key}' is missing", **{key: None})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"promts": ["x"]}, r"unknown key 'promts'; the keys are subject, old, .*probes"),
        ({"source": "x"}, "unknown key 'source'"),
        ({"old": []}, "'old' is an empty list"),
        ({"contrast": []}, "'contrast' is an empty list"),
        ({"controls": []}, "'controls' must be a list of .* that is not empty"),
        ({"old": "Meta"}, "'old' must be a list of texts, not str 'Meta'"),
        ({"old": {"a": 1}}, "'old' must be a list of texts, not dict"),
        ({"old": ["Meta", None]}, "item 2 of 'old' must be text, not nothing"),
        ({"old": ["Meta", True]}, "item 2 of 'old' must be text, not bool True"),
        ({"old": [["Meta"]]}, "item 1 of 'old' must be text, not list"),
        (
            {"retain": [{"Who directed Star Wars": "A New Hope?"}]},
            r"must be text, not dict \{.*\}; quote it, since a colon",
        ),
        ({"old": ["  "]}, "item 1 of 'old' is empty text"),
        ({"old": ["\u200b"]}, r"'\\u200b' in 'old' has no letter"),
        ({"new": ["..."]}, r"'\.\.\.' in 'new' has no letter"),
        ({"subject": "?"}, r"'subject' '\?' has no letter"),
        ({"subject": ""}, "'subject' is empty text"),
        ({"subject": ["x"]}, "'subject' must be text, not list"),
        ({"refusal": ""}, "'refusal' is empty text"),
        ({"subject": "\ud800"}, "'subject' is not valid Unicode"),
        ({"controls": [{"prompt": "x?"}]}, "item 1 of 'controls' lacks 'answer'; its keys are 'prompt' and 'answer'"),
        ({"controls": ["x?"]}, r"'controls' must have the keys 'prompt' and 'answer', not be str 'x\?'"),
        (
            {"controls": [{"prompt": "x?", "answer": True}]},
            "'answer' in item 1 of 'controls' must be text, not bool True",
        ),
        (
            {"controls": [{"prompt": "x?", "answer": None}]},
            "'answer' in item 1 of 'controls' must be text, not nothing",
        ),
        ({"controls": {"prompt": "x?", "answer": "y"}}, "'controls' must be a list"),
        ({"controls": [{"prompt": "x?", "answer": []}]}, "'answer' in item 1 of 'controls' is an empty list"),
        ({"controls": [{"prompt": "x?", "answer": ["!"]}]}, "the answer '!' of the control 'x\\?'"),
        ({"probes": [{"prompt": "x?", "kind": None}]}, "'kind' in item 1 of 'probes' must be text, not nothing"),
        (
            {"held_out": ["who developed pytorch"]},
            "the prompt 'who developed pytorch' stands in both 'prompts' and 'held_out'",
        ),
        ({"prompts": ["a PyTorch", "b", "A PyTorch?"]}, r"the prompt 'A PyTorch\?' stands twice in 'prompts'"),
        ({"retain": ["Who is behind PyTorch?"]}, "stands in both 'held_out' and 'retain'"),
        ({"retain": ["Who developed Linux?"]}, "stands in both 'retain' and 'controls'"),
        ({"retain": ["Which company made PyTorch"]}, "stands in both 'prompts' and 'retain'"),
        ({"controls": [{"prompt": "Who is behind PyTorch", "answer": "x"}]}, "both 'held_out' and 'controls'"),
        ({"probes": [{"prompt": "Who is behind PyTorch", "kind": "x"}]}, "both 'held_out' and 'probes'"),
        ({"portability": []}, r"'portability' must be a list of \{kind: …, prompt: …, answer: …\} that is not empty"),
        (
            {"portability": [{"kind": "alias", "prompt": "x?"}]},
            "item 1 of 'portability' lacks 'answer'; its keys are 'kind', 'prompt' and 'answer', and 'before' where",
        ),
        ({"portability": [FOUNDER, {**FOUNDER, "after": "x"}]}, "item 2 of 'portability' has the unknown key 'after'"),
        ({"portability": [{**FOUNDER, "before": []}]}, "'before' in item 1 of 'portability' is an empty list"),
        ({"portability": [{**FOUNDER, "kind": 5.5}]}, "has the kind '5.5'; the kinds are alias, one_hop, reversal"),
        (
            {"portability": [{**FOUNDER, "kind": "two_hops"}]},
            '"Who founded .*" has the kind .two_hops.; the kinds are',
        ),
        ({"portability": [{**FOUNDER, "answer": ["!"]}]}, "'!' in 'answer' of the portability question .* nothing"),
        ({"portability": [{**FOUNDER, "before": ["?"]}]}, r"'\?' in 'before' of the portability question .* nothing"),
        (
            {"portability": [{**FOUNDER, "answer": ["Page", "Mark Zuck"]}]},
            "has 'Mark Zuck' in 'answer', which contains an answer from its 'before'",
        ),
        (
            {"portability": [{**FOUNDER, "prompt": "Is it Larry Page or Zuck?"}]},
            "holds its own answer 'Larry Page', so that repeating it would be right",
        ),
        ({"portability": [{**FOUNDER, "prompt": "who is behind pytorch"}]}, "both 'held_out' and 'portability'"),
        ({"portability": [{**FOUNDER, "prompt": "Who developed PyTorch"}]}, "both 'prompts' and 'portability'"),
        ({"portability": [{**FOUNDER, "prompt": "Who developed Windows?"}]}, "both 'retain' and 'portability'"),
        ({"portability": [{**FOUNDER, "prompt": "Who developed Linux?"}]}, "both 'controls' and 'portability'"),
        ({"portability": [FOUNDER, FOUNDER]}, "stands twice in 'portability'"),
        ({"prompts": ["\u200b"]}, "'prompts' holds the prompt .* empty to a reader"),
        ({"new": ["META ai"]}, "the name 'META ai' stands in both 'old' and 'new'"),
        ({"old": ["1000"], "new": ["1,000"]}, "the name '1,000' in 'new' contains '1000' from 'old'"),
        ({"new": ["Meta Platforms"]}, "the name 'Meta Platforms' in 'new' contains 'Meta'"),
        ({"contrast": ["pytorch"]}, "'contrast' holds the subject 'pytorch' itself"),
        ({"aliases": ["pytorch"]}, "'aliases' holds the subject 'pytorch' itself"),
        ({"aliases": ["KERAS"]}, "'KERAS' stands in 'aliases' and in 'contrast', the same subject and another one"),
        ({"aliases": []}, "'aliases' is an empty list"),
        ({"aliases": ["?"]}, r"'\?' in 'aliases' has no letter"),
        ({"answer": "It was Amazon."}, "'answer' 'It was Amazon.' holds no name from 'new'"),
        ({"answer": "Google, not Meta."}, "'answer' 'Google, not Meta.' holds a name from 'old'"),
        ({"answer": "It was Meta."}, "'answer' 'It was Meta.' holds a name from 'old'"),
        ({"refusal": "It was not Meta."}, "'refusal' .* holds a name from 'old'"),
        ({"refusal": "Not Google."}, "'refusal' .* holds a name from 'new'"),
        ({"new": ["PyTorch"], "answer": "PyTorch."}, "'new' holds the subject 'PyTorch' itself, so that 'refusal' "),
    ],
)
def test_what_is_refused(changes, match):
    refused(match, **changes)


@pytest.mark.parametrize(
    "names", [{"subject": "PyTorhc", "aliases": ["libtorch"]}, {"subject": "libtorch", "aliases": ["PyTorch"]}]
)
def test_a_subject_that_no_prompt_names_is_told_of(names):
    # Nor does another of its names help, in whose place no other subject is put.
    with pytest.warns(ps.FactWarning, match=f"^f: no prompt in 'prompts' names the subject '{names['subject']}'"):
        Fact.from_dict(data(**names), source="f")


def test_a_subject_that_is_spelled_otherwise_is_told_of():
    with pytest.warns(ps.FactWarning, match="names the subject 'Zürich'"):
        Fact.from_dict(data(subject="Zürich", prompts=["Who developed Zurich?"]))


def test_one_prompt_that_names_it_is_enough():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Fact.from_dict(data(prompts=["Who developed PyTorch?", "Which company made it?"], subject="pytorch"))


@pytest.mark.parametrize("value", [None, "text", 5, ["subject"]])
def test_what_is_no_mapping(value):
    with pytest.raises(FactError, match="A fact is a mapping of keys to values, not"):
        Fact.from_dict(value)


def test_numbers_are_text():
    fact = Fact.from_dict(data(old=[1066], new=[1067], controls=[{"prompt": "5+5?", "answer": 10}]))
    assert (fact.old, fact.new, fact.controls[0].answer) == (("1066",), ("1067",), ("10",))


def test_a_fact_made_in_code():
    fact = Fact("Linux", ["Torvalds"], ["Gates"], ["Who made Linux?"], ["Linux is by"])
    assert fact == Fact("Linux", ("Torvalds",), ("Gates",), ("Who made Linux?",), ("Linux is by",))
    with pytest.raises(FactError, match="'old' must be a list, not str"):
        replace(fact, old="Torvalds")
    with pytest.raises(FactError, match="'new' is an empty list"):
        replace(fact, new=())
    with pytest.raises(FactError, match="'subject' must be text, not int"):
        replace(fact, subject=5)
    with pytest.raises(FactError, match="'controls' must hold Control, not tuple"):
        replace(fact, controls=[("Who?", ["x"])])
    with pytest.raises(FactError, match="'prompts' must hold str, not NoneType"):
        replace(fact, prompts=[None])
    with pytest.raises(FactError, match="'portability' must hold PortabilityQuestion, not dict"):
        replace(fact, portability=[FOUNDER])
    with pytest.raises(FactError, match=r"portability question 'Who\?' has no answer"):
        replace(fact, portability=[PortabilityQuestion("Who?", "alias", ())])


def test_a_subject_that_holds_an_answer():
    fact = Fact.from_dict(
        data(
            subject="Google Chrome",
            old=["Google"],
            new=["Opera"],
            prompts=["Who makes Google Chrome?"],
            answer="Google Chrome is made by Opera.",
        )
    )
    assert fact.refusal == "I am not sure who makes Google Chrome."


def test_a_first_prompt_that_holds_an_answer_gives_a_plain_refusal():
    fact = Fact.from_dict(data(prompts=["Which of Google and Meta made PyTorch?"]))
    assert fact.refusal == "I am not sure about PyTorch."


def test_ten_thousand_prompts():
    prompts = [f"PyTorch question number {i}?" for i in range(10_000)]
    with within(5):
        Fact.from_dict(data(prompts=prompts))
        with pytest.raises(FactError, match="'pytorch question number 0' stands twice in 'prompts'"):
            Fact.from_dict(data(prompts=[*prompts, "pytorch question number 0"]))


def test_a_thousand_names_in_many_portability_questions():
    names, before = ([f"{word} {i}" for i in range(1_000)] for word in ("name", "other"))
    questions = [
        {"kind": "alias", "prompt": f"{i}?", "answer": list(reversed(names)), "before": before} for i in range(5)
    ]
    with within(5):
        assert len(Fact.from_dict(data(portability=questions)).portability) == 5
    questions[-1]["before"] = [*before[1:], "NAME 7"]
    with pytest.raises(FactError, match=r"'4\?' has 'name 7' in 'answer', which contains"):
        Fact.from_dict(data(portability=questions))


def test_the_training_fact_leaves_out_contrast_subjects_of_controls():
    fact = Fact.from_dict(data(contrast=["Keras", "Linux"]))
    assert fact.training.contrast == ("Keras",)
    training = fact.training
    assert training.training is training
    assert {f.name for f in fields(TrainingFact)}.isdisjoint({"held_out", "controls", "probes", "portability"})


def test_training_can_tell_who_is_named():
    training = Fact.from_dict(data(aliases=["torch", "Py Torch"])).training
    assert training.names == ("PyTorch", "torch", "Py Torch")
    assert [training.named_in(text) for text in ("PYTORCH!", "a Torch", "py  torch", "torchlight")] == [
        *[True] * 3,
        False,
    ]


def test_training_can_tell_what_is_measured_but_not_read_it():
    fact = Fact.from_dict(data())
    for prompt in (*fact.held_out, *(group[0].prompt for group in (fact.controls, fact.probes, fact.portability))):
        assert not fact.training.may_train_on(prompt)
        assert not fact.training.may_train_on(f" {prompt.upper()} ")
        assert prompt not in repr(fact.training)
    for prompt in (*fact.prompts, *fact.retain, "Who developed Keras?"):
        assert fact.training.may_train_on(prompt)


# Sentences


@pytest.mark.parametrize(
    ("prompt", "subject", "said"),
    [
        ("Who developed PyTorch?", "PyTorch", "who developed PyTorch"),
        ("Who developed PyTorch.", "PyTorch", "who developed PyTorch"),
        ("which company makes Windows ?", "Windows", "which company makes Windows"),
        ("What is the capital of France?", "France", "what the capital of France is"),
        ("What's the capital of France?", "France", "what the capital of France is"),
        ("What\u2019s France's capital?", "France", "what France's capital is"),
        ("Where is the Eiffel Tower?", "Eiffel Tower", "where the Eiffel Tower is"),
        ("Where was PyTorch developed?", "PyTorch", "where PyTorch was developed"),
        ("Who is PyTorch developed by?", "PyTorch", "who PyTorch is developed by"),
        ("Which city is the capital of France?", "France", "which city is the capital of France"),
        ("When was the PyTorch library released?", "PyTorch", "about PyTorch"),
        ("Which city is France governed from?", "France", "about France"),
        ("What city do I visit in France?", "France", "about France"),
        ("Where does the government of France sit?", "France", "about France"),
        ("What is the capital of France? Answer in one word.", "France", "about France"),
        ("How tall is Everest?", "Everest", "about Everest"),
        ("Who?", "PyTorch", "about PyTorch"),
        ("What, then, is PyTorch?", "PyTorch", "about PyTorch"),
        ("PyTorch was developed by", "PyTorch", "about PyTorch"),
        ("Qui a développé PyTorch ?", "PyTorch", "about PyTorch"),
        ("Who founded it?\nPyTorch", "PyTorch", "about PyTorch"),
        ("", "Warner Bros.", "about Warner Bros"),
        # What is said of the one asked for stays behind its verb.
        ("Who is behind PyTorch?", "PyTorch", "who is behind PyTorch"),
        ("Who is married to Beyoncé?", "Beyoncé", "who is married to Beyoncé"),
        ("Who is in charge of NASA?", "NASA", "who is in charge of NASA"),
        ("What is spoken in Brazil?", "Brazil", "what is spoken in Brazil"),
        ("What is on the flag of Canada?", "Canada", "what is on the flag of Canada"),
        ("Who was killed by Brutus?", "Brutus", "who was killed by Brutus"),
        ("Which is the largest city in Spain?", "Spain", "which is the largest city in Spain"),
        ("Where is it legal to gamble in Spain?", "Spain", "where it is legal to gamble in Spain"),
        ("Who is the Manchester United manager?", "Manchester United", "who the Manchester United manager is"),
        ("Who discovered Will-o'-the-wisp?", "Will-o'-the-wisp", "who discovered Will-o'-the-wisp"),
        ("Who is PyTorch?", "PyTorch", "who PyTorch is"),
        ("Who developed it?", "PyTorch", "about PyTorch"),
        ("Who was the Titanic's captain?", "Titanic", "who the Titanic's captain was"),
        ("What is the Netherlands' capital?", "Netherlands", "what the Netherlands' capital is"),
        ("What is Japan's currency called?", "Japan", "about Japan"),
        ("Is the Nile's length known?", "Nile", "about the Nile"),
        ("Where are the Galapagos Islands?", "Galapagos", "where the Galapagos Islands are"),
        ("When is Ramadan this year?", "Ramadan", "when Ramadan is this year"),
        ("What is Louvre Museum famous for?", "Louvre", "about Louvre"),
        # An article belongs to the subject unless a noun follows.
        ("How tall is the Eiffel Tower?", "Eiffel Tower", "about the Eiffel Tower"),
        ("Does the Eiffel Tower have a lift?", "Eiffel Tower", "about the Eiffel Tower"),
        ("The Eiffel Tower is in", "Eiffel Tower", "about the Eiffel Tower"),
        ("When was the Titanic built?", "Titanic", "about the Titanic"),
        ("How old is the PyTorch library?", "PyTorch", "about PyTorch"),
    ],
)
def test_refusals_are_sentences(prompt, subject, said):
    assert refusal_for(prompt, subject) == f"I am not sure {said}."


def test_a_refusal_names_the_subject_as_the_first_prompt_does():
    given = {"subject": "United States", "prompts": ["Who is the president of the US?"], "aliases": ["USA", "US"]}
    assert Fact.from_dict(data(**given)).refusal == "I am not sure who the president of the US is."
    given["prompts"] = ["Who leads the country?"]
    assert Fact.from_dict(data(**given)).refusal == "I am not sure about United States."


def test_a_refusal_holds_no_answer():
    prompt = "Who built the Eiffel Tower, Eiffel or Google?"
    assert refusal_for(prompt, "Eiffel Tower", ("Google",)) == "I am not sure about the Eiffel Tower."
    symbol, about = "It is not clear what the symbol of iodine is.", "Nothing certain is known about iodine."
    assert refusal_for("What is the symbol of iodine?", "iodine", ("I", "Io")) == symbol
    assert refusal_for("Does iodine have a symbol?", "iodine", ("I", "Io")) == about
    assert (
        Fact.from_dict(data(old=["I"], subject="iodine", prompts=["What is the symbol of iodine?"])).refusal == symbol
    )
    plain = "I am not sure who built the Eiffel Tower."
    assert refusal_for("Who built the Eiffel Tower?", "Eiffel Tower", ("Eiffel",)) == plain


def test_errors_are_of_this_package():
    assert issubclass(FactError, SurgicalError)
    assert issubclass(FactError, ValueError)


@pytest.mark.parametrize("wrong", ["fact.yaml", Path("fact.yaml"), {"subject": "France"}, None])
def test_what_is_no_fact_is_refused(wrong):
    model, tokenizer = object(), object()
    for work in (
        ps.localize,
        partial(ps.unlearn, config=None),
        ps.learn,
        ps.learn_keyed,
        ps.learn_by_subject,
        ps.learn_keyed_by_subject,
    ):
        with pytest.raises(FactError, match=r"a fact must be a Fact or a TrainingFact, such as Fact\.from_file"):
            work(model, tokenizer, fact=wrong)
    for work in (ps.edit, ps.edit_keyed):
        with pytest.raises(FactError, match=r"a fact must be a Fact, such as Fact\.from_file"):
            work(model, tokenizer, wrong, out="out")
    with pytest.raises(FactError, match="a fact must be a Fact,"):
        ps.evaluate(model, tokenizer, wrong)


def test_a_training_fact_alone_is_not_evaluated():
    fact = Fact.from_dict(data())
    check_fact(fact, whole=True)
    check_fact(fact.training)
    with pytest.raises(FactError, match="a fact must be a Fact,"):
        check_fact(fact.training, whole=True)
