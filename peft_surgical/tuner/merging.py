"""The half of a surgical layer that folds its scales into the base weight and takes them out again, exactly."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor

from .coordinates import Coordinates
from .fold import Folded, Rounding


class Merging(BaseTunerLayer):
    """Merges several adapters as one product, rounded once; unmerges from a copy of the slices that were touched."""

    coordinates: dict[str, Coordinates]
    merged_adapters: list[str]
    _folded: Folded | None

    @abstractmethod
    def scale(self, adapter_name: str) -> Float[Tensor, " selected"]:
        """One adapter's factors, see [`SurgicalIA3Layer`]."""

    @abstractmethod
    def product(self, adapter_names: list[str]) -> tuple[Coordinates, Float[Tensor, " selected"]] | None:
        """Multiplies adapters, see [`SurgicalIA3Layer`]."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Folds adapters into the base weight, in float32 and rounded once, also when others were folded in before.

        Args:
            safe_merge: Refuse a result that is not finite, before anything is written.
            adapter_names: Which adapters; the active ones by default.

        Raises:
            AdapterError: If the base weight is quantized or otherwise cannot be rewritten in place, or `safe_merge`
                finds a value that is not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.coordinates]
        if not names:
            return
        before = list(self.merged_adapters)
        try:
            self._restore()
            self._fold_in(before + names, safe=safe_merge)
        except BaseException:
            # However far that came: an interrupt may have left notes of what is merged that do not fit the weights.
            self._restore()
            self.merge_only(before)
            raise

    def merge_only(self, adapter_names: list[str]) -> None:
        """Leaves these adapters of the layer folded into the base weight and no others."""
        # An interrupt may have come before what was written to the weights was noted.
        unnoted = self._folded is not None and not self.merged_adapters
        if unnoted or self.merged_adapters != adapter_names:
            self._restore()
            if adapter_names:
                self._fold_in(adapter_names)

    def _fold_in(self, names: list[str], *, safe: bool = False) -> None:
        found = self.product(names)
        assert found is not None  # for the type checker: the names are those of adapters on this layer
        coordinates, scale = found
        # Of several that are finite the last one is blamed for what they come to.
        wrong = [name for name in names if safe and not scale.is_meta and not self.scale(name).isfinite().all()]
        safe_for = [*wrong, names[-1]][0] if safe else None
        # The way back is kept before the weights are written to.
        self._folded, values = Folded.of(self.get_base_layer(), coordinates, scale.detach(), safe_for=safe_for)
        self._folded.write(self.get_base_layer(), values)
        self.merged_adapters = names

    def unmerge(self) -> None:
        """Puts back the very weights that were there before the merge."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self._restore()

    def _restore(self) -> None:
        if self._folded is not None:
            self._folded.restore(self.get_base_layer())
        self.merged_adapters = []
        self._folded = None

    @property
    def rounding(self) -> Rounding:
        """What the rounding of the merged weights kept; nothing touched if nothing is merged."""
        return Rounding() if self._folded is None else self._folded.rounding


def warn_of_rounding(layers: Iterable[Merging], stacklevel: int) -> None:
    """Warns if a part of what is merged into layers is lost to rounding, as [`Rounding.warn`] does.

    Args:
        layers: Which.
        stacklevel: Whose line the warning names, as `warnings.warn` counts them from the function that calls this.
    """
    merged = [layer for layer in layers if layer.merged]
    if merged:
        dtype: Any = merged[0].get_base_layer().weight.dtype
        Rounding.total(layer.rounding for layer in merged).warn(dtype, stacklevel + 2)
