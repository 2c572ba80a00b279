"""What a model is beside its weights: in a mode, with adapters put on or none."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..wrapped import COMPILED
from .devices import input_device

_LEARN_KEYS = ("PREFIX_TUNING", "CARTRIDGE")
# Where transformers adds each row's state to every row's next token.
_MIX_ROWS = ("rwkv",)
# Where transformers asks a layer that has no keys how many there are, and then hides others than those of the padding.
_MISPLACE_PADDING = ("minimax",)
# Of what a model is tried with.
_ROW, _PADDING = 4, 12
_READ_PADDING: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_COUNTS_FROM_PADDING: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_LOCK = threading.Lock()
# The threads that are in such a block for a module, and the mode that it had before the first of them.
_HELD: WeakKeyDictionary[Any, tuple[Counter[int], bool]] = WeakKeyDictionary()


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode in a block; afterwards each module has its own mode again, which need not be its parent's.

    Where blocks of several threads overlap, the last of them gives the modes back.
    """
    thread = threading.get_ident()
    before: list[tuple[Any, bool]] = []
    try:
        with _LOCK:
            for module in model.modules():
                before.append((module, _enter(module, thread)))
            model.eval()
        yield
    finally:
        with _LOCK:
            # Parents come first, so what they tell their children is put right after.
            for module, training in before:
                training = _leave(module, thread, training)
                if module.training != training:
                    module.train(training)


def _enter(module: Any, thread: int) -> bool:
    """Counts a thread in; returns the mode that the module is to have behind the block."""
    threads, first = _HELD.setdefault(module, (Counter(), module.training))
    # A block inside of one of the same thread's gives back what it found, be others in one or not.
    mode: bool = module.training if threads[thread] else first
    threads[thread] += 1
    return mode


def _leave(module: Any, thread: int, training: bool) -> bool:
    """Counts it out; returns the mode that the module is to have now."""
    threads, _ = _HELD[module]
    threads[thread] -= 1
    if any(count for other, count in threads.items() if other != thread):
        return False
    if not +threads:
        del _HELD[module]
    return training


def base_model_of(model: Any) -> Any:
    """The model below PEFT's adapters, or the model itself where PEFT has put none on it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _prompt_configs(model: Any) -> list[Any]:
    return [config for config in getattr(model, "peft_config", {}).values() if config.is_prompt_learning]


def learns_prompts(model: Any) -> bool:
    """Whether an adapter puts learned tokens before each row, which a cache of the row's own tokens does not hold."""
    return bool(_prompt_configs(model))


def embeds_prompts(model: Any) -> bool:
    """Whether these stand as embeddings right before a row and its padding, which PEFT then counts as positions.

    Prefix tuning learns keys and values instead, whose positions padding does not shift.
    """
    return any(config.peft_type not in _LEARN_KEYS for config in _prompt_configs(model))


def needs_no_padding(model: Any) -> bool:
    """Whether padding before a row would change its answer, so that rows run with others as long.

    So it does where prompts are embedded; and in float64 transformers' attention but for `sdpa` makes padding, which
    sees no token, not a number, and of all that reads it. A model may also read padding into its state, or count it as
    positions, or see it once it goes on from a cache.
    """
    base = base_model_of(model)
    if base.config.model_type in _MISPLACE_PADDING:
        return True
    not_a_number = base.dtype == torch.float64 and base.config._attn_implementation != "sdpa"
    return embeds_prompts(model) or not_a_number or _reads_padding(base)


def mixes_rows(model: Any) -> bool:
    """Whether rows that are answered together change one another's answers, so that each stands alone."""
    return base_model_of(model).config.model_type in _MIX_ROWS


def _reads_padding(base: Any) -> bool:
    """Whether a model's answer changes by what a mask hides before a row, tried once where that may be.

    Attention that is told positions reads none of it.
    """
    if "position_ids" in taken(base) and not getattr(base, "_is_stateful", False):
        return False
    if "attention_mask" not in taken(base):
        return True
    if base not in _READ_PADDING:
        _READ_PADDING[base] = _is_changed_by_padding(base)
    return _READ_PADDING[base]


def taken(base: Any) -> Mapping[str, Any]:
    """What a model's own forward takes, whatever is around it."""
    return signature(type(getattr(base, COMPILED, base)).forward).parameters


def told_places(model: Any, begin: int, end: int) -> dict[str, Any]:
    """What tells a model that tokens stand at some places, where it would count others by itself.

    RoBERTa's kind counts on from its padding token's id, but is told places from 0 on when it answers, as all are.

    Args:
        model: A causal language model, bare or with adapters.
        begin: The first place.
        end: The place behind the last.
    """
    base = base_model_of(model)
    if base not in _COUNTS_FROM_PADDING:
        _COUNTS_FROM_PADDING[base] = any(map(_embeds_padding_place, base.modules())) and "position_ids" in taken(base)
    # Behind a learned prompt PEFT lets no places be told.
    if not _COUNTS_FROM_PADDING[base] or prompts_act(model):
        return {}
    return {"position_ids": torch.arange(begin, end, device=input_device(model))[None]}


def _embeds_padding_place(module: Any) -> bool:
    return getattr(getattr(module, "position_embeddings", None), "padding_idx", None) is not None


@torch.no_grad()
def _is_changed_by_padding(base: Any) -> bool:
    device = input_device(base)
    mask = (torch.arange(_ROW + _PADDING, device=device) >= _PADDING).long()[None]
    places = {}
    if "position_ids" in taken(base):
        places["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)

    def said(pads: Sequence[int], **given: Any) -> Tensor:
        ids = torch.tensor([[*pads, *range(_ROW)]], device=device)
        logits: Tensor = base(input_ids=ids, use_cache=False, **given).logits
        return logits[0, -1].double()

    with evaluating(base):
        alone = said([])
        one, other = (said([pad] * _PADDING, attention_mask=mask, **places) for pad in range(2))
    eps, size = torch.finfo(base.dtype).eps, (alone - alone.mean()).norm()
    # What is read of padding shows exactly, where it is only counted up to the rounding of other shapes. What is not a
    # number is not near.
    return not bool((one - other).norm() <= eps * size and (one - alone).norm() <= eps**0.5 * size)


def prompts_act(model: Any) -> bool:
    """Whether learned tokens stand before each row now: where adapters are switched off they do not."""
    return learns_prompts(model) and not getattr(model, "_adapters_disabled", False)


def learned_tokens(model: Any) -> int:
    """How many of a model's positions learned tokens take before each row, by the adapter with most of them."""
    return max((config.num_virtual_tokens for config in _prompt_configs(model)), default=0)
