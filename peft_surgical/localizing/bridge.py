"""A model under TransformerLens hooks: no second copy of the weights, and the user's own model stays as it was.

`TransformerBridge` replaces the submodules of the model that it wraps and cannot be taken off again. So it wraps a
*skeleton*: a deep copy of the modules whose parameters are views of the model's, with gradients of their own, and
whose buffers are the model's. It costs a few megabytes. (Where TransformerLens splits an interleaved fused projection,
GPT-NeoX's `query_key_value`, it copies those weights.)

Importing TransformerLens takes seconds, silences transformers' logger and adds a filter of warnings; that happens here
only, and logger and filters are set back.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from contextlib import nullcontext
from importlib import metadata
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..architectures import architecture_of, check_causal, decoder_layers
from ..errors import ModelError, said
from ..layouts import check_layout
from ..running.modes import evaluating
from ..running.precision import exact_arithmetic
from ..running.products import is_unrounded, rounding
from ..running.sharing import is_sharded
from ..seeding import forked
from ..sites import ModelShape, hook_name
from ..tuner.offloading import execution_device
from ..wrapped import check_unwrapped

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

EXACT, ROUNDED = 1e-3, 0.2
"""How far the bridge's logits may be from the model's, in standard deviations of these: in float32, and where numbers
are rounded to half precision or TF32. Sound models stay below 2e-6 and 0.05, and faulty ones are beyond 0.9."""


def wrap(model: nn.Module) -> TransformerBridge:
    """Put a Hugging Face causal language model under TransformerLens hooks.

    A few tokens then go through both, since TransformerLens goes by the weights of the projections that it splits and
    by what it knows of the configuration: a hook on such a projection, or a wrapper around it, would be left out.

    Args:
        model: A `PreTrainedModel`. It is not changed: neither its modules nor its train/eval mode, nor its gradients.
            Hooks on its modules, but for fused projections, are copied and fire, here on the model itself too. An
            autocast that is on acts here, too: `without_autocast` sets it aside.

    Returns:
        The bridge, in eval mode, without a tokenizer: give it token ids. Its `original_model` is the skeleton, whose
        forward takes Hugging Face arguments and fires the hooks.

    Raises:
        ModelError: When the model carries an adapter or TransformerLens's own hooks, is quantized, is not loaded, is
            of float64, cannot be run or copied, or TransformerLens cannot wrap it, would not see the keys and values
            that it is given, computes something else, or has hooks that a replaced forward does not run.
        ArchitectureError: When it is no causal language model, its module names are not known here, or it lacks one of
            them or has one of another width than its sizes make it.
    """
    check_localizable(model)
    check_causal(model)
    _check_cache_is_seen(model)
    try:
        skeleton = _share(model)
    except Exception as error:
        raise ModelError(
            f"a hook or attribute of the model cannot be copied ({said(error)}); remove it before localizing."
        ) from error
    # Everything below reads module names, which the tuner needs too: an unknown layout is refused before it matters.
    check_layout(skeleton, ModelShape.from_config(skeleton.config))
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    device = next(skeleton.parameters()).device
    try:
        with warnings.catch_warnings():
            # Private, because `boot_transformers` looks the tokenizer up on the hub and loads weights of its own.
            from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        # Where it splits a projection, TransformerLens draws weights that it then replaces.
        with forked(device), torch.device("cpu"):
            bridge = build_bridge_from_module(
                skeleton, type(model).__name__, hf_config=skeleton.config, tokenizer=None
            )
    except Exception as error:
        raise ModelError(f"TransformerLens cannot wrap a {type(model).__name__}: {said(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    bridge.eval()
    _check_same(model, skeleton)
    _check_reached(model, bridge)
    return bridge


def has_hooks(model: nn.Module) -> bool:
    """Whether forward hooks, or forwards of their own, stand on a model's modules.

    Those by which accelerate brings weights to a device, which change nothing that is computed, do not count.
    """
    return any(
        module._forward_hooks or module._forward_pre_hooks or _has_another_forward(module)
        for module in model.modules()
    )


def _has_another_forward(module: nn.Module) -> bool:
    return "forward" in vars(module) and not hasattr(module, "_hf_hook")


def same_logits(own: Tensor, others: Tensor, model: nn.Module) -> bool:
    """Whether logits are a model's own but for rounding. What is not finite in these is for who reads its answers to
    refuse, by the prompt."""
    limit = ROUNDED if _rounds(model) else EXACT
    return not bool(own.isfinite().all()) or bool((own - others).abs().max() <= limit * own.std())


def check_localizable(model: nn.Module) -> None:
    """Refuse a model whose hooks would not see what it computes.

    Raises:
        ModelError: Says what to do instead.
    """
    from peft import PeftModel

    from ..tuner.kinds import has_adapters

    if isinstance(model, PeftModel) or has_adapters(model):
        # TransformerLens splits fused projections from the base weights, so an adapter on them is silently left out.
        raise ModelError(
            "the model carries a PEFT adapter, which TransformerLens hooks bypass on fused projections; "
            "localize on the base model (`peft_model.unload()`, or loaded anew) or on `peft_model.merge_and_unload()`."
        )
    check_unwrapped(model)
    for name, parameter in model.named_parameters():
        if not parameter.dtype.is_floating_point or type(parameter).__module__.startswith("bitsandbytes"):
            raise ModelError(
                f"the model is quantized ({name} holds {parameter.dtype}); localize on the unquantized checkpoint: "
                "the component names are the same."
            )
        if parameter.is_meta:
            if any(execution_device(module) is not None for module in model.modules()):
                raise ModelError(
                    f"weights of the model ({name}) are offloaded to memory or disk, and localization needs them at"
                    " hand; load the model whole, or train with unlearn and learn on components that are."
                )
            raise ModelError(f"the model's weights are not loaded ({name} is on the meta device).")
        if parameter.dtype == torch.float64:
            # Transformers masks padding by float32's lowest number there, and TransformerLens makes NaN of it.
            raise ModelError(f"the model's weights are float64 ({name}); localize in float32 (`model.float()`).")
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise ModelError(
            "the model was loaded under torch.inference_mode(), and localization takes gradients, which its weights"
            " rule out; load it outside."
        )
    if is_sharded(model):
        raise ModelError(
            "the model is sharded over processes, and TransformerLens needs whole weights; "
            "localize before sharding it."
        )
    if not hasattr(model, "config"):
        raise ModelError(f"a {type(model).__name__} has no configuration; localization needs a transformers model.")


def _check_cache_is_seen(model: nn.Module) -> None:
    """Refuses a model that takes keys and values by a name that TransformerLens does not read: it would leave them out
    without a word, and every score would be wrong."""
    taken = inspect.signature(type(model).forward).parameters
    if "cache" in taken and "past_key_values" not in taken:
        versions = " and ".join(f"{name} {metadata.version(name)}" for name in ("transformer-lens", "transformers"))
        raise ModelError(
            f"{versions} do not fit together: the one does not see the keys and values that the other's models are"
            " given; install transformers<5.24."
        )


def _share(model: nn.Module) -> Any:
    """A copy of the modules over the same memory, in which gradients are not the model's."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.data, requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, memo).eval()


def _check_same(model: nn.Module, skeleton: Any) -> None:
    """Refuses a model that computes something else by itself than under the bridge.

    Raises:
        ModelError: When one of them cannot be run, or the logits after a few tokens differ by more than rounding.
    """
    tokens = _some_tokens(skeleton)
    for precise in (False, True):
        own = _probe(model, tokens, precise, f"the model, a {type(model).__name__}, cannot be run")
        bridged = _probe(skeleton, tokens, precise, f"TransformerLens cannot wrap a {type(model).__name__}")
        if same_logits(own, bridged, skeleton):
            return
        # Half precision adds up over many layers; a fault stays in float32, which takes longer.
    raise ModelError(
        f"TransformerLens computes something else than this model, a {type(model).__name__}: a hook or wrapper on a"
        " fused projection, or a setting that one of them does not know; remove it before localizing."
    )


def _check_reached(model: nn.Module, bridge: TransformerBridge) -> None:
    """Refuses a model with a forward in the place of a module's own that no hook below sees: copied as it is, such a
    function goes on running the modules that it was made around, or runs none.

    Raises:
        ModelError: Names the module.
    """
    skeleton = bridge.original_model
    others = {name: vars(module)["forward"] for name, module in model.named_modules() if _has_another_forward(module)}
    architecture, under = architecture_of(skeleton.config.model_type), {}
    for layer in range(len(decoder_layers(model))):
        for projection, read_by in (("z", architecture.attention_out), ("post", architecture.mlp_out)):
            place = f"{architecture.layers}.{layer}.{read_by}"
            if around := [name for name in others if not name or place.startswith(f"{name}.")]:
                # A method is copied with what it is bound to, so that it is seldom the fault.
                functions = [name for name in around if not isinstance(others[name], MethodType)]
                under[hook_name(projection, layer)] = (functions or around)[-1]
    if not under:
        return
    reached: set[str] = set()
    hooks = [(point, lambda tensor, hook, point=point: reached.add(point)) for point in under]
    with bridge.hooks(fwd_hooks=hooks):
        _probe(skeleton, _some_tokens(skeleton), False, f"TransformerLens cannot wrap a {type(model).__name__}")
    for point, name in under.items():
        if point not in reached:
            where, held = (name, f"model.get_submodule({name!r})") if name else ("the model itself", "model")
            raise ModelError(
                f"the forward of {where} was replaced by a function that does not run what is below it under"
                f" TransformerLens' hooks; take it off (`del {held}.forward`) before localizing, or change what the"
                " module gives by `register_forward_hook` instead."
            )


def _some_tokens(skeleton: Any) -> Tensor:
    """A few tokens: any will do, and all different ones say the most."""
    size: int = skeleton.get_input_embeddings().weight.shape[0]
    return (torch.arange(6, device=next(skeleton.parameters()).device) * (size // 7 or 1) + 3) % size


@torch.no_grad()
def _probe(model: Any, tokens: Tensor, precise: bool, fault: str) -> Tensor:
    dtype = model.get_input_embeddings().weight.dtype
    try:
        with (
            forked(tokens.device),
            evaluating(model),
            exact_arithmetic(dtype) if precise else nullcontext(),
        ):
            logits: Tensor = model(input_ids=tokens[None], use_cache=False, return_dict=True).logits
    except Exception as error:
        raise ModelError(f"{fault}: {said(error)}") from error
    return logits.float()


def _rounds(model: nn.Module) -> bool:
    """Whether a model's products are rounded to less than float32: by its dtype, or by TF32 and its like."""
    return not is_unrounded(rounding()) or any(parameter.dtype != torch.float32 for parameter in model.parameters())
