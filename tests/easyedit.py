"""EasyEdit's own ROME, imported from a checkout of github.com/zjunlp/EasyEdit that the variable `EASYEDIT` names."""

import importlib
import io
import os
import sys
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.baselines.method import STEPS
from benchmarks.baselines.mlps import output_projection
from benchmarks.baselines.restoring import weights_restored
from benchmarks.baselines.rome import DECAY, KL_WEIGHT, LONGEST, Rome
from peft_surgical.architectures import decoder_layers

VARIABLE = "EASYEDIT"


def rome_main():
    """Its `rome_main`, without the packages' `__init__`, which import every method and what all of those need."""
    if not os.environ.get(VARIABLE):
        pytest.skip(f"{VARIABLE} names no checkout of github.com/zjunlp/EasyEdit")
    for name in ("easyeditor", "easyeditor.models", "easyeditor.util"):
        package = ModuleType(name)
        package.__path__ = [str(Path(os.environ[VARIABLE]).joinpath(*name.split(".")))]
        sys.modules.setdefault(name, package)
    return importlib.import_module("easyeditor.models.rome.rome_main")


@contextmanager
def edited(model, tokenizer, request, layer):
    """Has EasyEdit edit a model behind the request's contexts, and copies the weight back afterwards."""
    code, projection = rome_main(), output_projection(model, layer)
    # They are formatted, so braces of a text would be taken for places.
    contexts = [context.translate({ord("{"): "", ord("}"): ""}) for context in request.contexts]
    code.CONTEXT_TEMPLATES_CACHE = ["{}", *(context + "{}" for context in contexts)]
    prompt = request.prompt.replace(request.subject, "{}", 1)
    asked = {"subject": request.subject, "prompt": prompt, "target_new": request.new}
    # EasyEdit freezes all of the model.
    with weights_restored([projection.weight]), flags_restored(model):
        with redirect_stdout(io.StringIO()):
            code.apply_rome_to_model(model, tokenizer, [asked], hparams(code, model, layer))
        yield


@contextmanager
def flags_restored(model):
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def hparams(code, model, layer):
    """Those of its `hparams/ROME/llama-7b.yaml`, with the model's own names of modules and its last layer."""
    names, layers = {module: name for name, module in model.named_modules()}, decoder_layers(model)
    block = names[layers[layer]]
    blocks, inner = block.rpartition(".")[0] + ".{}", names[output_projection(model, layer)].removeprefix(f"{block}.")
    return code.ROMEHyperParams(
        alg_name="ROME",
        model_name="",
        stats_dir="",
        device=str(model.device),
        layers=[layer],
        fact_token="subject_last",
        v_num_grad_steps=STEPS,
        v_lr=Rome().learning_rate,
        v_loss_layer=len(layers) - 1,
        v_weight_decay=DECAY,
        clamp_norm_factor=LONGEST,
        kl_factor=KL_WEIGHT,
        mom2_adjustment=False,
        context_template_length_params=[],
        rewrite_module_tmp=f"{blocks}.{inner}",
        layer_module_tmp=blocks,
        mlp_module_tmp=f"{blocks}.{inner.rpartition('.')[0]}",
        attn_module_tmp="",
        ln_f_module="",
        lm_head_module="",
        mom2_dataset="",
        mom2_n_samples=0,
        mom2_dtype="float32",
    )
