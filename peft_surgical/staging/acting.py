"""Scales that act on some tokens only, while they are trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..errors import ArchitectureError
from ..tuner import SurgicalIA3Layer
from ..tuner.unchanged import base_of


@contextmanager
def scaling_at(
    model: Any, layers: Sequence[SurgicalIA3Layer], adapter: str, where: Float[Tensor, "row token 1"]
) -> Iterator[None]:
    """Lets an adapter's scales, of layers that are scaled at their input, act on some tokens only.

    Args:
        model: Holds the layers.
        layers: Those of the adapter.
        adapter: Its name.
        where: 1 at the tokens to act on and 0 elsewhere, for the batch that is run meanwhile.

    Raises:
        ArchitectureError: In the run, if a layer does not see the batch's tokens as they are.
    """

    def scaled(layer: SurgicalIA3Layer) -> Any:
        def hook(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0]
            # OPT lays the tokens of all rows one after the other before its MLPs.
            if x.shape[:-1] not in (where.shape[:-1], (where.numel(),)):
                raise ArchitectureError(
                    f"scales act on some tokens of a batch of {list(where.shape[:-1])} only in modules that see all of"
                    f" them; one got {list(x.shape[:-1])}."
                )
            change = layer.dense_scale(adapter) - 1
            marks = where.to(x.device).reshape(*x.shape[:-1], 1)
            return ((x * (1 + marks * change)).to(x.dtype), *args[1:])

        return hook

    with base_of(model), ExitStack() as hooked:
        for layer in layers:
            hooked.enter_context(layer.get_base_layer().register_forward_pre_hook(scaled(layer)))
        yield
