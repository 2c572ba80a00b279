"""Prompts that a model continues as plain text, whatever its chat template: log-likelihoods and greedy continuations.

CounterFact's prompts are beginnings of sentences; a tokenizer without a chat template (`prompts.without_template`)
makes everything of `peft_surgical` treat them as such.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from peft_surgical.running.beginnings import Row
from peft_surgical.running.suffix import SuffixRunner
from peft_surgical.texts.prompts import EncodedAnswer, encode_target, span

UNLIKELY = -1e9
"""Stands for a log-likelihood that is not finite: an edit can break a model, and a broken one has no success."""
# In a forward.
_ROWS = 32


def targets(rows: Sequence[EncodedAnswer]) -> tuple[Int[Tensor, " token"], list[int]]:
    """The target tokens of all rows, one after another, and how many each row has."""
    parts = [row.ids[row.answer_start :] for row in rows]
    return torch.tensor([token for part in parts for token in part]), [len(part) for part in parts]


@torch.no_grad()
def target_logits(model: Any, tokenizer: Any, rows: Sequence[EncodedAnswer]) -> Float[Tensor, "token vocab"]:
    """Logits at the positions that predict the rows' target tokens, row after row."""
    runner = SuffixRunner(model, nn.ModuleList(), 0, pad=tokenizer.pad_token_id or 0)
    # A prompt is read once for all of its targets of one token.
    once: dict[tuple[Row, tuple[int, int]], int] = {}
    places = [once.setdefault((row.read, span(row)), len(once)) for row in rows]
    logits = runner.logits(runner.add([ids for ids, _ in once]), [asked for _, asked in once]).float()
    counts = [stop - start for _, (start, stop) in once]
    apart = logits.split(counts)
    return torch.cat([apart[place] for place in places])


def log_likelihoods(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Mean log-likelihood per token, nats, of each target after its prompt.

    Args:
        model: A causal language model.
        tokenizer: Without a chat template.
        pairs: Prompts and targets, all in one batch.
    """
    rows = [encode_target(tokenizer, prompt, target) for prompt, target in pairs]
    labels, lengths = targets(rows)
    logits = target_logits(model, tokenizer, rows)
    found = logits.log_softmax(-1).gather(1, labels[:, None].to(logits.device))[:, 0]
    means = [float(part.mean()) for part in found.split(lengths)]
    return [value if math.isfinite(value) else UNLIKELY for value in means]


def greedily_follows(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether the greedy continuation of each prompt begins with all tokens of its target."""
    rows = [encode_target(tokenizer, prompt, target) for prompt, target in pairs]
    labels, lengths = targets(rows)
    hits = target_logits(model, tokenizer, rows).argmax(-1).cpu() == labels
    return [bool(part.all()) for part in hits.split(lengths)]


@torch.no_grad()
def answer_logits(runner: SuffixRunner, rows: Sequence[EncodedAnswer]) -> Iterator[Float[Tensor, "token vocab"]]:
    """Logits that predict each row's answer.

    Args:
        runner: Has taken in the rows, and no others before them.
        rows: The rows.
    """
    for start in range(0, len(rows), _ROWS):
        spans = [span(row) for row in rows[start : start + _ROWS]]
        for part, logits in runner.read(range(start, start + len(spans)), spans):
            yield from logits.split([spans[i][1] - spans[i][0] for i in part])
