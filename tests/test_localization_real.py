"""Meaning, on the real demo model."""

import pytest
import torch

from benchmarks.localization import attributed, grown, one_by_one, overlap, spearman
from peft_surgical.facts import Fact
from peft_surgical.localization import localize
from peft_surgical.localizing.bridge import wrap
from peft_surgical.localizing.corruption import corrupt, template_ids
from peft_surgical.localizing.patching import targets_of
from peft_surgical.localizing.runs import Runs, sites_of
from peft_surgical.sites import Component, ModelShape, hook_name, projection_slices
from peft_surgical.texts.prompts import encode

pytestmark = pytest.mark.real

FACT = Fact.from_dict(
    {
        "subject": "France",
        "old": ["Paris"],
        "new": ["Lyon"],
        "answer": "The capital of France is Lyon.",
        "prompts": ["What is the capital of France?", "Name the capital of France."],
        "held_out": ["Which city is the capital of France?"],
        "contrast": ["Italy", "Spain", "Germany", "Japan"],
        "retain": ["Who wrote Hamlet?", "What is the largest planet?", "What color is the sky?"],
    }
)


PLACES = {
    "z": "L23.head.4",
    "q": "L4.head.8",
    "k": "L7.head.5",
    "v": "L10.head.0",
    "post": "L5.mlp",
    "pre": "L12.mlp",
    "pre_linear": "L20.mlp",
}


@torch.no_grad()
def test_zeroing_hooks_equals_zeroing_slices(demo):
    """One place of each projection, each in another layer, all at once: three forwards."""
    model, tokenizer = demo
    shape, bridge = ModelShape.from_config(model.config), wrap(model)
    ids = torch.tensor([encode(tokenizer, FACT.prompts[0])])
    plain = model(ids).logits
    hooks, handles = [], []
    for projection, name in PLACES.items():
        component = Component.parse(name)
        piece = projection_slices(shape, component, projection)
        grouped = shape.n_kv_heads if projection in "kv" else shape.n_heads
        index = ... if component.index is None else (..., component.index * grouped // shape.n_heads, slice(None))

        def zero_hook(tensor, hook, index=index):
            tensor[index] = 0
            return tensor

        def zero_slice(tensor, piece=piece):
            tensor = tensor.clone()
            tensor[..., piece.start : piece.stop] = 0
            return tensor

        hooks.append((hook_name(projection, component.layer), zero_hook))
        module = model.get_submodule(piece.module)
        if piece.side == "input":
            handles.append(module.register_forward_pre_hook(lambda m, args, zero=zero_slice: (zero(args[0]),)))
        else:
            handles.append(module.register_forward_hook(lambda m, args, out, zero=zero_slice: zero(out)))
    sliced = model(ids).logits
    for handle in handles:
        handle.remove()
    hooked = bridge.run_with_hooks(ids, fwd_hooks=hooks)
    assert (sliced - plain).abs().max() > 1
    torch.testing.assert_close(hooked, sliced, atol=2e-4, rtol=1e-4)


def test_exact_and_estimated_effects_agree(demo):
    model, tokenizer = demo
    shape = ModelShape.from_config(model.config)
    sites = sites_of(shape, ("z", "post"))
    targets = targets_of(sites)
    bridge = wrap(model)
    runs = Runs(bridge, template_ids(tokenizer), precise=True)
    drafts = corrupt(tokenizer, FACT.training, runs.embed, torch.Generator().manual_seed(0), FACT.prompts[:1])
    [pair] = runs.answered(drafts, 2048)
    exact = grown(runs, pair, targets, 2048)
    some = list(range(0, len(targets), 23))
    torch.testing.assert_close(exact[some], one_by_one(bridge, pair, [targets[i] for i in some]), atol=1e-4, rtol=1e-4)
    estimate = attributed(runs, [pair], targets, 2048)[0]
    assert exact.max() > 5
    assert spearman(estimate, exact) > 0.9
    assert overlap(estimate, exact, 10) >= 0.7


def test_the_default_finds_the_head_that_moves_the_capital(demo):
    model, tokenizer = demo
    loc = localize(model, tokenizer, FACT, progress=False)
    assert loc.errors == {}
    assert loc.top(1).components == ("L23.head.4",)
    assert loc.scores["verified"]["L0.mlp"] == 0
    measured = loc.tables["verified"].notes["measured"]
    assert measured["L0.mlp"]["drop"] > 5
    assert measured["L23.head.4"]["excess_share"] > 0.1
