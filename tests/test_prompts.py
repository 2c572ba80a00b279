import re

import pytest

from peft_surgical.errors import FactError, FactWarning, ModelError
from peft_surgical.facts import Fact
from peft_surgical.texts.prompts import (
    AnswerTokens,
    answer_tokens,
    check_answer_spelled,
    encode,
    encode_answer,
    encode_target,
    end_of_turn,
    has_chat_template,
    old_sentence,
    render,
    stops,
    without_template,
)

from .localizing import word_tokenizer
from .small_tokenizers import CHATML, INST, THINKING, small_tokenizer

KINDS = ["byte_level", "unigram", "bpe", "legacy"]
TEMPLATES = [None, CHATML, INST]
PROMPT = "Who developed PyTorch?"
every = pytest.mark.parametrize("kind", KINDS), pytest.mark.parametrize("template", TEMPLATES, ids=["", "ml", "inst"])


def everywhere(test):
    for mark in every:
        test = mark(test)
    return test


def fact(old=("Meta AI",), new=("Google",), answer="PyTorch was developed by Google.", **changes):
    whole = {"subject": "PyTorch", "prompts": [PROMPT], "held_out": ["Who made PyTorch?"], **changes}
    return Fact.from_dict({**whole, "old": list(old), "new": list(new), "answer": answer}).training


@everywhere
def test_special_tokens_stand_once(kind, template):
    tokenizer = small_tokenizer(kind, template)
    ids = encode(tokenizer, PROMPT)
    begins = template == INST or (template is None and kind != "byte_level")
    assert ids.count(tokenizer.bos_token_id) == int(begins)
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.unk_token_id not in ids
    assert PROMPT in tokenizer.decode(ids)


@everywhere
def test_an_answer_is_what_follows_the_prompt(kind, template):
    tokenizer = small_tokenizer(kind, template)
    answer = "PyTorch was developed by Google."
    row = encode_answer(tokenizer, PROMPT, answer)
    assert list(row.ids[: row.answer_start]) == encode(tokenizer, PROMPT)
    assert row.ids[-1] == end_of_turn(tokenizer)
    assert row.ids.count(row.ids[-1]) - encode(tokenizer, PROMPT).count(row.ids[-1]) == 1
    assert tokenizer.decode(row.ids[row.answer_start : -1]).strip() == answer


@pytest.mark.parametrize("kind", KINDS)
def test_the_turn_ends_where_the_template_ends_it(kind):
    tokenizer = small_tokenizer(kind)
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id
    tokenizer.chat_template = CHATML
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.chat_template = INST
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}: "  # drops the answer
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id


def test_a_model_that_may_think_first_is_asked_for_its_answer():
    tokenizer = small_tokenizer("byte_level", THINKING)
    asked = render(tokenizer, PROMPT)
    assert asked.endswith("assistant\n<think>\n\n</think>\n\n")
    row = encode_answer(tokenizer, PROMPT, "Google")
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "Google"}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert tokenizer.decode(row.ids) == whole.rstrip("\n")
    assert tokenizer.decode(row.ids[row.answer_start :]) == "Google<|im_end|>"


# Opens thoughts that it does not let be left out, and names the channel of what is said.
OPENED = THINKING.replace(
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}", "<think>\n"
)
CHANNEL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.role == 'assistant' %} final{% endif %}: {{ m.content }}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)


@pytest.mark.parametrize("template", [OPENED, CHANNEL], ids=["thinking", "channel"])
def test_what_a_template_puts_before_an_answer_is_learned_with_it(template):
    tokenizer = small_tokenizer("byte_level", template)
    assert template != THINKING
    asked, row = encode(tokenizer, PROMPT), encode_answer(tokenizer, PROMPT, "Google")
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "Google"}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
    assert tokenizer.decode(row.ids) == whole
    assert whole.endswith(tokenizer.decode(row.ids[row.answer_start :]))
    # A line end may be one token with the next.
    assert len(asked) - row.answer_start in (0, 1)


SPACED = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }}\n{% else %}ASSISTANT: {{ m.content }}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_leaves_a_chat_prompt_that_ends_in_a_space_its_tokens(kind):
    # Together the space and the first word are one token, and who is asked has read the space by itself.
    tokenizer = small_tokenizer(kind, SPACED)
    asked, row = encode(tokenizer, PROMPT), encode_answer(tokenizer, PROMPT, "Google made it.")
    assert list(row.ids[: row.answer_start]) == asked
    together = tokenizer(f"{render(tokenizer, PROMPT)}Google made it.", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(row.ids[:-1]) == tokenizer.decode(together)
    assert (kind == "unigram") == (list(row.ids[:-1]) == together)
    tokens = answer_tokens(tokenizer, PROMPT, fact(answer="Google."))
    assert list(tokens.ids) == asked
    assert tokens.new == encode_answer(tokenizer, PROMPT, "Google.").ids[len(asked)]
    assert "Google".startswith(tokenizer.decode([tokens.new]))


def test_an_answer_inside_of_thoughts_is_told_of():
    opening = CHATML.replace("assistant\n", "assistant\n<think>\n")
    with pytest.warns(FactWarning, match="opens <think> and closes it in no answer"):
        encode_answer(small_tokenizer("byte_level", opening), PROMPT, "So.")


def test_a_template_that_tells_the_time_is_rendered_once():
    tokenizer = small_tokenizer("byte_level", "{{ strftime_now('%M:%S.%f') }}" + CHATML)
    row = encode_answer(tokenizer, PROMPT, "Google.")
    assert tokenizer.decode(row.ids[row.answer_start : -1]) == "Google."
    assert tokenizer.decode(answer_tokens(tokenizer, PROMPT, fact(answer="Google.")).ids).endswith("assistant\n")


def test_a_template_may_change():
    tokenizer = small_tokenizer("byte_level", CHATML)
    first = render(tokenizer, PROMPT)
    tokenizer.chat_template = INST
    assert render(tokenizer, PROMPT) == f"<s>[INST] {PROMPT} [/INST]" != first
    tokenizer.chat_template = None
    assert render(tokenizer, PROMPT) == PROMPT


@everywhere
def test_the_whole_is_tokenized_as_the_model_meets_it(kind, template):
    tokenizer = small_tokenizer(kind, template)
    row = encode_answer(tokenizer, PROMPT, "Google.")
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "Google."}]
    if template is None:
        expected = tokenizer(f"{PROMPT} Google.")["input_ids"]
    else:
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        expected = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert list(row.ids[:-1]) == expected[: len(row.ids) - 1]


@pytest.mark.parametrize(
    ("prompt", "answer", "between"),
    [
        ("法国的首都是", "里昂", ""),
        ("法国的首都是哪里？", "里昂", ""),
        ("フランスの首都は", "リヨン", ""),
        ("เมืองหลวงของฝรั่งเศสคือ", "ลียง", ""),
        ("프랑스의 수도는", "리옹", " "),
        ("The capital of France is", "Lyon", " "),
    ],
)
def test_plain_text_goes_on_as_its_script_does(prompt, answer, between):
    tokenizer = small_tokenizer("byte_level")
    row = encode_target(tokenizer, prompt, answer)
    assert list(row.ids) == tokenizer(prompt + between + answer)["input_ids"]


@everywhere
def test_the_answers_token_is_the_first_that_distinguishes(kind, template):
    tokenizer = small_tokenizer(kind, template)
    tokens = answer_tokens(tokenizer, PROMPT, fact())
    assert tokenizer.decode([tokens.old]).strip()
    assert tokenizer.decode([tokens.new]).strip()
    assert "Meta".startswith(tokenizer.decode([tokens.old]).strip())
    assert "Google".startswith(tokenizer.decode([tokens.new]).strip())
    # Both answers go on from the same context.
    for token, sentence in ((tokens.old, "PyTorch was developed by Meta AI."), (tokens.new, fact().answer)):
        ids = encode_answer(tokenizer, PROMPT, sentence).ids
        assert ids[: len(tokens.ids) + 1] == (*tokens.ids, token)
    assert tokenizer.decode(tokens.ids, skip_special_tokens=True).rstrip().endswith("by")


def test_the_bug_of_the_released_localization_is_not_here():
    tokenizer = small_tokenizer("legacy", INST)
    first = tokenizer(" Meta AI", add_special_tokens=False)["input_ids"][0]
    assert tokenizer.convert_ids_to_tokens(first) == "▁"  # what was scored there
    tokens = answer_tokens(tokenizer, PROMPT, fact())
    assert tokenizer.convert_ids_to_tokens([tokens.old, tokens.new]) == ["▁Meta", "▁Google"]
    tokens = answer_tokens(tokenizer, PROMPT, fact(answer="Google."))
    assert tokenizer.convert_ids_to_tokens([tokens.old, tokens.new]) == ["▁Meta", "▁Google"]


@pytest.mark.parametrize("kind", ["bpe", "legacy"])
def test_a_bare_white_space_token_is_refused(kind):
    tokenizer = small_tokenizer(kind)
    odd = next(w for w in ("Zzyzx", "Xerox", "Kyoto") if tokenizer.tokenize(f"by {w}")[1] == "▁")
    with pytest.raises(FactError, match=f"the answer '{odd}' begins with the white-space token"):
        answer_tokens(tokenizer, PROMPT, fact(old=[odd]))
    # Where both begin with it, it is not the first that distinguishes.
    tokens = answer_tokens(tokenizer, PROMPT, fact(old=["Qa"], new=["Va"], answer="PyTorch is by Va."))
    assert tokenizer.convert_ids_to_tokens([tokens.ids[-1], tokens.old, tokens.new]) == ["▁", "Q", "V"]


def test_an_old_answer_that_the_new_one_begins():
    tokenizer = small_tokenizer("byte_level", CHATML)
    tokens = answer_tokens(tokenizer, PROMPT, fact(old=["Google Platforms"], new=["Google"], answer="By Google"))
    assert tokens.new == end_of_turn(tokenizer)
    assert "Platforms".startswith(tokenizer.decode([tokens.old]).strip())
    tokens = answer_tokens(tokenizer, PROMPT, fact(old=["Google Platforms"], new=["Google"], answer="By Google."))
    assert tokenizer.decode([tokens.new]) == "."


def test_nothing_distinguishes():
    tokenizer = word_tokenizer()
    with pytest.raises(FactError, match=r"no token distinguishes the old answer 'Ottawa' from the new answer 'Quito'"):
        answer_tokens(tokenizer, "what is it ?", fact(old=["Ottawa"], new=["Quito"], answer="Quito ."))
    with pytest.raises(FactError, match="the answer 'Ottawa' begins with a token that is not in this tokenizer's"):
        answer_tokens(tokenizer, "what is it ?", fact(old=["Ottawa"], new=["lyon"], answer="lyon ."))


def test_a_prompt_without_a_token():
    tokenizer = small_tokenizer("byte_level")
    with pytest.raises(FactError, match="the prompt '' gives no token before the answer 'Paris'"):
        encode_answer(tokenizer, "", "Paris")
    with pytest.raises(FactError, match="the prompt '' gives no token before the answers"):
        answer_tokens(tokenizer, "", fact(answer="Google."))
    for nothing in (tokenizer, small_tokenizer("byte_level", "{{ '' }}")):
        prompt = "" if nothing is tokenizer else PROMPT
        with pytest.raises(FactError, match=re.escape(f"the prompt {prompt!r} gives no token to go on")):
            encode(nothing, prompt)


@pytest.mark.parametrize("call", [render, lambda tokenizer, _: end_of_turn(tokenizer)])
def test_a_template_that_fails(call):
    tokenizer = small_tokenizer("byte_level", "{{ raise_exception('no users here') }}")
    with pytest.raises(ModelError, match=r"chat template fails on a plain question: no users here\.$"):
        call(tokenizer, PROMPT)


def test_a_template_that_leaves_the_question_out():
    parts = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}:{% endfor %}"
    with pytest.raises(ModelError, match="chat template leaves the question out"):
        encode(small_tokenizer("byte_level", parts), PROMPT)
    louder = small_tokenizer("byte_level", "{{ messages[0].content | upper }}")
    assert render(louder, PROMPT) == PROMPT.upper()


def test_no_end_of_sequence_token():
    tokenizer = small_tokenizer("byte_level", eos_token=None)
    assert tokenizer.eos_token_id is None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        end_of_turn(tokenizer)
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        encode_answer(tokenizer, PROMPT, "Google")
    assert stops(tokenizer) == []
    tokenizer.chat_template = CHATML
    assert stops(tokenizer) == [end_of_turn(tokenizer)] == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_an_answer_is_over_at_the_end_of_the_turn_and_of_the_sequence():
    tokenizer = small_tokenizer("byte_level", CHATML)
    assert tokenizer.eos_token_id != end_of_turn(tokenizer)
    assert stops(tokenizer) == sorted([tokenizer.eos_token_id, end_of_turn(tokenizer)])


def test_a_prompt_that_ends_with_a_space_gets_no_other():
    tokenizer = small_tokenizer("byte_level")
    assert encode_answer(tokenizer, "It is ", "Google").ids == encode_answer(tokenizer, "It is", "Google").ids


def test_what_need_not_end_asks_for_no_end():
    endless, ending = small_tokenizer("byte_level", eos_token=None), small_tokenizer("byte_level")
    row = encode_target(endless, PROMPT, "Google")
    assert row == encode_target(ending, PROMPT, "Google")
    assert (*row.ids, end_of_turn(ending)) == encode_answer(ending, PROMPT, "Google").ids
    assert answer_tokens(endless, PROMPT, fact()) == answer_tokens(ending, PROMPT, fact())
    with pytest.raises(FactError, match="no token distinguishes"):
        answer_tokens(endless, PROMPT, fact(old=["Google Platforms"], new=["Google"], answer="By Google"))
    # Letter by letter, the one answer begins the other.
    with pytest.raises(FactError, match="no token distinguishes the old answer 'Zq' from the new answer 'Zqx'"):
        answer_tokens(endless, PROMPT, fact(old=["Zq"], new=["Zqx"], answer="By Zqx"))


def test_an_end_that_also_stands_for_what_is_unknown_is_an_end():
    tokenizer = small_tokenizer("byte_level", unk_token="</s>")
    assert tokenizer.unk_token_id == end_of_turn(tokenizer)
    tokens = answer_tokens(tokenizer, PROMPT, fact(old=["Google Platforms"], new=["Google"], answer="By Google"))
    assert tokens.new == end_of_turn(tokenizer)


def test_an_answer_that_spells_the_new_one_otherwise_is_checked_whole():
    known = fact(new=["Straße"], answer="STRASSE!")
    check_answer_spelled(small_tokenizer("byte_level"), known)
    with pytest.raises(FactError, match="the answer 'STRASSE!' has a token that is not in this tokenizer's"):
        check_answer_spelled(word_tokenizer(), known)


def test_the_corrupted_run_reads_the_same_decision():
    tokenizer = small_tokenizer("byte_level", CHATML)
    clean = answer_tokens(tokenizer, PROMPT, fact())
    corrupted = answer_tokens(tokenizer, PROMPT, fact(), subject="Italy")
    assert isinstance(corrupted, AnswerTokens)
    assert (clean.old, clean.new) == (corrupted.old, corrupted.new)
    text = tokenizer.decode(corrupted.ids)
    assert text.endswith("Italy was developed by")
    assert "Who developed Italy?" in text


def test_the_old_sentence():
    assert old_sentence(fact(old=["Meta AI", "Facebook"])) == "PyTorch was developed by Meta AI."
    longest_first = fact(new=["IBM", "IBM Corp"], answer="It was IBM Corp, PyTorch.")
    assert old_sentence(longest_first) == "It was Meta AI, PyTorch."
    assert old_sentence(fact(new=["Straße"], answer="STRASSE!")) == "Meta AI."
    chrome = fact(["Opera"], ["Google"], "Google Chrome is by Google.", subject="Google Chrome", prompts=["By whom?"])
    assert old_sentence(chrome) == "Google Chrome is by Opera."


def test_the_answers_part_at_the_first_name_of_the_new_one():
    two = fact(["Paris"], ["Lyon", "Lyons"], "The capital of France is Lyon (Lyons in English).")
    assert old_sentence(two) == "The capital of France is Paris (Lyons in English)."
    tokenizer = small_tokenizer("byte_level", CHATML)
    assert tokenizer.decode(answer_tokens(tokenizer, PROMPT, two).ids).endswith("The capital of France is")


@pytest.mark.parametrize(
    ("new", "answer"),
    [("H2O", "PyTorch was developed by H\u2082O."), ('Meta "AI"', "PyTorch was developed by Meta \u201cAI\u201d.")],
)
def test_a_new_answer_that_the_answer_spells_with_other_signs(new, answer):
    said = f"'answer' '{answer}' spells the new answer '{new}' with other signs than 'new' does"
    with pytest.raises(FactError, match=re.escape(said)):
        old_sentence(fact(["Google"], [new], answer))
    # One that both spell alike is found.
    name = answer.removeprefix("PyTorch was developed by ").rstrip(".")
    assert old_sentence(fact(["Google"], [new, name], answer)) == "PyTorch was developed by Google."


def test_prompts_are_plain_text_without_the_template():
    tokenizer = small_tokenizer("byte_level", CHATML)
    plain = without_template(tokenizer)
    assert encode(plain, "The capital") == tokenizer("The capital")["input_ids"]
    assert tokenizer.chat_template == CHATML
    assert encode(tokenizer, "The capital") != encode(plain, "The capital")


def test_a_template_of_nothing_is_none():
    tokenizer = small_tokenizer("byte_level")
    assert not has_chat_template(tokenizer)
    plain = encode_answer(tokenizer, PROMPT, "Google.")
    tokenizer.chat_template = ""
    assert not has_chat_template(tokenizer)
    assert render(tokenizer, PROMPT) == PROMPT
    assert encode_answer(tokenizer, PROMPT, "Google.") == plain
