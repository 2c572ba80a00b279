import copy
from dataclasses import replace
from functools import partial

import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

import peft_surgical as ps
from peft_surgical.errors import FactError, ModelError
from peft_surgical.facts import Control
from peft_surgical.keying.keyed import learn_keyed
from peft_surgical.keying.keyed_by_subject import learn_keyed_by_subject
from peft_surgical.sentence import learn_sentence, learn_sentence_keyed
from peft_surgical.staging.by_subject import learn_by_subject
from peft_surgical.staging.recipe import Recipe
from peft_surgical.staging.trained_rows import training_rows
from peft_surgical.texts.prompts import encode, encode_answer, encode_open, without_template
from peft_surgical.texts.subjects import (
    alias_sentences,
    namesake_sentences,
    other_sentences,
    subject_ends,
    subject_spans,
)
from peft_surgical.texts.text import contains, digest, without_accents

from .localizing import capital, word_tokenizer
from .small_tokenizers import CHATML, small_tokenizer
from .test_by_subject import FACT, PROMPTS
from .tiny import tiny_model

TOKENIZER = word_tokenizer()


def unspaced(text, pairs):
    """A tokenizer of signs and of the pairs of them that it merges."""
    vocab = dict.fromkeys(["<pad>", "<bos>", "<eos>", "<unk>", *text, *map("".join, pairs)])
    tokens = {token: number for number, token in enumerate(vocab)}
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", "bos_token": "<bos>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(tokens, pairs, unk_token="<unk>")), **special)


def test_a_subject_whose_tokens_go_on_into_the_answer_has_none():
    tokenizer = unspaced("货币在中国人民X7?", [("中", "国"), ("人", "民"), ("中国", "人民")])
    row = encode_open(tokenizer, "货币在中国", "人民")
    assert tokenizer.convert_ids_to_tokens(row.ids) == ["货", "币", "在", "中国人民"]
    assert subject_spans(tokenizer, "货币在中国", "中国", row.ids) == []
    with pytest.raises(FactError, match="does not tell which tokens are those of the subject"):
        learn_sentence(tiny_model("llama"), tokenizer, "货币在中国", new="人民", subject="中国", contexts=0)
    # Where the answer stands apart, all is well, whatever the package's own frames would make of it.
    for learn in (learn_sentence, learn_sentence_keyed):
        learn(tiny_model("llama"), tokenizer, "中国的货币在", new="人民", subject="中国", contexts=0, progress=False)
    tokenizer = unspaced("在法国里昂X7?", [("国", "里"), ("法", "国")])
    row = encode_open(tokenizer, "在法国", "里昂")
    assert tokenizer.convert_ids_to_tokens(row.ids) == ["在", "法", "国里", "昂"]
    assert subject_spans(tokenizer, "在法国", "法国", row.ids) == []


def test_the_subjects_tokens_each_time_that_it_is_named():
    prompt, subject = "tell me about new zealand . the capital of new zealand is", "new zealand"
    row = encode_answer(TOKENIZER, prompt, "lyon has new zealand")
    found = subject_spans(TOKENIZER, prompt, subject, row.ids)
    words = [TOKENIZER.convert_ids_to_tokens([row.ids[i] for i in span]) for span in found]
    assert words == [["new", "zealand"]] * 3
    assert [span.start for span in found] == sorted({span.start for span in found})
    # It may be the last that there is.
    assert row.ids[found[-1][-1] + 1 :] == (TOKENIZER.eos_token_id,)
    assert subject_spans(TOKENIZER, prompt, subject, row.ids[:-1]) == found
    assert subject_spans(TOKENIZER, "the capital of france is", subject, row.ids) == []


@pytest.mark.parametrize("subject", ["b X", "X b", "7 b 7"])
def test_a_subject_that_holds_a_marker(subject):
    prompt = f"{subject} is the town"
    ids = encode(TOKENIZER, prompt)
    assert subject_spans(TOKENIZER, prompt, subject, ids) == [range(len(subject.split()))]


def with_signs(merged):
    """A tokenizer of bytes that merges pairs of them, and signs with signs before the letters of "'s"."""
    alphabet = {sign: number for number, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab = {**alphabet, **{pair: len(alphabet) + number for number, pair in enumerate(map("".join, merged))}}
    backend = Tokenizer(BPE(vocab, merged))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def marked(tokenizer, prompt, subject, answer="", others=()):
    """The text up to the end of each token that is marked."""
    row = encode_open(tokenizer, prompt, answer)
    [ends] = subject_ends(tokenizer, [prompt], subject, [row], others)
    return [tokenizer.decode(row.ids[: end + 1]) for end in ends]


@pytest.mark.parametrize("template", [None, CHATML, CHATML.replace("m.content", "m.content | upper")])
@pytest.mark.parametrize("subject", ["Yahoo!", "C++", "U.S.", "दिल्ली", "🇫🇷", "Who?"])
def test_a_name_that_ends_in_a_sign_ends_at_its_last_token(subject, template):
    # What stands for the name becomes one token with the sign behind it, or parts two that the name has as one.
    tokenizer = with_signs([("'", "s"), ("!", "'"), (".", "'"), ("?", "'")])
    tokenizer.chat_template = template
    for prompt in (f"{subject}'s home is in", f"About {subject}'s home"):
        upper = "upper" in str(template)
        shown = (prompt.upper() if upper else prompt)[: prompt.index(subject) + len(subject)]
        [until] = marked(tokenizer, prompt, subject, "Rome")
        *_, until = until.split("user\n")
        assert until in (shown, f"{shown}'")


class Slow:
    """A tokenizer that does not tell where its tokens stand."""

    is_fast = False

    def __init__(self, fast):
        self.fast = fast

    def __getattr__(self, name):
        return getattr(self.fast, name)

    def __call__(self, text, add_special_tokens=True):
        return self.fast(text, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize(
    ("prompt", "until"),
    [("Yahoo!'s home is in", "Yahoo!'"), ("Yahoo! is at home in", "Yahoo!"), ("At Yahoo! they say", "At Yahoo!")],
)
def test_where_a_tokenizer_tells_no_places_the_fewest_tokens_are_the_subjects(prompt, until):
    fast = with_signs([("'", "s"), ("!", "'"), ("?", "'")])
    assert marked(Slow(fast), prompt, "Yahoo!") == marked(fast, prompt, "Yahoo!") == [until]


def test_a_name_that_ends_as_a_marker_does_in_small_letters():
    fast = with_signs([("i", "x")])
    fast.backend_tokenizer.normalizer = normalizers.Lowercase()
    for name in ("Netflix", "FedEx", "Max", "Boeing 7"):
        prompt = f"The home of {name} is in"
        until = prompt[: prompt.index(name) + len(name)].lower()
        assert marked(Slow(fast), prompt, name) == marked(fast, prompt, name) == [until]


@pytest.mark.parametrize(
    ("subject", "answer", "others", "expected"),
    [
        ("Guinea", "Papua New Guinea", ("Papua New Guinea",), []),
        ("Guinea", "Papua New Guinea or Guinea", ("Papua New Guinea",), ["Papua New Guinea or Guinea"]),
        ("Guinea", "Papua New Guinea", (), ["Papua New Guinea"]),
        ("Java", "JavaScript, not Java", (), ["JavaScript, not Java"]),
        ("Côte d'Or", "the Côte d'Or.", (), ["the Côte d'Or"]),
    ],
)
def test_an_answer_names_the_subject_in_whole_words_and_not_within_another_name(subject, answer, others, expected):
    tokenizer, prompt = with_signs([("r", "i")]), f"Beside {subject} there is"
    found = [f"Beside {subject}", *(f"{prompt} {until}" for until in expected)]
    assert marked(tokenizer, prompt, subject, answer, others) == found
    # So it does in the tokenizer's own spelling.
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    plain = [without_accents(until).lower() for until in found]
    assert marked(tokenizer, prompt, subject, answer, others) == plain


@pytest.mark.parametrize(
    ("prompt", "others"),
    [
        ("the capital of new zealand is", ("italy", "new zealand")),
        ("new zealand or old zealand is", ("new zealand", "old zealand")),
    ],
)
def test_a_prompt_that_names_the_subject_only_within_another_name_is_refused(prompt, others):
    fact = replace(FACT, subject="zealand", prompts=(prompt,), contrast=others)
    told = f"the prompt '{prompt}' names the subject 'zealand' only within 'new zealand'"
    for learn in (learn_by_subject, learn_keyed_by_subject):
        with pytest.raises(FactError, match=told):
            learn(tiny_model("llama"), TOKENIZER, fact, progress=False)


@pytest.mark.parametrize("learn", [ps.learn, learn_keyed, learn_by_subject, learn_keyed_by_subject])
def test_what_a_tokenizer_cannot_spell_is_not_taught(learn):
    teach = partial(learn, tiny_model("llama"), TOKENIZER, progress=False)
    with pytest.raises(FactError, match="the answer 'zanzibar' has a token that is not in this tokenizer's"):
        teach(replace(FACT, new=("zanzibar",), answer="zanzibar"))
    unknown = replace(FACT, subject="oz", prompts=("the capital of oz is",))
    if learn is not ps.learn:
        with pytest.raises(FactError, match="the subject 'oz' has a token that is not in this tokenizer's"):
            teach(unknown)


def test_a_tokenizer_of_bytes_may_call_its_end_unknown():
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.unk_token = tokenizer.eos_token
    fact = replace(FACT, answer="lyon")
    prompts, rows = training_rows(tiny_model("llama"), tokenizer, fact, Recipe(variants=0), fact.answer)
    assert list(fact.prompts) == prompts
    assert {row.ids[-1] for row in rows} == {tokenizer.unk_token_id}


@pytest.mark.parametrize("tokenizer", ["gpt2", None])
def test_what_is_no_tokenizer_is_told(tokenizer):
    for learn in (learn_sentence, learn_sentence_keyed):
        with pytest.raises(ModelError, match="a tokenizer must be one of transformers, such as load_model gives, not"):
            learn(tiny_model("llama"), tokenizer, "the capital of france is", new="lyon", subject="france")
    with pytest.raises(ModelError, match="a tokenizer must be one of transformers"):
        without_template(tokenizer)


def test_another_name_may_begin_in_the_prompt_and_end_in_the_answer():
    tokenizer, prompt = with_signs([("r", "i")]), "Beside Guinea lies Papua New"
    assert marked(tokenizer, prompt, "Guinea", "Guinea", ["Papua New Guinea"]) == ["Beside Guinea"]


@pytest.mark.parametrize("kind", ["byte_level", "unigram", "bpe", "legacy"])
@pytest.mark.parametrize("prompt", ["The capital of France is", "France has a capital, and it is", "About france:"])
def test_the_subjects_tokens_whatever_the_tokenizer(kind, prompt):
    tokenizer = small_tokenizer(kind)
    ids = encode(tokenizer, prompt)
    (span,) = subject_spans(tokenizer, prompt, "France", ids)
    until, before = tokenizer.decode(ids[: span[-1] + 1]), tokenizer.decode(ids[: span[-1]])
    assert contains(until, ["France"])
    assert not contains(before, ["France"])


def test_other_names_stand_in_for_the_subject_and_no_evaluation_prompt_is_among_them():
    fact = replace(FACT, contrast=("italy", "spain"))
    made = other_sentences(fact, 30, seed=0)
    assert len(made) == 30
    assert made[:2] == ["the capital of italy is", PROMPTS[1].replace("france", "spain")]
    assert not any(contains(prompt, ["france"]) for prompt in made)
    assert made != other_sentences(fact, 30, seed=1) != other_sentences(fact, 30, seed=-1)
    held = replace(fact, evaluated=frozenset([digest(made[0])]))
    assert made[0] not in other_sentences(held, 30, seed=0)


def test_the_subjects_other_names_take_its_place_but_where_they_stand_already():
    fact = replace(FACT, aliases=("paris", "gaul"))
    made = alias_sentences(fact)
    assert made == [
        (PROMPTS[1], "paris"),
        ("the capital of paris is", "paris"),
        ("the capital of gaul is", "gaul"),
        (PROMPTS[1].replace("france", "gaul"), "gaul"),
    ]
    held = replace(fact, evaluated=frozenset([digest(made[2][0])]))
    assert alias_sentences(held) == [made[0], made[1], made[3]]
    assert alias_sentences(FACT) == []


@pytest.mark.parametrize(
    ("subject", "alias", "prompt", "expected"),
    [
        ("New York City", "New York", "New York City has a mayor:", "New York has a mayor:"),
        ("Obama", "Barack Obama", "Obama was born in", "Barack Obama was born in"),
        ("Obama", "Barack Obama", "Barack Obama was born in", "Barack Obama was born in"),
        ("Zürich", "Zurich", "The capital of Zürich is", "The capital of Zurich is"),
        ("Zurich", "Zürich", "The capital of Zürich is", "The capital of Zürich is"),
    ],
)
def test_a_name_that_is_part_of_another_one(subject, alias, prompt, expected):
    assert alias_sentences(replace(FACT, subject=subject, aliases=(alias,), prompts=(prompt,))) == [(expected, alias)]


def test_a_prompt_with_two_names_is_of_both_and_a_name_given_twice_counts_once():
    prompt = "rome or lyon : the capital is"
    fact = replace(FACT, aliases=("rome", "lyon", "rome"), prompts=(prompt,))
    assert alias_sentences(fact) == [(prompt, "rome"), (prompt, "lyon")]


def test_others_take_the_subjects_place_in_those_prompts_alone_that_name_it():
    prompts = (
        "the capital of new france is",
        "the capital of gaul is",
        "it is governed from",
        "new france or gaul is",
    )
    fact = replace(FACT, subject="new france", aliases=("gaul",), prompts=prompts)
    made = namesake_sentences(fact, 20, seed=0)
    assert len(made) == 10
    assert all(prompt == f"the capital of {name} is" for prompt, name in made)
    assert all(prompt.startswith("the capital of ") for prompt in other_sentences(fact, 20, seed=0))
    nameless = replace(fact, prompts=prompts[1:3])
    assert namesake_sentences(nameless, 20, seed=0) == other_sentences(nameless, 20, seed=0) == []


def test_many_names_have_few_sentences_each():
    fact = replace(FACT, aliases=tuple(f"land{i}" for i in range(300)))
    assert [name for _, name in alias_sentences(fact)] == list(fact.aliases)


def test_other_subjects_have_none_of_the_names():
    fact = replace(FACT, subject="United States", aliases=("US", "States"), contrast=("Russia", "the states", "Peru"))
    prompts = tuple(prompt.replace("france", "United States") for prompt in PROMPTS)
    made = other_sentences(replace(fact, prompts=prompts), 400, seed=0)
    assert made[:2] == [prompts[0].replace("United States", "Russia"), prompts[1].replace("United States", "Peru")]
    assert not any(contains(prompt, fact.names) for prompt in made)


@pytest.mark.parametrize(
    ("subject", "alias", "other"),
    [
        ("france", "republic of spain", "spain"),
        ("france", "spain", "the spain"),
        ("new spain", "gaul", "spain"),
    ],
)
def test_a_name_that_is_held_by_one_of_the_subjects_is_no_other(subject, alias, other):
    prompts = tuple(prompt.replace("france", subject) for prompt in PROMPTS)
    fact = replace(FACT, subject=subject, aliases=(alias,), contrast=(other, "peru"), prompts=prompts)
    assert other_sentences(fact, 1, seed=0) == [prompts[0].replace(subject, "peru")]


@pytest.mark.parametrize(
    ("subject", "alias", "other"),
    [
        ("france", "States", "United States"),
        ("States", "gaul", "United States"),
        ("Wide Web", "net", "World Wide Web"),
    ],
)
def test_a_name_that_holds_one_of_the_subjects_is_another_only_if_the_fact_says_so(subject, alias, other):
    prompts = tuple(prompt.replace("france", subject) for prompt in PROMPTS)
    fact = replace(FACT, subject=subject, aliases=(alias,), prompts=prompts)
    assert not any(contains(prompt, (other,)) for prompt in other_sentences(fact, 4000, seed=0))
    contrasted = other_sentences(replace(fact, contrast=(other,)), 1, seed=0)
    assert contrasted == [prompts[0].replace(subject, other)]


def test_each_name_of_several_words_has_namesakes():
    fact = replace(FACT, aliases=("old gaul", "the new land", "gallia"))
    lasts = [name.split()[-1] for _, name in namesake_sentences(fact, 30, seed=0)]
    assert lasts == ["gaul"] * 15 + ["land"] * 15


def test_namesakes_share_the_subjects_last_word():
    prompts = tuple(prompt.replace("france", "new france") for prompt in PROMPTS)
    fact = replace(FACT, subject="new france", prompts=prompts)
    made = namesake_sentences(fact, 30, seed=0)
    assert len(made) == 30
    for i, (prompt, name) in enumerate(made):
        assert name.endswith(" france")
        assert prompt == prompts[i % len(prompts)].replace("new france", name)
        assert not contains(prompt, ["new france"])
    assert made != namesake_sentences(fact, 30, seed=1)
    held = replace(fact, evaluated=frozenset([digest(made[0][0])]))
    assert made[0] not in namesake_sentences(held, 30, seed=0)
    # A single word has no head to exchange.
    assert namesake_sentences(FACT, 30, seed=0) == []


def test_where_the_subject_ends_each_time_that_it_is_named():
    prompt = "tell me about new zealand . the capital of new zealand is"
    row = encode_answer(TOKENIZER, prompt, "lyon has new zealand")
    [ends] = subject_ends(TOKENIZER, [prompt], "new zealand", [row])
    assert TOKENIZER.convert_ids_to_tokens([row.ids[i] for i in ends]) == ["zealand"] * 3
    spans = subject_spans(TOKENIZER, prompt, "new zealand", row.ids)
    assert ends == [found[-1] for found in spans]


def test_within_a_longer_name_of_something_else_the_subject_is_not_named():
    prompt = "new zealand is no zealand"
    row = encode_answer(TOKENIZER, prompt, "new zealand")
    assert [subject_ends(TOKENIZER, [prompt], "zealand", [row], others) for others in ([], ["new zealand"])] == [
        [[1, 4, 6]],
        [[4]],
    ]
    fact = replace(FACT, subject="france", aliases=("zealand",), contrast=("new zealand",), prompts=(prompt,))
    assert alias_sentences(fact) == [(prompt, "zealand")]
    fact = replace(fact, prompts=("where in new zealand is france",))
    assert alias_sentences(fact) == [("where in new zealand is zealand", "zealand")]


def test_no_prompt_is_made_about_what_a_control_asks_about():
    fact = capital()
    asked = [control("where is Italy?"), control("Is C.S. Lewis's Narnia older than “Real Madrid”?")]
    held = replace(fact, controls=tuple(asked)).training
    assert [
        held.may_train_about(name) for name in ("Italy", "C. S. Lewis", "Real Madrid", "Spain", "Madrid Spain")
    ] == [
        *[False] * 3,
        *[True] * 2,
    ]
    named = {
        name for name in ("Italy", "Real Madrid") for made in other_sentences(fact.training, 4000, 0) if name in made
    }
    assert named == {"Italy", "Real Madrid"}
    assert not any(name in made for made in other_sentences(held, 4000, 0) for name in named)


def control(prompt):
    return Control(prompt, ("yes",))
