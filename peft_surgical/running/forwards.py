"""Putting other functions in the place of modules' forwards for a while, or another input before an output head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn

from ..errors import ArchitectureError


@contextmanager
def forwards(replaced: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Lets modules do something else in a block; their hooks stay.

    Args:
        replaced: What to call instead of each one's forward.
    """
    # A module may have a forward of its own already: device maps hook in that way.
    own = {module: vars(module).get("forward") for module in replaced}
    try:
        for module, forward in replaced.items():
            module.forward = forward
        yield
    finally:
        for module, forward_before in own.items():
            if forward_before is None:
                vars(module).pop("forward", None)
            else:
                module.forward = forward_before


@contextmanager
def stood_in(replaced: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """As [`forwards`], but without the modules' hooks: what they do belongs to what is not run.

    Args:
        replaced: What to call instead of each one.
    """
    kinds = ("_forward_pre_hooks", "_forward_hooks")
    own = [(module, kind, hooks) for module in replaced for kind in kinds if (hooks := getattr(module, kind))]
    try:
        for module, kind, _ in own:
            setattr(module, kind, OrderedDict())
        with forwards(replaced):
            yield
    finally:
        for module, kind, hooks in own:
            setattr(module, kind, hooks)


def passing(function: Callable[[Tensor], Tensor], in_tuple: Callable[[], bool] | None = None) -> Callable[..., Any]:
    """A forward that looks at its first argument only.

    Args:
        function: What it makes of that.
        in_tuple: Whether its caller expects a tuple, asked each time; it does not when None.
    """

    def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        given = function(hidden_states)
        return (given, None) if in_tuple and in_tuple() else given

    return forward


@contextmanager
def form_of(layer: nn.Module) -> Iterator[Callable[[], bool]]:
    """Tells whether a decoder layer that runs in the block gives a tuple, as GPT-J's and Bloom's do, or a list."""
    seen: list[bool] = []
    with layer.register_forward_hook(lambda _, __, out: seen.append(isinstance(out, tuple | list))):
        yield lambda: any(seen)


def handed_on(output: Any) -> Tensor:
    """The hidden states in what a decoder layer gives: some give a tuple, and OpenAI's first GPT a list.

    Args:
        output: What it gives.

    Raises:
        ArchitectureError: If these are several states a token, as Gemma 3n's are.
    """
    states: Tensor = output[0] if isinstance(output, tuple | list) else output
    if states.ndim > 3:
        raise ArchitectureError(
            f"the model's decoder layers hand on {len(states)} states a token, so that how far an edit moves its one"
            " residual stream cannot be measured; learn with learn_keyed, or with learn and a config with selections."
        )
    return states


@contextmanager
def read_at(head: nn.Module, mask: Bool[Tensor, "batch token"]) -> Iterator[None]:
    """Lets an output head see, and so compute logits for, the positions of a mask only, one after another in one row.

    Somebody's hooks on what is behind may count on three dimensions.

    Raises:
        ArchitectureError: In the block, if the head reads anything but a state for each token.
    """

    def read(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states = args[0]
        if states.shape[:-1] != mask.shape:
            raise ArchitectureError(
                f"the model's output head reads states of shape {[*states.shape]}, which are not one for each of"
                f" {[*mask.shape]} tokens; give a model that predicts one next token from each."
            )
        # Contiguous: a strided slice would become a batched product over copies of the head.
        return states[mask.to(states.device)][None], *args[1:]

    with head.register_forward_pre_hook(read):
        yield


@contextmanager
def contiguous_head(model: Any) -> Iterator[None]:
    """Hands the output head the last positions as one matrix.

    What a model slices out of its hidden states is strided, and the product of that becomes a batched one, over as
    many copies of the head as there are rows: gigabytes, and most of the time of an answer in bfloat16.
    """
    head = model.get_output_embeddings()
    with head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:])):
        yield


@contextmanager
def passed_over(layers: nn.ModuleList, first: int) -> Iterator[None]:
    """Lets the decoder layers from `first` on hand through what they get, for who reads only what is below."""
    with form_of(layers[first - 1]) as in_tuple:
        with stood_in({layer: passing(lambda hidden: hidden, in_tuple) for layer in layers[first:]}):
            yield
