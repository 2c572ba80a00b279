"""Prompts and answers by tokenizers, and in a template, that put something of their own around every text."""

from tokenizers.processors import TemplateProcessing

from peft_surgical.texts.prompts import encode, encode_answer, encode_target

from .small_tokenizers import CHATML, small_tokenizer

PROMPT = "Who developed PyTorch?"


def test_a_tokenizer_that_ends_every_text():
    tokenizer = small_tokenizer("byte_level")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    assert tokenizer("Who?")["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in encode(tokenizer, "Who?")
    assert encode_answer(tokenizer, "Who?", "Paris").ids.count(tokenizer.eos_token_id) == 1


def test_a_tokenizer_that_begins_every_text_as_it_ends_one():
    tokenizer = small_tokenizer("byte_level")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    assert encode(tokenizer, "") == [tokenizer.eos_token_id]
    assert encode_answer(tokenizer, "", "Paris").answer_start == 1


def test_a_template_that_turns_otherwise_when_it_asks_puts_nothing_before_an_answer():
    tokenizer = small_tokenizer("byte_level", "{% if not add_generation_prompt %}Talk: {% endif %}" + CHATML)
    row = encode_answer(tokenizer, PROMPT, "Google")
    assert list(row.ids[: row.answer_start]) == encode(tokenizer, PROMPT)
    assert tokenizer.decode(row.ids[row.answer_start :]) == "Google<|im_end|>"


def test_a_tokenizer_that_separates_every_text():
    tokenizer = small_tokenizer("byte_level", sep_token="<|im_end|>")
    plain = tokenizer(PROMPT)["input_ids"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", tokenizer.sep_token_id)]
    )
    assert tokenizer(PROMPT)["input_ids"][-1] == tokenizer.sep_token_id
    assert encode(tokenizer, PROMPT) == plain
    row = encode_target(tokenizer, PROMPT, "Google")
    assert row == encode_target(small_tokenizer("byte_level"), PROMPT, "Google")
    assert row.answer_start == len(plain)
