"""A model as it was found: what one scorer does to the model that all of them share reaches no other.

Scorers put hooks on it, turn TransformerLens's switches, have it fold its weights (`enable_compatibility_mode`) or
cast it (`float`). All of that is in the attributes of its modules and configurations, in the containers that stand
there, and in which memory its parameters are of; those are kept by reference and put back. What is written into that
memory stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_utils import local_torch_dtype

from ..running.precision import without_autocast
from ..running.products import rounding_as_found

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


# Where torch keeps the hooks of a tensor: None, or a dictionary of them.
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


class _Weight(NamedTuple):
    """A parameter, where it stood, and what of it is no attribute in Python."""

    beside: dict[str, nn.Parameter | None]
    name: str
    parameter: nn.Parameter
    data: Tensor
    requires_grad: bool
    hooks: tuple[tuple[str, dict[Any, Any] | None, dict[Any, Any]], ...]

    @classmethod
    def of(cls, beside: dict[str, nn.Parameter | None], name: str, parameter: nn.Parameter) -> _Weight:
        held = [(kind, getattr(parameter, kind)) for kind in _TENSOR_HOOKS]
        hooks = tuple((kind, hooks, {**(hooks or {})}) for kind, hooks in held)
        return cls(beside, name, parameter, parameter.data, parameter.requires_grad, hooks)

    def put_back(self) -> None:
        self.parameter.data = self.data
        # A parameter that was made under inference mode takes no setting outside of it, be it the one that it has.
        if self.parameter.requires_grad != self.requires_grad:
            self.parameter.requires_grad_(self.requires_grad)
        for kind, held, before in self.hooks:
            if held is not None:
                held.clear()
                held.update(before)
            if getattr(self.parameter, kind) is not held:
                setattr(self.parameter, kind, held)

    def stands(self) -> bool:
        there = self.beside.get(self.name)
        return there is self.parameter and there.dtype == self.data.dtype and there.data_ptr() == self.data.data_ptr()


@dataclass(frozen=True, eq=False)
class Found:
    """The state of a model, but for its gradients and what its tensors hold.

    Attributes:
        hooks: For each of the collections of hooks, torch's and TransformerLens's own, and of modules, what is in it.
        bare: Those in which there is nothing, as in most by far, and where there are no buffers: all of this is looked
            through in every pass.
        configs: What `hooks` says, of the attributes of each configuration, and of the containers in these.
        modules: The same of the attributes of each module.
        buffers: The same of its buffers, where it has any.
        others: The same of all other containers that are attributes of modules.
        weights: The parameters.
    """

    hooks: tuple[tuple[Any, Any], ...]
    bare: tuple[Any, ...]
    configs: tuple[tuple[Any, Any], ...]
    modules: tuple[tuple[dict[str, Any], dict[str, Any]], ...]
    buffers: tuple[tuple[Any, Any], ...]
    others: tuple[tuple[Any, Any], ...]
    weights: tuple[_Weight, ...]

    @classmethod
    def of(cls, bridge: TransformerBridge) -> Found:
        """That of now."""
        modules = [vars(module) for module in {*bridge.modules(), *bridge.original_model.modules()}]
        hooks: list[tuple[Any, Any]] = []
        bare: list[Any] = []
        buffers: list[tuple[Any, Any]] = []
        others: list[tuple[Any, Any]] = []
        settings: dict[int, dict[str, Any]] = {}
        weights: list[_Weight] = []
        for attributes in modules:
            for name, value in attributes.items():
                if isinstance(value, (dict, list, set)):
                    kind = hooks if "_hooks" in name or name == "_modules" else others
                    kind = buffers if name == "_buffers" else kind
                    if value or kind is others:
                        kind.append((value, value.copy()))
                    else:
                        bare.append(value)
                elif name.endswith(("config", "cfg")) and hasattr(value, "__dict__"):
                    settings[id(value)] = vars(value)
            beside = attributes["_parameters"]
            for name, parameter in beside.items():
                if parameter is not None:
                    weights.append(_Weight.of(beside, name, parameter))
        within = [value for held in settings.values() for value in held.values() if isinstance(value, (dict, list))]
        return cls(
            tuple(hooks),
            tuple(bare),
            tuple((held, held.copy()) for held in (*settings.values(), *within)),
            tuple((held, held.copy()) for held in modules),
            tuple(buffers),
            tuple(others),
            tuple(weights),
        )

    def stands(self) -> bool:
        """Whether nothing has come on the model that changes what it computes: other hooks wherever there were places
        for any, settings, modules, what these do when called, buffers or weights."""
        same = all(held == before for held, before in (*self.hooks, *self.configs))
        same = same and all(held.get("forward") is before.get("forward") for held, before in self.modules)
        same = same and all(_are_same(held, before) for held, before in self.buffers)
        return same and not any(self.bare) and all(weight.stands() for weight in self.weights)

    def put_back(self) -> None:
        """Leaves the model in this state."""
        for held in self.bare:
            held.clear()
        # Attributes of modules last: they say which containers stand there.
        for held, before in (*self.hooks, *self.configs, *self.buffers, *self.others, *self.modules):
            if isinstance(held, list):
                held[:] = before
            else:
                held.clear()
                held.update(before)
        for weight in self.weights:
            weight.put_back()

    def parameters(self) -> list[nn.Parameter]:
        """The parameters, tied ones more than once."""
        return [weight.parameter for weight in self.weights]


def _are_same(held: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether the same objects stand under the same names; tensors that are equal are others."""
    return held.keys() == before.keys() and all(held[name] is value for name, value in before.items())


@contextmanager
def left_as_found(bridge: TransformerBridge, found: Found) -> Iterator[None]:
    """Put the model back behind the code within: its hooks, permanent ones and those of weights too, TransformerLens's
    switches, its configurations, mode, dtype and weights, and its parameters' `grad` and `requires_grad`; restore the
    gradient mode, the default dtype, the precision of products and the working folder.

    The code within begins with no gradients on the parameters, and without the autocast or the inference mode of a
    scorer that asks for another one's scores. What it writes into a parameter's memory stays.

    Args:
        bridge: The model.
        found: The state that the code within finds: not what whoever asks has made of the model, which comes back
            behind it.
    """
    before = Found.of(bridge)
    gradients = [(parameter, parameter.grad) for parameter in before.parameters()]
    for parameter in found.parameters():
        parameter.grad = None
    found.put_back()
    with ExitStack() as stack:
        stack.enter_context(local_torch_dtype(torch.get_default_dtype()))
        # This one turns gradients on, too.
        enabled = torch.is_grad_enabled()
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(enabled))
        stack.enter_context(without_autocast(bridge))
        stack.enter_context(rounding_as_found())
        stack.enter_context(_in_its_folder())
        try:
            yield
        finally:
            before.put_back()
            for parameter, gradient in gradients:
                parameter.grad = gradient


@contextmanager
def _in_its_folder() -> Iterator[None]:
    """Comes back to the working folder, at which a caller's relative paths begin."""
    try:
        before = os.getcwd()
    except OSError:  # it was deleted, so that nothing begins there
        yield
        return
    try:
        yield
    finally:
        # It may be deleted by now, and what fails for it says so.
        with suppress(OSError):
            os.chdir(before)
