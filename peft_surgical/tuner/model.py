"""The PEFT tuner: puts surgical (IA)^3 scales on a model and takes them off again.

Used through PEFT, never directly:

    >>> model = get_peft_model(base_model, SurgicalIA3Config(selections={...}))

Where it differs from PEFT's own (IA)^3: modules are matched by their full name; every selection is checked before the
model is touched; `disable_adapter()` and the upcast of half-precision models leave a frozen adapter frozen; a merge of
several adapters is rounded once, and undone exactly; `add_weighted_adapter` multiplies.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peft.functional import set_adapter
from peft.tuners.tuners_utils import BaseTuner, onload_layer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from ..errors import AdapterError, SelectionError, brief
from ..wrapped import check_unwrapped, is_spread
from .batches import check_rows, rows_of
from .config import SurgicalIA3Config
from .coordinates import Coordinates
from .layer import Linear, SurgicalIA3Layer, layers_by_name, own_names, surgical_in
from .mergeable import check_alone, check_loaded, check_mergeable
from .merging import warn_of_rounding
from .names import check_known, check_once, check_usable, names_of
from .offloading import execution_device
from .placing import make_place
from .replacing import all_off, switch_off, take_off
from .targets import unwrapped
from .unchanged import notes_kept_on_failure, trainable_kept, unchanged_on_failure
from .unloading import take_out
from .whole import check_one_whole, let_act, let_whole_act, whole_modules

if TYPE_CHECKING:
    from ..adapters.edits import Edit


class SurgicalIA3Model(BaseTuner):
    """Holds a model whose selected linear modules are wrapped in [`SurgicalIA3Layer`]s.

    Args:
        model: The model to adapt, of any kind that has Linear or Conv1D modules; changed in place.
        config: A [`SurgicalIA3Config`].
        adapter_name: The adapter's name.
        low_cpu_mem_usage: Create the parameters on the meta device, for weights that are loaded next.
    """

    prefix = "surgical_ia3_"
    tuner_layer_cls = SurgicalIA3Layer

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        with notes_kept_on_failure(model):
            super().__init__(model, *args, **kwargs)

    def _prepare_adapter_config(self, peft_config: SurgicalIA3Config, model_config: dict) -> SurgicalIA3Config:
        peft_config.resolve(model_config)
        return peft_config

    def _prepare_model(self, peft_config: SurgicalIA3Config, model: nn.Module) -> None:
        make_place(peft_config, model, self.get_model_config(model))

    @staticmethod
    def _check_target_module_exists(peft_config: SurgicalIA3Config, key: str) -> bool:
        return key in (peft_config.selections or {})

    def _create_and_replace(
        self,
        peft_config: SurgicalIA3Config,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        # PEFT asks for each module, and `coordinates` reads the selections of all.
        spec = (peft_config.selections or {}).get(current_key)
        if spec is None:
            raise SelectionError(
                f"the weights hold scales for {current_key}, which the configuration does not select."
            )
        coordinates = Coordinates.from_spec(current_key, spec)
        if (held := surgical_in(target)) is not None:
            held.update_layer(adapter_name, coordinates, peft_config.inference_mode, peft_config.init_weights)
            return
        layer = Linear(target, adapter_name, coordinates, peft_config.inference_mode, peft_config.init_weights)
        if execution_device(unwrapped(target)) is None:
            self._replace_module(parent, target_name, layer, target)
        else:
            # PEFT would send the scales to where an offloaded weight is between passes: the meta device.
            setattr(parent, target_name, layer)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, AuxiliaryTrainingWrapper):
            # PEFT would hand on its weight, which a module with submodules does not have.
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Puts an adapter of `peft_config` on the model, as PEFT's `BaseTuner.inject_adapter` does.

        It takes the place of one of the same name. Where adapters are switched off, it begins so, too. If that fails,
        the model is as it was.

        Raises:
            AdapterError: If it has a name that torch or PEFT would take for something else, see [`check_usable`].
            ModelError: If the model is wrapped, see [`check_unwrapped`].
        """
        check_usable(adapter_name, model)
        check_unwrapped(model)
        off = all_off(model)
        with unchanged_on_failure(self):
            take_off(adapter_name, model)
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            if off:
                switch_off(adapter_name, model)
        # PEFT shortens long lists of targets to common endings, and the saved file would say so.
        config = self.peft_config[adapter_name]
        config.target_modules = list(config.selections)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        # Scales are created in float32 whatever the base's dtype; PEFT's own upcast would make new parameters, all
        # trainable.
        for layer in self.surgical_layers():
            layer._move_adapter_to_device_of_base_layer(adapter_name)

    def surgical_layers(self) -> list[SurgicalIA3Layer]:
        """Returns the wrapped modules, in the model's order."""
        return [*layers_by_name(self.model).values()]

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        # PEFT's own wrappers of whole modules would train all that acts once they are switched on.
        with trainable_kept(p for wrapper, _ in whole_modules(self.model) for p in wrapper.parameters()):
            super()._enable_adapter_layers(enabled)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Chooses the active adapters and makes exactly them trainable, unless `inference_mode`; see [`activate`].

        Args:
            adapter_name: One adapter, or several, which multiply in this order, or none.
            inference_mode: Freeze them.

        Raises:
            AdapterError: If one is not known, or named twice.
        """
        names = names_of(adapter_name)
        check_known(names, self.peft_config)
        check_once(names)
        if names:
            # Layers keep the list that they are given, which is not to be the caller's.
            chosen = adapter_name if isinstance(adapter_name, str) else names
            super().set_adapter(chosen, inference_mode=inference_mode)
            for wrapper, held in whole_modules(self.model):
                # PEFT freezes what acted before, which another that was loaded to be trained need not have done.
                wrapper.set_requires_grad(held - {*names}, False)
        else:
            # Of a module that is saved whole PEFT wants to know by which adapter.
            let_act(self.model, [])
            self.active_adapter: list[str] = []

    def delete_adapter(self, adapter_name: str) -> None:
        """Deletes an adapter. Others that are active stay active, and frozen if they were.

        Args:
            adapter_name: Which one. If it is the only active one, the first of those that are left becomes active, and
                trainable if the deleted one was.

        Raises:
            ValueError: If there is no such adapter, or it is merged.
        """
        layers = [layer for layer in self.surgical_layers() if adapter_name in layer.surgical_ia3_delta]
        was_trained = any(layer.surgical_ia3_delta[adapter_name].requires_grad for layer in layers)
        left = [name for name in self.active_adapters if name != adapter_name]
        another_acts = adapter_name in self.active_adapters and not left
        trainable = {p: p.requires_grad for layer in self.surgical_layers() for p in layer.surgical_ia3_delta.values()}
        whole = whole_modules(self.model)
        trainable |= {p: p.requires_grad for wrapper, _ in whole for p in wrapper.parameters()}
        with warnings.catch_warnings():
            # Each layer would say which one it makes active instead.
            warnings.filterwarnings("ignore", ".*was active which is now deleted")
            if adapter_name in self.peft_config and not any(adapter_name in layer.merged_adapters for layer in layers):
                for wrapper, held in whole:
                    if adapter_name in held:
                        # PEFT would name all that is left to it, and it takes one, so that half would be deleted.
                        wrapper.delete_adapter(adapter_name, [])
            super().delete_adapter(adapter_name)
            # PEFT lets the first layer choose what is active, even if that layer had no other adapter.
            active = list(self.peft_config)[:1] if another_acts else left
            if another_acts and active:
                # Of modules that are saved whole alone; layers follow below, whatever is merged in them.
                set_adapter(self.model, active, inference_mode=not was_trained, layer_cls=())
            else:
                let_whole_act(self.model, active)
            for layer in layers_by_name(self.model).values():
                layer.set_adapter(active, inference_mode=not was_trained)
        self.active_adapter = active
        if another_acts and active:
            warnings.warn(
                f"Adapter {adapter_name} was active which is now deleted. Setting active adapter to {active[0]}.",
                stacklevel=3,
            )
        if not another_acts:
            for parameter, requires_grad in trainable.items():
                parameter.requires_grad_(requires_grad)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        if self.training:
            raise AdapterError("adapter_names works in eval mode only; call model.eval() first.")
        check_rows(names, self.model, args, kwargs)
        with rows_of(self, names):
            yield

    def _check_merge_allowed(self) -> None:
        """Nothing: PEFT does not say which adapters are to be merged, and `_merge` has asked about just these."""

    def _check_to_merge(self, adapter_names: list[str] | None) -> None:
        if adapter_names is not None:
            check_known(adapter_names, self.peft_config)
            check_once(adapter_names)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Folds adapters into the base weights; `unmerge_adapter` puts back the very same weights.

        Args:
            adapter_names: Which adapters; the active ones by default.
            safe_merge: Refuse a result that is not finite.

        Raises:
            AdapterError: If a name is unknown or given twice, or not in a list, a weight is quantized or otherwise
                cannot be rewritten in place, tied to another or under an adapter of another method, or `safe_merge`
                finds a value that is not finite. The weights are as they were then, as they are after any other error
                or an interrupt.
        """
        self._merge(adapter_names, safe_merge, stacklevel=3)

    def _merge(self, adapter_names: list[str] | None, safe_merge: bool, stacklevel: int) -> None:
        self._check_to_merge(adapter_names)
        check_mergeable(self.model, adapter_names)
        before = [(layer, list(layer.merged_adapters)) for layer in self.surgical_layers()]
        try:
            super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)
        except BaseException:
            for layer, names in before:
                with onload_layer(layer):
                    layer.merge_only(names)
            raise
        warn_of_rounding(self.surgical_layers(), stacklevel)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        self._check_to_merge(adapter_names)
        check_alone(layers_by_name(self.model))
        named = adapter_names if merge else None
        if named is not None:
            check_one_whole(self.model, named)
        if not merge:
            take_out(self.model)
            # PEFT leaves what acts in a module's place.
            let_whole_act(self.model, [])
        with warnings.catch_warnings():
            if merge:
                # Layer by layer, the first ones would be plain modules when a later one fails.
                self._merge(adapter_names, safe_merge, stacklevel=4)
                for said in ("All adapters are already merged", "Already following adapters were merged"):
                    warnings.filterwarnings("ignore", said)
            if named is not None:
                # PEFT leaves the one that acts in a module's place, whichever adapters it is told to merge.
                let_whole_act(self.model, named)
            model: nn.Module = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        return model

    def add_weighted_adapter(self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str) -> None:
        """Adds the weighted product of adapters, `prod(scale ** weight)`, as a new adapter.

        PEFT's own (IA)^3 adds instead, with a module that one adapter lacks counted as 0. Scales compose by
        multiplication, so here two adapters that change nothing give an adapter that changes nothing.

        Args:
            adapters: Names of adapters of this model.
            weights: One exponent per adapter; 1 is the adapter as it is, 0 nothing, -1 its inverse.
            adapter_name: Name of the new adapter.

        Raises:
            AdapterError: If a name is unknown or taken, or the new one is what torch or PEFT would take for something
                else, the lengths differ or are 0, an adapter saves whole modules, or a scale has no such power.
        """
        from ..adapters.algebra import power, product

        self._check_free(adapter_name)
        check_known(adapters, self.peft_config)
        if not isinstance(weights, Sized):
            raise AdapterError(f"the weights must be a list of one number for each adapter, not {brief(weights)}.")
        if len(adapters) != len(weights) or not adapters:
            raise AdapterError(
                f"each adapter needs one weight; got {len(adapters)} adapters and {len(weights)} weights."
            )
        if any(self.peft_config[name].modules_to_save for name in adapters):
            raise AdapterError("adapters with modules_to_save cannot be multiplied: whole modules have no product.")
        # That they fit this model is not in question, whatever each one's own configuration calls it.
        edits = [replace(self.edit(name), base_model=None, revision=None, name=repr(name)) for name in adapters]
        first = self.peft_config[adapters[0]]
        edit = product([power(edit, t) for edit, t in zip(edits, weights, strict=True)])
        edit = replace(edit, base_model=first.base_model_name_or_path or None, revision=first.revision)
        self.add_edit(edit, adapter_name)

    def _check_free(self, adapter_name: str) -> None:
        check_usable(adapter_name, self.model)
        if adapter_name in self.peft_config:
            raise AdapterError(f"there is an adapter named {adapter_name!r} already; choose another name.")

    def edit(self, adapter_name: str) -> Edit:
        """Returns a copy of one adapter's scales, on the CPU, to compute with, save or stack.

        Of scales that are sharded over processes it is the whole, which all of them have to ask for.

        Args:
            adapter_name: Which adapter.

        Raises:
            AdapterError: If the model has none of that name, or the adapter saves whole modules, or its scales are not
                loaded yet.
        """
        from ..adapters.edits import Edit, ModuleScale

        check_known([adapter_name], self.peft_config)
        check_loaded(self.surgical_layers(), [adapter_name])
        config = self.peft_config[adapter_name]
        if config.modules_to_save:
            raise AdapterError(
                f"adapter {adapter_name!r} has modules_to_save; only scales can be computed with, not modules saved"
                " whole."
            )
        called = own_names(self.model)
        modules = {
            called[name]: ModuleScale(
                layer.coordinates[adapter_name],
                _whole(layer.scale(adapter_name).detach()).cpu(),
                layer.width,
            )
            for name, layer in layers_by_name(self.model).items()
            if adapter_name in layer.coordinates
        }
        return Edit(
            modules,
            base_model=config.base_model_name_or_path or None,
            revision=config.revision,
            fan_in_fan_out=config.fan_in_fan_out,
            task_type=config.task_type,
            auto_mapping=config.auto_mapping,
        )

    def add_edit(self, edit: Edit, adapter_name: str) -> None:
        """Adds scales, loaded or computed, as a new, inactive and frozen adapter; if it fails, nothing has changed.

        Args:
            edit: Its scales.
            adapter_name: Name of the new adapter.

        Raises:
            AdapterError: If the name is taken, or one that torch or PEFT would take for something else.
            SelectionError: If the model does not have the coordinates.
        """
        self._check_free(adapter_name)
        with unchanged_on_failure(self):
            self.peft_config[adapter_name] = edit.config()
            self.inject_adapter(self.model, adapter_name)
            called = own_names(self.model)
            layers = {called[name]: layer for name, layer in layers_by_name(self.model).items()}
            for name in edit.modules:
                layers[name].surgical_ia3_delta[adapter_name].data.copy_(edit.modules[name].scale - 1)


def _whole(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor() if is_spread(tensor) else tensor
    return whole
