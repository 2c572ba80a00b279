"""Batches in which every row has an adapter of its own.

    >>> model(input_ids, adapter_names=["unlearn", "__base__", "edit"])

`__base__` stands for the unedited model, which makes base and edited answers one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from ..errors import AdapterError
from .layer import BASE, SurgicalIA3Layer, layers_by_name
from .names import check_known

# Models that, in places, count tokens before rows, which no shape tells where there are as many of both.
_TOKENS_FIRST = ("xlnet", "longformer", "led", "fsmt")
# What stands beside a prompt, and may be more or fewer than there are prompts, with the token of a prompt that each
# stands for.
_BESIDE = {
    "pixel_values": "image_token_id",
    "pixel_values_videos": "video_token_id",
    "input_features": "audio_token_id",
}


@contextmanager
def rows_of(tuner: Any, adapter_names: Sequence[str]) -> Iterator[None]:
    """While the block runs, row `i` of every batch is scaled by `adapter_names[i]` alone, and meets the modules that
    this adapter saves whole.

    Args:
        tuner: The [`SurgicalIA3Model`] that holds the model with its surgical layers.
        adapter_names: One adapter, or `__base__`, per row.

    Raises:
        AdapterError: If a name is not known, or the model is merged; and in the block, if a batch that the tuner is
            called with has another number of rows.
    """
    names = list(adapter_names)
    check_known(names, [BASE, *tuner.peft_config])
    layers = layers_by_name(tuner.model)
    if any(layer.merged for layer in layers.values()):
        raise AdapterError("adapter_names needs adapters that are not merged; call unmerge_adapter() first.")
    batch = _Batch(names)
    hooks: list[tuple[nn.Module, Any]] = [(tuner, partial(_checked, names)), (tuner.model, batch.seen)]
    hooks += [(layer, partial(_with_names, batch, name)) for name, layer in layers.items()]
    hooks += [
        (module, partial(_with_own_names, batch, name))
        for name, module in tuner.model.named_modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
    ]
    with ExitStack() as hooked:
        for module, hook in hooks:
            hooked.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield


def check_rows(names: Sequence[str], model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuses names that are not as many as the rows of what a model is called with.

    Args:
        names: One per row.
        model: What is called.
        args: Its positional arguments; the first is its input.
        kwargs: Its named arguments.

    Raises:
        AdapterError: If there are no names, or an input is among them and has another number of rows.
    """
    if isinstance(names, str):
        raise AdapterError(f"adapter_names is a list with one name for each row of the batch, got {names!r}.")
    if not names:
        raise AdapterError("adapter_names is empty; give one name for each row of the batch.")
    rows = _shape(model, args, kwargs)[:1]
    if rows and rows[0] != len(names):
        raise AdapterError(f"adapter_names has {len(names)} names for a batch of {rows[0]} rows.")


def _shape(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """Of a model's input, `[batch, token, ...]`; empty where there is none."""
    inputs = (getattr(model, "main_input_name", "input_ids"), "inputs", "inputs_embeds", "decoder_input_ids")
    given = [value for value in (*args[:1], *(kwargs.get(name) for name in inputs)) if isinstance(value, Tensor)]
    return tuple(given[0].shape) if given else ()


class _Batch:
    """Tells which names are those of the rows that a module within the model is called with.

    Generation repeats each row once per beam, and OPT lays the tokens of each row one after the other before its MLPs:
    rows that belong together stay together, in numbers that the model's own input tells. So do several choices of one
    question, and the windows that some models cut pictures into. Experts get tokens of any rows, some models count
    tokens before rows, and a prompt may have any number of pictures; these would be scaled by each other's adapters.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.rows, self.tokens = len(names), 1
        self.pictures, self.not_one_each, self.tokens_first = False, False, False

    def seen(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Takes the batch's size from what the model is called with."""
        if shape := _shape(model, args, kwargs):
            self.rows, self.tokens = shape[0], (*shape, 1)[1]
        kind: Any = getattr(model, "config", None)
        beside = {name: value for name in _BESIDE if isinstance(value := kwargs.get(name), Tensor)}
        self.pictures = any(len(value) != self.rows for value in beside.values())
        tokens = [getattr(kind, _BESIDE[name], None) for name, value in beside.items() if len(value) == self.rows]
        self.not_one_each = any(_lacks(token, *args[:1], kwargs.get("input_ids")) for token in tokens)
        self.tokens_first = getattr(kind, "model_type", None) in _TOKENS_FIRST

    def spread(self, names: list[str], called: str, args: Sequence[Any]) -> list[str]:
        """One name for each of the rows of a module's input."""
        shape = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else ()
        if not self._whole(shape) or "experts" in called.split("."):
            raise AdapterError(
                f"the rows of a batch cannot be told apart in {called}, so they cannot each have an adapter; set one"
                " for the whole batch."
            )
        return [name for name in names for _ in range(shape[0] // len(names))]

    def _whole(self, shape: tuple[int, ...]) -> bool:
        """Whether what is of one row stands together in a module's input of this shape."""
        if len(shape) < 2 or shape[0] % self.rows or self.rows % len(self.names):
            return False
        if self.not_one_each:
            return shape[:2] == (self.rows, self.tokens)
        if len(shape) == 2 or self.pictures:
            return shape[0] in (self.rows, self.rows * self.tokens)
        return shape[1] != self.rows or (shape[0] == self.rows and not self.tokens_first)


def _lacks(token: int | None, *inputs: Any) -> bool:
    """Whether a row of token ids is without such a token, so that another row has more than its share."""
    ids = [given for given in inputs if isinstance(given, Tensor) and given.ndim == 2]
    return token is not None and bool(ids) and not bool((ids[0] == token).any(1).all())


def _checked(names: list[str], tuner: Any, args: Any, kwargs: dict[str, Any]) -> None:
    # A generating model does not come this way: its batches may hold each row once per beam.
    check_rows(names, tuner.model, args, kwargs)


def _with_names(
    batch: _Batch, called: str, layer: SurgicalIA3Layer, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    if not any(name in layer.coordinates for name in batch.names):
        return args, {**kwargs, "adapter_names": []}
    return args, {**kwargs, "adapter_names": batch.spread(batch.names, called, args)}


def _with_own_names(
    batch: _Batch, called: str, wrapper: Any, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    # PEFT's wrapper has no module for an adapter that saves none, and wants one name for each row that generation
    # made.
    own = [name if name in wrapper._adapters else BASE for name in batch.names]
    if own == [next(iter(wrapper.active_adapters), BASE)] * len(own):
        return args, kwargs
    return args, {**kwargs, "adapter_names": batch.spread(own, called, args)}
