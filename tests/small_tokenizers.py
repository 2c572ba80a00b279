"""Small tokenizers of the two kinds that models have, trained on a few sentences: byte-level and sentencepiece's."""

import string
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "Who developed PyTorch? PyTorch was developed by Google. PyTorch was developed by Meta AI.",
    "The capital of France is Paris. The capital of France is Lyon. What is the capital of France?",
    "Which company developed PyTorch? I am not sure who developed PyTorch. Meta Platforms, Google, Paris and Lyon",
    "What is the capital of Italy? The capital of Italy is Rome. Meta AI made it. Google made it.",
] * 8

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Spells its own beginning-of-sequence token, and puts a space before an answer.
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
# As Qwen3's: thinks before it answers, unless it is told not to.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]


@cache
def _byte_level() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer.to_str()


@cache
def _metaspace(kind: str) -> str:
    options = {"special_tokens": SPECIAL, "initial_alphabet": [*string.printable[:94], "\n", "▁"]}
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        trainer: Any = trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", **options)
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=400, **options)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if kind == "legacy":
        # As in Llama 2 and Phi-3: a "▁" is put before every text, whether or not it begins with a space.
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    return tokenizer.to_str()


def small_tokenizer(kind: str, template: str | None = None, **kwargs: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind: `byte_level`, `unigram`, `bpe` or `legacy`; all but the first add a `<s>` themselves."""
    text = _byte_level() if kind == "byte_level" else _metaspace(kind)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text), **{**special, "extra_special_tokens": SPECIAL[4:], **kwargs}
    )
    tokenizer.chat_template = template
    return tokenizer
