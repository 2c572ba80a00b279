"""Greedy answers to many prompts: batched, left-padded, sorted by length, stopped at the end of the turn.

One way of answering for base and edited model alike, so that a difference in a figure is a difference in the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, LogitsProcessorList
from transformers.cache_utils import DynamicLayer

from ..architectures import check_causal
from ..counts import check_counts
from ..dtypes import dtype_name
from ..errors import FactError, ModelError, NotFiniteError, SurgicalError, brief, first_line
from ..progress import progress_bar
from ..texts.lengths import check_row, padding, turning_length
from ..texts.prompts import encode, special_tokens, stops
from ..wrapped import check_no_bridge, check_not_parallel
from .alike import check_alike
from .at_once import deal
from .beginnings import MIN_SHARED, all_layers, expanded, keeps_keys_alone, shared_prefix
from .cache import kept_answers
from .devices import input_device
from .forwards import contiguous_head
from .freed import release_freed
from .modes import (
    base_model_of,
    evaluating,
    learned_tokens,
    learns_prompts,
    mixes_rows,
    needs_no_padding,
    prompts_act,
    told_places,
)
from .overlapping import Changes
from .precision import own_forwards
from .replicas import Replica, replicate
from .sharing import check_shareable, is_run_together, merged, share

Item = TypeVar("Item")

MAX_NEW_TOKENS = 32

# After so many tokens the rows that have ended leave the batch.
ROUND = 4

# Their biases and windows count places in the cache, whatever positions are given, so padding inside it would count.
_COUNT_PLACES = ("mpt", "gpt_neo")

_DECIDE = ("max_new_tokens", "eos_token_id", "pad_token_id")

# Several threads may ask a model at once.
_PLAIN_DEFAULTS = Changes()


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
    strip: bool = True,
) -> list[str]:
    """The model's greedy answer to each prompt, as text without special tokens.

    Args:
        model: A causal language model, bare or with adapters; its mode is left as it was. What `Trainer(bf16=True)`
            wrapped runs without that wrapper.
        tokenizer: Its tokenizer.
        prompts: Rendered with the chat template when there is one.
        max_new_tokens: An answer that has not ended by then is cut.
        batch_size: Prompts in one forward pass; replicas of the model run several passes at the same time.
        progress: Whether to show a progress bar.
        description: Stands before the bar.
        strip: Whether answers are without the white space around them.

    Returns:
        One answer for each prompt, in the order of `prompts`.

    Raises:
        FactError: If a prompt gives no token, or the prompts are a single text.
        AdapterError: If the last adapter of a PEFT model was deleted.
        ModelError: If it is no model or wrapped for data parallelism, a prompt and an answer do not fit the model's
            positions or vocabulary, a count is less than 1, the chat template fails or leaves a prompt out, the model
            cannot be run, or a logit is not finite.
        ArchitectureError: If the model is no causal language model.
    """
    check_not_parallel(model)
    if isinstance(prompts, str):
        raise FactError(f"prompts are a list of texts; got the text {brief(prompts)}.")
    prompts = list(prompts)
    # Here, and not for every use of token ids within this package, since all weights are read.
    check_alike(model=model)
    asked = [encode(tokenizer, prompt) for prompt in prompts]
    ids = generate_ids(
        model,
        tokenizer,
        asked,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
        description=description,
        texts=prompts,
    )
    ends = ends_of(model, tokenizer)
    # A chat template may end a turn with a token that the tokenizer does not call special.
    said = [answer[:-1] if answer[-1] in ends else answer for answer in ids]
    texts = [tokenizer.decode(answer, skip_special_tokens=True) for answer in said]
    if strip:
        return [text.strip() for text in texts]
    spaces = (_space_before(tokenizer, *rows) for rows in zip(asked, said, strict=True))
    return [space + text.lstrip() for space, text in zip(spaces, texts, strict=True)]


def _space_before(tokenizer: Any, prompt: Sequence[int], answer: Sequence[int]) -> str:
    """The white space between a prompt and its answer, a first space of which many tokenizers leave out of a text."""
    last: str = tokenizer.decode(prompt[-1:])
    text: str = tokenizer.decode([*prompt[-1:], *answer])
    text = text[len(last) :] if text.startswith(last) else tokenizer.decode(answer)
    return text[: len(text) - len(text.lstrip())]


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
    texts: Sequence[str] | None = None,
) -> list[list[int]]:
    """As [`generate_answers`], from token ids to token ids; the end of the turn is included where it was reached.
    `texts` are the prompts as somebody wrote them, to name one by that is too long.

    Raises:
        ModelError: If a prompt and an answer do not fit the model's positions or vocabulary, a count is less than 1,
            the model cannot be run, or a logit is not finite.
        ArchitectureError: If the model is no causal language model.
    """
    check_counts(1, max_new_tokens=max_new_tokens, batch_size=batch_size)
    check_no_bridge(model)
    check_causal(model)
    check_shareable(model)
    check_alike(prompts=prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    learned = learned_tokens(model) if prompts_act(model) else 0
    for number, prompt in enumerate(prompts):
        text = None if texts is None else texts[number]
        check_row(model.config, prompt, max_new_tokens, learned=learned, prompt=text)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends_of(model, tokenizer) or None,
        pad_token_id=padding(model.config, tokenizer),
        return_dict_in_generate=True,
    )
    settings = {"batch_size": batch_size, **{name: getattr(config, name) for name in _DECIDE}}
    with own_forwards(model):
        return kept_answers(
            model,
            prompts,
            settings,
            lambda: _generate(model, prompts, config, batch_size, progress, description),
        )


def _check_runs(model: Any, prompts: Sequence[Sequence[int]], error: Exception) -> None:
    """Tells of a model that cannot be run, once answering has failed: whose fault the error is shows in a plain pass.

    Raises:
        ModelError: If that fails, too, and not for want of memory.
    """
    # A pass that processes run together waits for all of them, and the others may have gone on.
    if isinstance(error, SurgicalError) or should_reduce_batch_size(error) or not prompts or is_run_together(model):
        return
    try:
        with evaluating(model):
            model(input_ids=torch.tensor([list(prompts[0])], device=input_device(model)))
    except Exception as fault:
        if not should_reduce_batch_size(fault):
            kind = type(base_model_of(model)).__name__
            raise ModelError(f"the model, a {kind}, cannot be run: {first_line(fault)}.") from fault


def ends_of(model: Any, tokenizer: Any) -> list[int]:
    """The token ids at which a model's answer is over: [`stops`], and the special tokens that its checkpoint names.

    A chat model may end a turn in several ways, which only its generation config lists. A token that is listed there
    and is no special one, such as a line break, is no end: it may stand within an answer.
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    named = [] if named is None else [named] if isinstance(named, int) else list(named)
    special = special_tokens(tokenizer)
    return sorted({*stops(tokenizer), *(token for token in named if token in special)})


def _generate(model: Any, prompts: Sequence[Sequence[int]], *how: Any) -> list[list[int]]:
    def own() -> dict[int, list[int]]:
        try:
            return _own_answers(model, prompts, *how)
        except Exception as error:
            _check_runs(model, prompts, error)
            raise

    every = merged(own)
    return [every[i] for i in range(len(prompts))]


def _own_answers(
    model: Any, prompts: Sequence[Sequence[int]], config: Any, batch_size: int, progress: bool, description: str
) -> dict[int, list[int]]:
    """The answers of this process's share, by the places of their prompts."""
    # Where the longest row decides how positions are turned, each stands alone.
    longest = learned_tokens(model) + max(map(len, prompts), default=0) + config.max_new_tokens
    alone = mixes_rows(model) or longest > turning_length(base_model_of(model).config)
    batch_size = 1 if alone else batch_size
    # Longest first: running out of memory shows at once, and rows of one batch need little padding.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    device = input_device(model)
    release_freed()
    with evaluating(model):
        # No more than there are batches: whatever it answers, each reads all weights for every token.
        replicas = replicate(model, most=-(-len(prompts) // batch_size))
        if needs_no_padding(model):
            batches = share(equally_long(prompts, order, batch_size))
        else:
            batches = share(even_batches(order, batch_size, len(replicas)))
        with progress_bar(sum(map(len, batches)), description, enabled=progress) as bar:
            with contiguous_head(model):
                prefix, cache = (0, None) if alone else _shared_start(model, prompts)

            def answer(replica: Replica, own: Iterator[Sequence[int]]) -> dict[int, list[int]]:
                answers: dict[int, list[int]] = {}
                model = replica.model
                with plain_defaults(model), contiguous_head(model):
                    for rows in own:
                        ids, mask = left_pad([prompts[i] for i in rows], config.pad_token_id, prefix)
                        begin = None if cache is None else expanded(cache, len(rows))
                        ids, mask = ids.to(device), mask.to(device)
                        for place, answer in _ending(model, ids, mask, begin, config):
                            answers[rows[place]] = answer
                            bar.update(1)
                return answers

            found = deal(replicas, batches, answer)
    return {place: answer for answers in found for place, answer in answers.items()}


def even_batches(order: Sequence[Item], batch_size: int, replicas: int) -> list[Sequence[Item]]:
    """Rows in batches of about equal size, as many for each replica."""
    count = -(-len(order) // batch_size)
    count = min(-(-count // replicas) * replicas, len(order))
    cuts = [len(order) * i // count for i in range(count + 1)] if count else []
    return [order[begin:end] for begin, end in pairwise(cuts)]


def equally_long(rows: Sequence[Sequence[int]], order: Iterable[int], batch_size: int) -> list[Sequence[int]]:
    """Rows in batches of one length each, by their places in `order`: batches that need no padding."""
    lengths: dict[int, list[int]] = {}
    for place in order:
        lengths.setdefault(len(rows[place]), []).append(place)
    return [batch for alike in lengths.values() for batch in even_batches(alike, batch_size, 1)]


def _ending(
    model: Any, ids: Int[Tensor, "row position"], mask: Int[Tensor, "row position"], cache: Any, config: Any
) -> Iterator[tuple[int, list[int]]]:
    """Each row's place and its answer, as the rows end.

    A batch would run until its longest answer has ended, and most are short: every few tokens the rows that have
    ended leave it, and take their keys and values along.
    """
    places, begin, ends = list(range(len(ids))), ids.shape[1], set(config.eos_token_id or ())
    past = {} if cache is None else {"past_key_values": cache}
    last = begin + config.max_new_tokens
    in_rounds = not learns_prompts(model)
    while places:
        config = copy.copy(config)
        config.max_new_tokens = min(ROUND, last - ids.shape[1]) if in_rounds else last - ids.shape[1]
        out = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=FINITE, **past
        )
        if in_rounds and not _can_go_on(out.past_key_values):
            in_rounds = False
            continue
        answers = out.sequences[:, begin:].tolist()
        full = out.sequences.shape[1] == last
        ended = [full or not in_rounds or not ends.isdisjoint(answer) for answer in answers]
        yield from ((p, _until_stop(a, ends)) for p, a, e in zip(places, answers, ended, strict=True) if e)
        going = [row for row, end in enumerate(ended) if not end]
        places = [places[row] for row in going]
        if going:
            chosen = torch.tensor(going, device=ids.device)
            mask = F.pad(mask, (0, out.sequences.shape[1] - ids.shape[1]), value=1)[chosen]
            ids = out.sequences[chosen]
            past = {"past_key_values": out.past_key_values}
            out.past_key_values.batch_select_indices(chosen)


def _finite(_: Tensor, logits: Tensor) -> Tensor:
    # A model may mask tokens, but never all.
    if not bool(logits.amax(-1).isfinite().all()):
        dtype = dtype_name(logits.dtype)
        raise NotFiniteError(
            f"the model answers with logits that are not finite; its weights are damaged, or do not fit into {dtype}."
        )
    return logits


# Refuses what would otherwise be read as an answer of no words.
FINITE = LogitsProcessorList([_finite])


def _can_go_on(cache: Any) -> bool:
    """Whether rows can leave a cache and the others go on from it; a model that caches nothing leaves it empty."""
    return all_layers(cache, keeps_keys_alone) and any(layer.get_seq_length() for layer in cache.layers)


def _shared_start(model: Any, prompts: Sequence[Sequence[int]]) -> tuple[int, Any]:
    """How many tokens all prompts begin with, and their keys and values; none where sharing would gain nothing."""
    length = shared_prefix([tuple(prompt) for prompt in prompts], [len(prompt) - 1 for prompt in prompts])
    if length < MIN_SHARED or len(prompts) < 2 or learns_prompts(model) or model.config.model_type in _COUNT_PLACES:
        return 0, None
    start = torch.tensor([list(prompts[0][:length])], device=input_device(model))
    out = model(input_ids=start, use_cache=True, logits_to_keep=1, **told_places(model, 0, length))
    # A recurrent model may give its state by another name.
    cache = getattr(out, "past_key_values", None)
    # A sliding window or a recurrent state cannot be put before padding, nor what a model left empty.
    whole = all_layers(cache, lambda layer: type(layer) is DynamicLayer and layer.get_seq_length() == length)
    return (length, cache) if whole else (0, None)


@contextmanager
def plain_defaults(model: Any) -> Iterator[None]:
    """Keeps what a checkpoint asks of generation, such as a repetition penalty, out of it: greedy is greedy."""
    # A PEFT model hands on the base's, but for one that it was given itself.
    holders = {m for m in (base_model_of(model), model) if "generation_config" in vars(m)}
    with ExitStack() as within:
        for holder in holders:
            _PLAIN_DEFAULTS.enter(holder, partial(_without_defaults, holder))
            within.callback(_PLAIN_DEFAULTS.leave, holder)
        yield


def _without_defaults(holder: Any) -> Callable[[], None]:
    own, holder.generation_config = holder.generation_config, GenerationConfig()
    return partial(setattr, holder, "generation_config", own)


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
    ids = torch.full((len(rows), width), pad, dtype=torch.long, device="cpu")
    mask = torch.zeros((len(rows), width), dtype=torch.long, device="cpu")
    for i, row in enumerate(rows):
        tail = torch.as_tensor(row[prefix:], device="cpu")
        ids[i, :prefix] = torch.as_tensor(row[:prefix], device="cpu")
        ids[i, width - len(tail) :] = tail
        mask[i, :prefix] = 1
        mask[i, width - len(tail) :] = 1
    return ids, mask


def _until_stop(ids: list[int], ends: set[int]) -> list[int]:
    for index, token in enumerate(ids):
        if token in ends:
            return ids[: index + 1]
    return ids
