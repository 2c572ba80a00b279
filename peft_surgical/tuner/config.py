"""The configuration of a surgical (IA)^3 adapter: which coordinates of which modules get a scale.

[(IA)^3](https://arxiv.org/abs/2205.05638) scales whole projections. A surgical adapter scales only the selected
coordinates, given by full module name, side and index ranges:

    >>> config = SurgicalIA3Config(
    ...     selections={"model.layers.3.mlp.down_proj": {"side": "input", "ranges": [[0, 64]]}},
    ...     task_type="CAUSAL_LM",
    ... )
    >>> model = get_peft_model(model, config)

or taken from a localization, `SurgicalIA3Config.from_localization(localization, top=10)`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from peft.config import PeftConfig

from ..counts import check_counts, whole
from ..errors import ArchitectureError, SelectionError, brief
from ..layouts import check_widths
from ..ranges import checked_neurons
from ..selection import Selection, listed, with_each_kind
from ..sites import DEFAULT_PROJECTIONS, WIDEST, Component, ModelShape
from .coordinates import Coordinates
from .resolve import Granularity, check_granularity, resolve
from .targets import check_width

if TYPE_CHECKING:
    from ..localizing.results import Localization


class SurgicalPeftType(str, Enum):
    """The method's name, beside PEFT's own `PeftType`, which an outside package cannot extend."""

    SURGICAL_IA3 = "SURGICAL_IA3"


@dataclass
class SurgicalIA3Config(PeftConfig):
    """Configuration of a [`SurgicalIA3Model`]: (IA)^3 (arXiv 2205.05638) on selected coordinates only.

    Give either `selections` or `components`; the rest is derived or filled in when the adapter is put on a model.

    Args:
        selections: Full module name -> `{"side": "input" | "output", "ranges": [[start, stop], ...]}`. Names are
            matched as a whole, never by their ending. `side` says whether the module's input or its output (bias
            included) is scaled.
        components: Names such as `L3.mlp` or `L20.head.3`, resolved to `selections` with the model's own
            configuration.
        granularity: How `components` become coordinates: `component` (a head's or an MLP's own), `module` (whole
            projections, as in the paper) or `neuron` (the given neurons of each MLP).
        projections: Where heads and MLPs are scaled; `z` and `post` by default. Of heads `z` (what the output
            projection reads of a head), `v`, `q` or `k`; of MLPs `post` (neurons behind the activation function),
            `pre` (before it), `pre_linear` (the other factor of a gated MLP) or `in` (what the up projection reads:
            coordinates of the residual stream, no neurons). Not used by the granularity `module`.
        neurons: MLP component name -> ranges of its neurons, for the granularity `neuron`.
        modules_to_save: Modules that are trained and saved whole beside the scales, as in every PEFT method.
        init_weights: Whether all scales start at exactly 1. False starts them at random, which is of use in tests
            only; stages start at 1.
        features: Module name -> the width of the scaled side. Filled in by the model; refuses a model of another
            shape.
        fan_in_fan_out: Whether a selected module stores its weight as (in, out). Filled in by the model.
        target_modules: The keys of `selections`. Derived.
        feedforward_modules: Those whose input is scaled. Derived.

    Raises:
        SelectionError: If there are neither selections nor components, a selection is malformed, neurons are or are of
            no MLP of `components`, or a derived field contradicts a selection.
    """

    selections: dict[str, Any] | None = field(
        default=None, metadata={"help": "Full module name -> {side: input|output, ranges: [[start, stop], ...]}."}
    )
    components: list[str] | None = field(
        default=None, metadata={"help": "Components such as L3.mlp or L20.head.3, resolved with the model's config."}
    )
    granularity: Granularity = field(
        default="component", metadata={"help": "How components become coordinates: component, module or neuron."}
    )
    projections: list[str] = field(
        default_factory=lambda: list(DEFAULT_PROJECTIONS),
        metadata={"help": "Where heads (z, v, q, k) and MLPs (post, pre, pre_linear, in) are scaled."},
    )
    neurons: dict[str, Any] | None = field(
        default=None, metadata={"help": "MLP component -> [[start, stop], ...] of its neurons."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained and saved whole beside the scales."}
    )
    init_weights: bool = field(
        default=True, metadata={"help": "Whether scales start at exactly 1; random otherwise, for tests."}
    )
    features: dict[str, int] | None = field(
        default=None, metadata={"help": "Module name -> width of the scaled side; filled in by the model."}
    )
    fan_in_fan_out: bool = field(
        default=False, metadata={"help": "Whether a module stores its weight as (in, out); filled in by the model."}
    )
    target_modules: list[str] | None = field(default=None, metadata={"help": "Derived from selections."})
    feedforward_modules: list[str] | None = field(default=None, metadata={"help": "Derived from selections."})

    def __post_init__(self) -> None:
        """Validates, and derives what depends on the selections."""
        super().__post_init__()
        self.peft_type = SurgicalPeftType.SURGICAL_IA3
        # The selections that components were resolved to; not a field, since a file need not tell.
        self._of_components: dict[str, Any] | None = None
        check_granularity(self.granularity, None)
        if self.selections is None and not self.components:
            raise SelectionError(
                "a surgical adapter needs selections (module, side, ranges) or components; got neither."
            )
        self._check_kinds()
        if self.components is not None:
            self.components = list(self.components)
        self.projections = list(self.projections)
        if self.selections is not None:
            self._derive()
            return
        for name in ("target_modules", "feedforward_modules"):
            # Full names are what `dataclasses.replace` copies of a configuration that was resolved.
            if short := [module for module in getattr(self, name) or () if "." not in module]:
                raise SelectionError(
                    f"{name} follows from components and must be left out, or None; got {brief(sorted(short))}."
                )

    def _check_kinds(self) -> None:
        """A configuration may come from a file, and a file from anybody."""
        for name in ("components", "projections", "modules_to_save", "target_modules", "feedforward_modules"):
            names = getattr(self, name)
            listed = isinstance(names, (list, tuple, set)) and all(isinstance(item, str) for item in names)
            if not (listed or (names is None and name != "projections")):
                raise SelectionError(f"{name} must be a list of names, got {brief(names)}.")
        if self.neurons is not None:
            neurons = checked_neurons(self.neurons, self.components or ())
            self.neurons = {name: [list(pair) for pair in ranges] for name, ranges in neurons.items()}
        widths = {} if self.features is None else self.features
        if not isinstance(widths, dict) or not all(type(w) is int and 0 < w <= WIDEST for w in widths.values()):
            raise SelectionError(f"features must map module names to widths, got {brief(self.features)}.")

    def _derive(self) -> None:
        if not isinstance(self.selections, dict) or not self.selections:
            raise SelectionError(
                f"selections must map at least one module name to its ranges, got {brief(self.selections)}."
            )
        coordinates = self.coordinates
        self.selections = {module: c.to_spec() for module, c in coordinates.items()}
        targets = list(coordinates)
        inputs = [module for module, c in coordinates.items() if c.side == "input"]
        for name, derived in (("target_modules", targets), ("feedforward_modules", inputs)):
            given = getattr(self, name)
            if given is not None and set(given) != set(derived):
                raise SelectionError(
                    f"{name} follows from selections and must be left out, or None; got {brief(sorted(given))}."
                )
            setattr(self, name, derived)
        for module, width in (self.features or {}).items():
            if module in coordinates:
                check_width(module, coordinates[module], width)

    @property
    def coordinates(self) -> dict[str, Coordinates]:
        """The selections as objects, by module name; empty while only components are known."""
        return {module: Coordinates.from_spec(module, spec) for module, spec in (self.selections or {}).items()}

    def resolve(self, model_config: Any) -> None:
        """Turns `components` into `selections` with the model's configuration, unless they are known, and derives anew
        what follows from them, since both may have been changed by hand.

        Args:
            model_config: The configuration of a transformers model, as an object or a dict.

        Raises:
            ArchitectureError: If the model's type is not known.
            SelectionError: If the model does not have a component.
        """
        looked_up = self.selections is None
        if looked_up:
            self.selections = self._resolved(model_config)
        self.target_modules = self.feedforward_modules = None
        self._derive()
        if looked_up:
            self._of_components = self.selections

    def check_made_for(self, model_config: Any, widths: Mapping[str, int]) -> None:
        """Refuses a model in which `components` are other coordinates than those that they were resolved to, or whose
        modules are laid out otherwise than its sizes say.

        Selections that were given, read from a file or changed by hand are taken as they are.

        Args:
            model_config: The model's configuration, as an object or a dict. A model type that is not known is not
                checked.
            widths: How wide the selected side of each module is in the model.

        Raises:
            SelectionError: If they are other coordinates there.
            ArchitectureError: If a module is not as wide as the model's sizes make it.

        Warns:
            UserWarning: If selections that are taken as they are contradict `components`. `dataclasses.replace` makes
                such a configuration when it changes what is selected and copies the selections.
        """
        if not self.components:
            return
        looked_up = self._of_components is not None and self._of_components == self.selections
        try:
            here = self._resolved(model_config)
        except ArchitectureError:
            return
        except SelectionError:
            if looked_up:
                raise
            return
        if here == self.selections:
            sides = {module: c.side for module, c in self.coordinates.items()}
            check_widths(
                ModelShape.from_config(model_config),
                map(Component.parse, self.components),
                lambda module, side: widths[module] if sides.get(module) == side else None,
            )
            return
        if looked_up:
            raise SelectionError(
                f"the configuration was resolved for another model, in which {brief(', '.join(self.components))} are"
                " other coordinates than in this one; make a new configuration for this model."
            )
        warnings.warn(
            f"the selections are used, and they are not what {brief(', '.join(self.components))} are in this model;"
            " set selections to None to have the components looked up.",
            stacklevel=2,
        )

    def _resolved(self, model_config: Any) -> dict[str, Any]:
        shape = ModelShape.from_config(model_config)
        resolved = resolve(
            self.components or [], shape, self.granularity, projections=self.projections, neurons=self.neurons
        )
        return {module: c.to_spec() for module, c in resolved.items()}

    @classmethod
    def from_localization(
        cls,
        localization: Localization | Selection,
        top: int | None = None,
        granularity: Granularity = "component",
        *,
        neurons: int | None = None,
        projections: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> SurgicalIA3Config:
        """Makes the configuration for the best components of a localization.

        Args:
            localization: A `Localization`, or a `Selection` taken from one or made by hand.
            top: How many components, best first; 10 of a `Localization`, all of a `Selection` by default.
            granularity: `component`, `module` or `neuron`, see the class.
            neurons: How many of each MLP's neurons are scaled, best first; the granularity `neuron` needs it.
            projections: Where heads and MLPs are scaled, see the class; `z` and `post` by default. One alone may be
                text.
            **kwargs: Other fields, such as `task_type` or `modules_to_save`.

        Returns:
            A configuration whose selections are resolved if the shape of the model is known, and at the latest when
            the adapter is put on a model otherwise.

        Raises:
            SelectionError: If it is neither a localization nor a selection, `top` is no positive whole number,
                `projections` are no names or none for a component, the localization has no neuron scores that the
                granularity `neuron` needs, neurons are chosen for the granularity `module`, or two components need
                different sides of one module.
        """
        if not hasattr(localization, "top") and not hasattr(localization, "components"):
            raise SelectionError(
                "a configuration is made from a Localization or a Selection (Selection.from_components(...)), not"
                f" {brief(localization)}."
            )
        if top is not None:
            top = whole(top) or top
            check_counts(1, SelectionError, top=top)
        projections = list(listed(DEFAULT_PROJECTIONS if projections is None else projections))
        # A selection is told from a localization by being the result of `top`.
        if hasattr(localization, "top"):
            # Whole modules are scaled wherever they are read.
            scaled = DEFAULT_PROJECTIONS if granularity == "module" else projections
            counted = with_each_kind(scaled, DEFAULT_PROJECTIONS)
            selection = localization.top(10 if top is None else top, neurons=neurons, projections=counted)
        else:
            selection = localization
        components = [str(component) for component in selection.components][:top]
        if any(Component.parse(name).kind == "mlp" for name in components):
            if granularity == "neuron" and neurons is None and not selection.neurons:
                raise SelectionError("the granularity 'neuron' needs neurons, how many of each MLP are scaled.")
            if neurons is not None and selection is localization:
                raise SelectionError(
                    "a selection has no neuron scores to choose neurons by; take top(..., neurons=...)."
                )
        ranges = {name: pairs for name, pairs in (selection.neurons or {}).items() if name in components}
        check_granularity(granularity, ranges or neurons)
        config = {
            "components": components,
            "granularity": granularity,
            "projections": projections,
            "neurons": ranges or None,
            **kwargs,
        }
        if selection.shape is not None:
            resolved = resolve(components, selection.shape, granularity, projections=projections, neurons=ranges)
            config["selections"] = {module: c.to_spec() for module, c in resolved.items()}
        made = cls(**config)
        made._of_components = made.selections
        return made
