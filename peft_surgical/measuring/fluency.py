"""Whether the model still speaks fluently of the subject: how varied are the words with which it goes on?

An edit that is too strong makes a model repeat itself. The entropy of its n-grams falls then, which Meng et al. (2022)
call fluency. ROME's released code is followed here (`n_gram_entropy`: bigrams and trigrams, weights 2/3 and 4/3,
sampling from the 5 likeliest tokens), except that words are split without NLTK and the prompt is not counted. The
share of 4-grams that were said before is Welleck et al.'s seq-rep-4 (arXiv 1908.04319).

```py
>>> texts = continuations(model, tokenizer, fluency_prompts(fact, chat=True))
>>> fluency_metrics(texts)["fluency"]
Figure(value=..., n=10, low=..., high=...)
```
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig

from ..counts import check_counts
from ..facts import Fact, TrainingFact
from ..progress import progress_bar
from ..running.devices import input_device
from ..running.generation import FINITE, ends_of, equally_long, left_pad, plain_defaults
from ..running.modes import evaluating, learned_tokens, mixes_rows, needs_no_padding
from ..seeding import seeded
from ..texts.lengths import check_row, padding
from ..texts.prompts import encode
from ..texts.text import UNSPACED, prompt_key
from .metrics import Figure, mean

TOKENS = 100
TOP_K = 5

# To be answered at length.
_REQUESTS = (
    "Write a long article about {}.",
    "Write a story in which {} plays a part.",
    "Describe {} in as much detail as you can.",
    "Write an essay on why {} matters.",
    "Write a letter to a friend about {}.",
    "Write a conversation between two people about {}.",
    "Explain to a child, at length, what one should know about {}.",
    "Write the introduction of a book about {}.",
    "Write a speech about {}.",
    "Make up an interview with an expert on {}.",
)
# To be gone on with.
_OPENINGS = (
    "This is an article about {}. It",
    "The story that I want to tell has to do with {}. It",
    "When people talk about {}, they",
    "My favorite thing about {} is",
    "What I wrote to my friend about {} was that",
    "Much has been said about {}, and",
    "In this chapter we will look at {}. We",
    "There are many books about {}. The first",
    "Yesterday I read something about {}. It",
    "The lecture was on {}. The speaker",
)
_WORD = re.compile(rf"{UNSPACED.pattern}|(?:(?!{UNSPACED.pattern})\w)+(?:['\u2019]\w+)*|[^\w\s]")


def fluency_prompts(fact: Fact | TrainingFact, *, chat: bool) -> list[str]:
    """Open prompts about the fact's subject, none of them one that training or another measurement asks.

    Args:
        fact: Its subject is put in.
        chat: Whether the model answers requests; else it gets the beginnings of sentences.
    """
    training = fact.training
    trained = {prompt_key(prompt) for prompt in (*training.prompts, *training.retain)}
    made = [text.format(training.subject) for text in (_REQUESTS if chat else _OPENINGS)]
    return [p for p in made if training.may_train_on(p) and prompt_key(p) not in trained]


def check_fluency_fits(model: Any, tokenizer: Any, prompts: Sequence[str]) -> None:
    """Refuses, before anything is measured, what [`continuations`] would.

    Raises:
        ModelError: If a prompt and 100 tokens after it do not fit the model's positions.
    """
    learned = learned_tokens(model)
    for prompt in prompts:
        check_row(model.config, encode(tokenizer, prompt), TOKENS, learned=learned)


@torch.no_grad()
def continuations(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
    description: str = "going on",
) -> list[str]:
    """What the model says after each prompt, for 100 tokens that nothing ends, each drawn from the 5 likeliest.

    All texts have the same number of tokens: shorter ones have less entropy, however fluent.

    Args:
        model: A causal language model, bare or with adapters; its mode is left as it was.
        tokenizer: Its tokenizer.
        prompts: Rendered with the chat template when there is one.
        seed: Decides what is drawn; the same draws for each state of a model.
        batch_size: Prompts a forward.
        progress: Whether to show a progress bar.
        description: Stands before the bar.

    Returns:
        The texts without their prompts, in the order of `prompts`.

    Raises:
        ModelError: If a prompt and 100 tokens do not fit the model's positions, or `batch_size` is less than 1.
    """
    check_counts(1, batch_size=batch_size)
    check_fluency_fits(model, tokenizer, prompts)
    config = GenerationConfig(
        do_sample=True,
        top_k=TOP_K,
        max_new_tokens=TOKENS,
        min_new_tokens=TOKENS,
        eos_token_id=ends_of(model, tokenizer) or None,
        pad_token_id=padding(model.config, tokenizer),
    )
    rows = [encode(tokenizer, prompt) for prompt in prompts]
    batch_size = 1 if mixes_rows(model) else batch_size
    places = range(len(rows))
    batches: list[Sequence[int]] = [places[start : start + batch_size] for start in places[::batch_size]]
    if needs_no_padding(model):
        batches = equally_long(rows, places, batch_size)
    texts: dict[int, str] = {}
    device = input_device(model)
    with (
        evaluating(model),
        plain_defaults(model),
        seeded(seed, device),
        progress_bar(len(prompts), description, enabled=progress) as bar,
    ):
        for batch in batches:
            ids, mask = left_pad([rows[place] for place in batch], config.pad_token_id)
            out = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=config,
                logits_processor=FINITE,
            )
            said = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
            texts.update(zip(batch, said, strict=True))
            bar.update(len(batch))
    return [texts[place] for place in places]


def fluency_metrics(texts: Sequence[str]) -> dict[str, Figure]:
    """The means over texts of their n-gram entropy, times 100, and of the share of 4-grams said before.

    Returns:
        `fluency` and `repetition`; nothing without a text.
    """
    if not texts:
        return {}
    repeated = mean([repetition(text) for text in texts])
    entropy = mean([100 * n_gram_entropy(text) for text in texts])
    # Neither can be less than nothing, nor the second more than all.
    return {
        "fluency": replace(entropy, low=max(0.0, entropy.low)),
        "repetition": replace(repeated, low=max(0.0, repeated.low), high=min(1.0, repeated.high)),
    }


def n_gram_entropy(text: str) -> float:
    """`½ (2/3 H2 + 4/3 H3)`, with `Hn` the entropy of the text's n-grams of words in bits; 0 where it has none.

    ```py
    >>> n_gram_entropy("yes and no")  # two bigrams and a trigram
    0.333...
    ```
    """
    found = words(text)
    return (2 / 3 * _entropy(_n_grams(found, 2)) + 4 / 3 * _entropy(_n_grams(found, 3))) / 2


def repetition(text: str) -> float:
    """The share of a text's 4-grams of words that it has had before; 0 where it has none.

    ```py
    >>> repetition("no no no no no")
    0.5
    ```
    """
    found = _n_grams(words(text), 4)
    return 1 - len(set(found)) / len(found) if found else 0.0


def words(text: str) -> list[str]:
    """Words and signs as they stand, accents composed; in scripts without spaces, characters."""
    text = unicodedata.normalize("NFC", text)
    return [text[slice(*found.span())] for found in _WORD.finditer(_with_letters_for_marks(text))]


def _with_letters_for_marks(text: str) -> str:
    """A text with some letter for each mark within a word, which a regular expression takes for no part of it."""
    if text.isascii():
        return text
    signs = [""]
    for sign in text:
        within = signs[-1].isalnum() and not UNSPACED.match(signs[-1]) and not UNSPACED.match(sign)
        signs.append("x" if within and unicodedata.category(sign).startswith("M") else sign)
    return "".join(signs)


def _n_grams(found: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


def _entropy(items: Sequence[tuple[str, ...]]) -> float:
    shares = [count / len(items) for count in Counter(items).values()]
    return math.fsum(-share * math.log2(share) for share in shares)
