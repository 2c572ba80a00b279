import pytest
import torch

from peft_surgical.localizing.patching import Target, patch, targets_of
from peft_surgical.localizing.runs import sites_of

from .localizing import patch_all, random_pairs, runs_of
from .tiny import FAMILIES, tiny_model
from .untold import teach, untold_model

PROJECTIONS = [("z", "post"), ("v", "pre")]


def one_by_one(runs, pair, target):
    """The plain way: the whole prompt, one `run_with_hooks`."""
    site = target.site
    ids = torch.stack([pair.clean, pair.corrupted])
    _, cache = runs.bridge.run_with_cache(ids[1:], names_filter=[site.name])
    source = next(iter(cache.values()))

    def hook(tensor, hook):
        if target.index is None:
            return source.reshape(tensor.shape)
        tensor[:, :, target.index] = source[:, :, target.index]
        return tensor

    return runs.bridge.run_with_hooks(ids[:1], fwd_hooks=[(site.name, hook)])[0, -1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("projections", PROJECTIONS)
def test_a_growing_batch_equals_one_forward_a_component(family, projections):
    runs, shape = runs_of(tiny_model(family))
    pair = random_pairs(runs, 1)[0]
    sites = sites_of(shape, projections)
    targets = targets_of(sites)
    window = runs.window([pair])
    assert window.start == 3
    sources, _ = runs.capture(window, window.corrupted, sites)
    found = patch(runs, window, targets, sources, 10_000)
    with torch.no_grad():
        clean = runs.bridge.original_model(pair.clean[None]).logits[0, -1]
        for target, logits in zip(targets, found, strict=True):
            torch.testing.assert_close(logits, one_by_one(runs, pair, target), atol=2e-5, rtol=1e-4)
    assert (found - clean).abs().amax(1).min() > 1e-5


@pytest.mark.parametrize("model_type", ["falcon", "gpt_bigcode"])
@pytest.mark.parametrize("projections", PROJECTIONS)
def test_heads_that_share_one_key_head_are_patched_one_by_one_too(model_type, projections, monkeypatch):
    teach(monkeypatch, model_type)
    runs, shape = runs_of(untold_model(model_type))
    # GPT-BigCode's last states take the shape of its input, which has one row.
    assert runs.can_grow == (model_type == "falcon")
    pair = random_pairs(runs, 1)[0]
    sites = sites_of(shape, projections)
    targets = targets_of(sites)
    sources, _ = runs.capture(runs.window([pair], whole=True), runs.window([pair], whole=True).corrupted, sites)
    for whole in (True, False):
        window = runs.window([pair], whole=whole)
        within = {site: source[:, window.start :] for site, source in sources.items()}
        with torch.no_grad():
            for tokens in (10_000, 40):
                found = patch(runs, window, targets, within, tokens)
                for target, logits in zip(targets, found, strict=True):
                    torch.testing.assert_close(logits, one_by_one(runs, pair, target), atol=2e-5, rtol=1e-4)


def test_rows_are_not_added_where_attention_compares_those_of_the_mask_itself(monkeypatch):
    teach(monkeypatch, "xglm")
    assert not runs_of(untold_model("xglm"))[0].can_grow


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
def test_rows_are_added_under_inference_mode_too(model_type):
    model = tiny_model(model_type)
    with torch.inference_mode():
        assert runs_of(model)[0].can_grow


def test_whether_rows_may_be_added_is_tried_once_and_not_by_running_out_of_memory(monkeypatch):
    runs, _ = runs_of(tiny_model("llama"))
    calls = []

    def forward(*_):
        calls.append(1)
        raise torch.OutOfMemoryError("full") if len(calls) == 1 else RuntimeError("shape")

    monkeypatch.setattr(runs, "_forward", forward)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        _ = runs.can_grow
    assert not runs.can_grow
    assert not runs.can_grow
    assert len(calls) == 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("whole", [False, True])
def test_patching_all_components_is_the_corrupted_run(family, whole):
    runs, shape = runs_of(tiny_model(family))
    pairs = random_pairs(runs, 3)
    window = runs.window(pairs, whole=whole)
    sources, corrupted = runs.capture(window, window.corrupted, sites_of(shape, ("z", "post")))
    clean = runs.logits(window, window.clean)
    # The last token's embedding goes straight to the logits; only what is not in it is carried by components.
    assert all(int(pair.clean[-1]) == int(pair.corrupted[-1]) for pair in pairs)
    torch.testing.assert_close(patch_all(runs, window, sources), corrupted, atol=2e-5, rtol=1e-4)
    assert (clean - corrupted).abs().max() > 1e-2


def test_patching_with_the_clean_run_changes_nothing():
    runs, shape = runs_of(tiny_model("llama"))
    window = runs.window(random_pairs(runs, 1))
    sites = sites_of(shape, ("z", "post"))
    sources, clean = runs.capture(window, window.clean, sites)
    found = patch(runs, window, targets_of(sites), sources, 10_000)
    torch.testing.assert_close(found, clean.expand_as(found), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("max_tokens", [1, 30, 100])
def test_the_size_of_a_pass_does_not_matter_nor_does_the_order(max_tokens):
    runs, shape = runs_of(tiny_model("qwen3"))
    window = runs.window(random_pairs(runs, 1))
    sites = sites_of(shape, ("z", "post"))
    sources, _ = runs.capture(window, window.corrupted, sites)
    targets = targets_of(sites)
    expected = patch(runs, window, targets, sources, 10_000)
    found = patch(runs, window, targets[::-1], sources, max_tokens)
    torch.testing.assert_close(found.flip(0), expected, atol=1e-5, rtol=1e-4)


def test_a_zeroed_head_is_a_head_without_its_slice_of_the_output_projection():
    model = tiny_model("llama")
    runs, shape = runs_of(model)
    pair = random_pairs(runs, 1)[0]
    window = runs.window([pair], whole=True)
    site = sites_of(shape, ("z",))[1]
    sources, _ = runs.capture(window, window.clean, [site])
    found = patch(runs, window, [Target(site, 2)], {site: torch.zeros_like(sources[site])}, 1000)
    with torch.no_grad():
        weight = model.model.layers[1].self_attn.o_proj.weight
        kept = weight.clone()
        weight[:, 16:24] = 0
        expected = model(pair.clean[None]).logits[:, -1]
        weight.copy_(kept)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_no_layer_is_computed_twice_and_no_logit_in_vain():
    model = tiny_model("llama")
    runs, shape = runs_of(model)
    pair = random_pairs(runs, 1)[0]
    window = runs.window([pair])
    sites = sites_of(shape, ("z", "post"))
    sources, _ = runs.capture(window, window.corrupted, sites)
    rows, read = [], []
    inner = runs.bridge.original_model
    for layer in inner.model.layers:
        layer.register_forward_pre_hook(lambda m, args: rows.append(tuple(args[0].shape[:2])))
    inner.lm_head.register_forward_pre_hook(lambda m, args: read.append(args[0].shape[:-1].numel()))
    patch(runs, window, targets_of(sites), sources, 10_000)
    # The clean row, and five components a layer, each from its own layer on; from the first changed position on.
    changed = len(pair.clean) - 3
    assert rows == [(1, changed), (6, changed), (11, changed)]
    assert read == [16]


def test_a_pass_is_no_larger_than_allowed():
    runs, shape = runs_of(tiny_model("llama"))
    window = runs.window(random_pairs(runs, 1))
    sites = sites_of(shape, ("z", "post"))
    sources, _ = runs.capture(window, window.corrupted, sites)
    sizes = []
    for layer in runs.bridge.original_model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda m, args: sizes.append(args[0].shape[:-1].numel()))
    patch(runs, window, targets_of(sites), sources, 30)
    assert len(sizes) > 3 * 3
    assert max(sizes) <= 30
