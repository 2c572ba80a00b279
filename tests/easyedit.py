"""EasyEdit's own ROME, MEMIT, AlphaEdit and UltraEdit, of a checkout of github.com/zjunlp/EasyEdit in `EASYEDIT`."""

import importlib
import io
import os
import sys
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from benchmarks.baselines.alphaedit import AlphaEdit
from benchmarks.baselines.covariances import covariances, with_ridge
from benchmarks.baselines.method import STEPS
from benchmarks.baselines.mlps import edited_layers, output_projection
from benchmarks.baselines.restoring import weights_restored
from benchmarks.baselines.rome import Rome
from benchmarks.baselines.ultraedit import edited_modules
from benchmarks.baselines.values import Objective
from peft_surgical.architectures import decoder_layers

VARIABLE = "EASYEDIT"


def imported(name):
    """One of its modules, without the packages' `__init__`, which import every method and what all of those need."""
    if not os.environ.get(VARIABLE):
        pytest.skip(f"{VARIABLE} names no checkout of github.com/zjunlp/EasyEdit")
    for above in ("", ".models", ".models.ultraedit", ".trainer", ".trainer.algs", ".util"):
        above = f"easyeditor{above}"
        package = ModuleType(above)
        package.__path__ = [str(Path(os.environ[VARIABLE]).joinpath(*above.split(".")))]
        sys.modules.setdefault(above, package)
    return importlib.import_module(f"easyeditor.models.{name}")


def layers_of(method, model):
    """The layers whose MLPs a method writes into."""
    return [method.layer] if isinstance(method, Rome) else edited_layers(model)


@contextmanager
def edited(method, model, tokenizer, batches, monkeypatch):
    """Has EasyEdit edit a model as `method` does, one batch on top of another, and copies the weights back.

    All requests have the contexts of the first.
    """
    # They are formatted, so braces of a text would be taken for places.
    contexts = [context.translate({ord("{"): "", ord("}"): ""}) + "{}" for context in batches[0][0].contexts]
    layers = layers_of(method, model)
    if isinstance(method, Rome):
        apply = _rome(model, contexts, layers)
    else:
        apply = _memit(method, model, tokenizer, contexts, layers, monkeypatch)
    # EasyEdit freezes all of the model.
    weights = [output_projection(model, layer).weight for layer in layers]
    with weights_restored(weights), _flags_restored(model):
        with redirect_stdout(io.StringIO()):
            for requests in batches:
                apply(model, tokenizer, [_asked(request) for request in requests])
        yield


def _asked(request):
    prompt = request.prompt.replace(request.subject, "{}", 1)
    return {"subject": request.subject, "prompt": prompt, "target_new": request.new}


def _rome(model, contexts, layers):
    code = imported("rome.rome_main")
    code.CONTEXT_TEMPLATES_CACHE = ["{}", *contexts]
    asked = code.ROMEHyperParams(
        alg_name="ROME",
        **_hparams(model, Objective(), layers),
        mom2_adjustment=False,
        context_template_length_params=[],
    )
    return lambda *given: code.apply_rome_to_model(*given, asked)


def _memit(method, model, tokenizer, contexts, layers, monkeypatch):
    alpha = isinstance(method, AlphaEdit)
    # First: without it the test is skipped, and covariances of a real model take long.
    code = imported("alphaedit.AlphaEdit_main" if alpha else "memit.memit_main")
    found = covariances(model, tokenizer, layers)
    code.CONTEXT_TEMPLATES_CACHE = [["{}"], contexts]
    options = {"layer_selection": "all", "mom2_adjustment": True, "mom2_update_weight": method.known}
    given = {**_hparams(model, Objective(method.learning_rate), layers), **options}
    if alpha:
        # Made before, and there where it would be read from.
        code.P, code.P_loaded = torch.stack([method.away_from(found[layer]) for layer in layers]), True
        asked = code.AlphaEditHyperParams(
            alg_name="AlphaEdit", **given, P_loc=__file__, L2=method.known, nullspace_threshold=method.small
        )
        # Keys of earlier edits are forgotten here, and not between this one's batches.
        code.cache_c_new = False
        return lambda *given: code.apply_AlphaEdit_to_model(*given, asked)
    names = dict(model.named_modules())
    projections = {output_projection(model, layer): layer for layer in layers}
    monkeypatch.setattr(
        code, "get_cov", lambda _, __, name, *___, **____: with_ridge(found[projections[names[name]]], method.ridge)
    )
    asked = code.MEMITHyperParams(alg_name="MEMIT", **given)
    return lambda *given: code.apply_memit_to_model(*given, asked)


def ultraedit(method, model, tokenizer, batches):
    """What its UltraEdit adds to the weights of a model, by module, after each batch; the model is changed.

    It is given what the authors' own code makes of prompts and answers, at the tokens that code reads (`token: ans`):
    what EasyEdit itself gives it has all tokens, and no place for answers of several lengths.
    """
    modules = edited_modules(model)
    before = {name: model.get_submodule(name).weight.clone() for name in modules}
    config = {"model_name": "as prepared", "half": False, "inner_params": modules, "device": "cpu", "token": "ans"}
    config |= {"lr": method.learning_rate, "editor_batch_size": 128}
    algorithm = imported("ultraedit.ULTRAEDIT").ULTRAEDIT(model, SimpleNamespace(**config), None)
    found = []
    for requests in batches:
        rows = sorted(
            (_tokens(tokenizer, request.prompt, request.new) for request in requests),
            key=lambda row: len(row["input_ids"]),
            reverse=True,
        )
        passes = [
            {
                name: pad_sequence([row[name] for row in rows[start : start + 10]], True, -100 * (name == "labels"))
                for name in rows[0]
            }
            for start in range(0, len(rows), 10)
        ]
        algorithm.edit_model(algorithm.predict_param_shifts(algorithm.cache(passes)), False)
        found.append({name: model.get_submodule(name).weight.detach() - was for name, was in before.items()})
    return found


def _tokens(tokenizer, prompt, answer):
    """What is read of a prompt and its answer, all but the last token, and what is to be said at each."""
    asked = tokenizer(prompt)["input_ids"]
    said = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    read = torch.tensor([*asked, *said[:-1]])
    labels = torch.tensor([-100] * (len(asked) - 1) + said)
    return {"input_ids": read, "attention_mask": torch.ones_like(read), "labels": labels}


@contextmanager
def _flags_restored(model):
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _hparams(model, objective, layers):
    """What all of its `hparams/*/llama*.yaml` say, with the model's own names of modules and its last layer."""
    names, blocks = {module: name for name, module in model.named_modules()}, decoder_layers(model)
    block = names[blocks[layers[0]]]
    every, projection = block.rpartition(".")[0] + ".{}", names[output_projection(model, layers[0])]
    inner = projection.removeprefix(f"{block}.")
    return {
        # By its name it tells which way round weights are.
        "model_name": "gpt2-xl" if model.config.model_type == "gpt2" else "llama",
        "stats_dir": "",
        "device": str(model.device),
        "layers": layers,
        "fact_token": "subject_last",
        "v_num_grad_steps": STEPS,
        "v_lr": objective.learning_rate,
        "v_loss_layer": len(blocks) - 1,
        "v_weight_decay": objective.decay,
        "clamp_norm_factor": objective.longest,
        "kl_factor": objective.kl_weight,
        "rewrite_module_tmp": f"{every}.{inner}",
        "layer_module_tmp": every,
        "mlp_module_tmp": f"{every}.{inner.rpartition('.')[0]}",
        "attn_module_tmp": "",
        "ln_f_module": next(name for name in names.values() if name in ("model.norm", "transformer.ln_f")),
        # Of tied weights the first name is the one that it finds.
        "lm_head_module": next(name for name, p in model.named_parameters() if p is model.lm_head.weight)[
            : -len(".weight")
        ],
        "mom2_dataset": "",
        "mom2_n_samples": 0,
        "mom2_dtype": "float32",
    }
