"""One neuron of an MLP, rewritten to fire at a subject and at next to nothing else.

An MLP's neurons each read a token by their rows of its input projections and write a column of its output projection
(Geva et al., arXiv 2012.14913). A direction among the neurons, as ROME's (arXiv 2202.05262), is linear: what is a
little like the subject meets it a little. A neuron of its own has the MLP's nonlinearity. The row that is activated
shall be `OPEN` at the subject's last tokens and `-OPEN` at all that is kept, where SiLU and GELU let nothing
through; that of a gated MLP's linear projection 1 and 0. Both are least squares, over what enters the MLP:

    row  =  (C + S + ridge)⁻¹ (wanted at the subject · k  +  wanted elsewhere · m)

with `k` and `S` the mean and second moment of the subject's last tokens, `m` and `C` those of the texts to keep, and
what is wanted less the row's bias where there is one.

As a layer has no neuron to spare, one is [taken][peft_surgical.keying.taking], and nothing remains of what it was.
Transformer-Patcher (Huang et al., arXiv 2301.09785) adds neurons to the last layer and trains what they read; these
here are found in closed form, in several layers, and no weight changes its shape, so that the edit is a stock LoRA
adapter and merges.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..adapters.bases import revision_of
from ..adapters.halves import rounded
from ..architectures import architecture_of
from ..errors import ArchitectureError, ModelError, SelectionError
from ..profiling import phase
from ..running.sharing import by_main
from ..seeding import forked
from ..staging.solving import solved_with
from ..staging.stage import LEARN
from ..texts.prompts import unanswered
from ..tuner.targets import find_module, unwrapped, weight_of
from ..tuner.unchanged import embeddings_unhooked
from .keys import Marked, marked_neurons, modules_in_turn, moments, neuron_count
from .taking import is_shut, neuron_to_take

# SiLU of minus this is a fiftieth of that of this. Twice as much, and a second factor of 1 everywhere, vary less with
# the wording, but other text then moved more.
OPEN = 4.0
# What a row shall be at the subject and elsewhere: that which is activated, and a gated MLP's other.
_WANTED = ((OPEN, -OPEN), (1.0, 0.0))
# So many texts of one token are read at a time.
_AT_ONCE = 1024
_PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Neuron:
    """What a neuron is rewritten to.

    Attributes:
        index: Which.
        rows: What it reads a token by, float32: that which is activated, and in a gated MLP the other.
    """

    index: int
    rows: tuple[Float[Tensor, " hidden"], ...]


def reading_rows(model: Any, module: str, index: int = 0) -> tuple[tuple[str, int], ...]:
    """The modules and their rows by which a neuron reads: that which is activated, and in a gated MLP the other.

    Args:
        model: A model of a known architecture.
        module: An MLP's output projection, from [`~peft_surgical.architectures.output_projections`].
        index: The neuron.
    """
    architecture = architecture_of(model.config.model_type)
    mlp = module.removesuffix(architecture.mlp_out)
    if architecture.gate_up is not None:
        fused = mlp + architecture.gate_up
        return (fused, index), (fused, index + neuron_count(model.get_submodule(module)))
    names = (architecture.gate, architecture.up) if architecture.gated else (architecture.up,)
    return tuple((f"{mlp}{name}", index) for name in names)


@phase("keys")
@torch.no_grad()
def find_neurons(
    model: Any,
    modules: Mapping[str, int],
    names: Sequence[Marked],
    kept: Sequence[Marked],
    ridge: float,
    besides: Sequence[Marked] = (),
) -> dict[str, Neuron]:
    """For each module the neuron to take and what it shall read, see above.

    Args:
        model: A causal language model; adapters on it act.
        modules: From [`~peft_surgical.architectures.output_projections`].
        names: For each name of the subject texts that have it, its last tokens marked; they count alike.
        kept: Kinds of texts to keep, each of which counts as much as the subject does.
        ridge: Added to the diagonal, as a multiple of the mean of that of `C`.
        besides: More kinds to keep, of which the ridge is not measured, as at a text's first token.

    Raises:
        SelectionError: If what enters an MLP at the subject is too much like what enters it elsewhere.
        ModelError: If it is not finite, or the equations of a neuron have no solution.
    """
    inputs = {reading_rows(model, module)[0][0]: module for module in modules}
    found: dict[str, Neuron] = {}
    for chosen in modules_in_turn(model, {name: modules[module] for name, module in inputs.items()}):
        watched = {inputs[name]: layer for name, layer in chosen.items()}
        squares: dict[str, Tensor] = {}
        away, more = (moments(model, chosen, kinds, watched, squares) for kinds in (kept, besides))
        own = moments(model, chosen, names)
        alone = _alone(kept)
        for met in marked_neurons(model, watched, alone, _AT_ONCE):
            for name, each in met.items():
                squares[name] = squares[name] + each.square().sum(0) / len(alone.rows)
        for name, (moment, mean) in away.items():
            module = inputs[name]
            second, key = (total.to(mean.device) / len(names) for total in own.pop(name))
            if not key.isfinite().all():
                raise ModelError(f"what {module} gets at the subject is not finite; the model's weights are damaged.")
            further, mean_further = (total.to(mean.device) for total in more.pop(name))
            total = moment + further + second
            if not total.isfinite().all():
                raise ModelError(f"what {module} gets at other text is not finite; the model's weights are damaged.")
            total.diagonal().add_(ridge * moment.diagonal().mean())
            with solved_with("ridge", ridge):
                at, elsewhere = torch.linalg.solve(total, torch.stack([key, mean + mean_further], dim=1)).T
            lengths = weight_of(model.get_submodule(module)).float().square().sum(0).to(squares[module])
            # Of two that write alike, sums that are rounded otherwise may choose either.
            shut = is_shut(*_activated(model, module), mean / len(kept), -OPEN)
            index = by_main(partial(neuron_to_take, squares[module], lengths, shut))
            rows = []
            for (here, there), (reading, row) in zip(_WANTED, reading_rows(model, module, index), strict=False):
                bias = _bias(model.get_submodule(reading), row)
                rows.append(((here - bias) * at + (there - bias) * elsewhere).float())
                if not rows[-1].double() @ key + bias > 0:
                    raise SelectionError(f"what {module} gets at the subject is too much like what it gets elsewhere.")
            found[module] = Neuron(index, tuple(rows))
    return found


def place_neurons(model: Any, modules: Mapping[str, int]) -> PeftModel:
    """Puts updates that change nothing on all that rewrites a neuron, as a LoRA adapter named `learn`.

    Args:
        model: A bare model.
        modules: From [`~peft_surgical.architectures.output_projections`].

    Raises:
        SelectionError: If the model has no such module.
        ModelError: If its weights are quantized or offloaded.
        ArchitectureError: If PEFT takes its MLPs for experts.
    """
    ranks = dict.fromkeys(modules, 1)
    for module in modules:
        reading = [name for name, _ in reading_rows(model, module)]
        for name in (module, *reading):
            weight = find_module(model, name).weight
            # Of a module of packed weights it is a method.
            if not isinstance(weight, Tensor) or weight.dtype not in _PLAIN or weight.device.type == "meta":
                raise ModelError(f"{name} has no weights at hand to be rewritten: they are quantized or offloaded.")
        for name in reading:
            ranks[name] = ranks.get(name, 0) + 1
    more = {name: rank for name, rank in ranks.items() if rank > 1}
    config = LoraConfig(
        r=1,
        lora_alpha=1,
        target_modules=list(ranks),
        # As large as its rank, for a factor of 1.
        rank_pattern=more,
        alpha_pattern=more,
        fan_in_fan_out=isinstance(model.get_submodule(next(iter(ranks))), Conv1D),
        task_type="CAUSAL_LM",
        revision=revision_of(model),
    )
    _check_kept(model, config)
    # Numbers that are overwritten must not move anybody's generator.
    with forked(model.device), torch.device("cpu"), embeddings_unhooked(model):
        return get_peft_model(model, config, adapter_name=LEARN).eval()


def _check_kept(model: Any, config: LoraConfig) -> None:
    """Refuses modules that PEFT puts others in the place of: of a mixture of experts it takes even a dense layer's
    MLP for experts, as an older transformers named them, here and wherever the adapter is loaded."""
    converted = copy.deepcopy(config)
    try:
        convert_peft_config_for_transformers(converted, model, None)
    except ValueError:  # of some parts of what it takes for experts, without the others
        converted.target_modules = set()
    if lost := sorted(set(config.target_modules) - set(converted.target_modules)):
        raise ArchitectureError(
            f"PEFT takes {lost[0]} of a {model.config.model_type} model for a part of experts, so that its neurons"
            " cannot be rewritten; learn with learn_by_subject, or with unlearn and learn, which scale them."
        )


@torch.no_grad()
def set_neurons(model: Any, neurons: Mapping[str, Neuron]) -> dict[str, nn.Parameter]:
    """Rewrites neurons, and returns what they write by module, `[model, 1]` each: all that trains.

    What they wrote before is taken away, so that at first they write nothing.

    Args:
        model: A model with the adapter of [`place_neurons`], and not the copy that training may run on: they share
            what is set, which must be of the weights as they are.
        neurons: From [`find_neurons`].
    """
    values = {}
    for module, neuron in neurons.items():
        used: dict[str, int] = {}
        for (name, row), wanted in zip(reading_rows(model, module, neuron.index), neuron.rows, strict=True):
            layer = model.get_submodule(name)
            slot = used[name] = used.get(name, -1) + 1
            reading, writing = layer.lora_A[LEARN].weight, layer.lora_B[LEARN].weight
            reading[slot] = rounded(wanted.to(reading) - weight_of(layer)[row].to(reading))
            writing[row, slot] = 1
        layer = model.get_submodule(module)
        reading, value = layer.lora_A[LEARN].weight, layer.lora_B[LEARN].weight
        reading.zero_()
        reading[0, neuron.index] = 1
        value.copy_(rounded(-weight_of(layer)[:, neuron.index, None].to(value)))
        values[module] = value
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(False)
    return {module: value.requires_grad_(True) for module, value in values.items()}


@torch.no_grad()
def settle(values: Mapping[str, nn.Parameter]) -> None:
    """Rounds values to half precision, so that what is measured is what is saved."""
    for value in values.values():
        value.copy_(rounded(value))


def _alone(kinds: Sequence[Marked]) -> Marked:
    """Each token of some texts as a text of its own: a neuron may be quiet but at first tokens, and do much there."""
    tokens = sorted({token for kind in kinds for row in kind.rows for token in row.ids})
    return Marked([unanswered([token]) for token in tokens], [[0]] * len(tokens))


def _activated(model: Any, module: str) -> tuple[Float[Tensor, "neuron hidden"], Float[Tensor, " neuron"]]:
    """The rows by which an MLP's neurons read what is activated, and their biases."""
    name, _ = reading_rows(model, module)[0]
    reading = model.get_submodule(name)
    rows = weight_of(reading)[: neuron_count(model.get_submodule(module))].float()
    own: Any = unwrapped(reading)
    return rows, rows.new_zeros(len(rows)) if own.bias is None else own.bias[: len(rows)].float()


def _bias(module: Any, row: int) -> float:
    base: Any = unwrapped(module)
    return 0.0 if base.bias is None else float(base.bias[row])
