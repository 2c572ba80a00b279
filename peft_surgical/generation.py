"""Greedy answers to many prompts: batched, left-padded, sorted by length, stopped at the end of the turn.

One way of answering for base and edited model alike, so that a difference in a figure is a difference in the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from .lengths import check_length
from .progress import progress_bar
from .prompts import encode, end_of_turn
from .suffix import expanded, shared_prefix

MAX_NEW_TOKENS = 32

# A shorter common beginning is not worth a pass of its own.
MIN_SHARED = 8


@torch.no_grad()
def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 32,
    progress: bool = False,
    description: str = "answering",
) -> list[str]:
    """The model's greedy answer to each prompt, as text without special tokens.

    Args:
        model: A causal language model, bare or with adapters; its mode is left as it was.
        tokenizer: Its tokenizer.
        prompts: Rendered with the chat template when there is one.
        max_new_tokens: An answer that has not ended by then is cut.
        batch_size: Prompts a forward.
        progress: Whether to show a progress bar.
        description: Stands before the bar.

    Returns:
        One answer for each prompt, in the order of `prompts`.
    """
    ids = generate_ids(
        model,
        tokenizer,
        [encode(tokenizer, prompt) for prompt in prompts],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
        description=description,
    )
    return [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in ids]


@torch.no_grad()
def generate_ids(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 32,
    progress: bool = False,
    description: str = "answering",
) -> list[list[int]]:
    """As [`generate_answers`], from token ids to token ids; the end of the turn is included where it was reached.

    Raises:
        ModelError: If a prompt and an answer do not fit the model's positions.
    """
    end = end_of_turn(tokenizer)
    check_length(model.config, max((len(p) for p in prompts), default=0), max_new_tokens)
    stops = {end, tokenizer.eos_token_id} - {None}
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stops),
        pad_token_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    # Longest first: running out of memory shows at once, and rows of one batch need little padding.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    try:
        with (
            _plain_defaults(model),
            _contiguous_head(model),
            progress_bar(len(prompts), description, enabled=progress) as bar,
        ):
            prefix, cache = _shared_start(model, prompts)
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                ids, mask = left_pad([prompts[i] for i in rows], config.pad_token_id, prefix)
                ids, mask = ids.to(model.device), mask.to(model.device)
                past = {} if cache is None else {"past_key_values": expanded(cache, len(rows))}
                out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **past)
                for i, answer in zip(rows, out[:, ids.shape[1] :].tolist(), strict=True):
                    answers[i] = _until_stop(answer, stops)
                bar.update(len(rows))
    finally:
        model.train(was_training)
    return answers


def _shared_start(model: Any, prompts: Sequence[Sequence[int]]) -> tuple[int, Any]:
    """How many tokens all prompts begin with, and their keys and values; none where sharing would gain nothing."""
    length = shared_prefix([tuple(prompt) for prompt in prompts], [len(prompt) - 1 for prompt in prompts])
    if length < MIN_SHARED or len(prompts) < 2:
        return 0, None
    start = torch.tensor([list(prompts[0][:length])], device=model.device)
    cache = model(input_ids=start, use_cache=True, logits_to_keep=1).past_key_values
    # A sliding window or a recurrent state cannot be put before padding.
    if not isinstance(cache, DynamicCache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return 0, None
    return length, cache


@contextmanager
def _contiguous_head(model: Any) -> Iterator[None]:
    """Hands the output head the last positions as one matrix.

    What a model slices out of its hidden states is strided, and the product of that becomes a batched one, over as
    many copies of the head as there are rows: gigabytes, and most of the time of an answer in bfloat16.
    """
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _plain_defaults(model: Any) -> Iterator[None]:
    """Keeps what a checkpoint asks of generation, such as a repetition penalty, out of it: greedy is greedy."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = own


def left_pad(
    rows: Sequence[Sequence[int]], pad: int, prefix: int = 0
) -> tuple[Int[Tensor, "row position"], Int[Tensor, "row position"]]:
    """Token ids and attention mask of rows that all *end* at the last position.

    Args:
        rows: Token ids.
        pad: Token id of the padding.
        prefix: So many first tokens of each row stand before the padding, where all rows can share them.
    """
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        tail = torch.as_tensor(row[prefix:])
        ids[i, :prefix] = torch.as_tensor(row[:prefix])
        ids[i, width - len(tail) :] = tail
        mask[i, :prefix] = 1
        mask[i, width - len(tail) :] = 1
    return ids, mask


def _until_stop(ids: list[int], stops: set[int]) -> list[int]:
    for index, token in enumerate(ids):
        if token in stops:
            return ids[: index + 1]
    return ids
