"""What layers read and write at some tokens, against the plain way and against what it must be."""

import pytest
import torch
from transformer_lens.patching import get_act_patch_block_every

from peft_surgical.errors import ModelError
from peft_surgical.localizing.streams import DIRECTIONS, layers_around, traced
from peft_surgical.sites import STREAMS

from .localizing import random_pairs, runs_of
from .tiny import FAMILIES, tiny_model
from .untold import teach, untold_model


def plainly(runs, pair, direction, stream, layers, positions):
    """The plain way: whole prompts, one `run_with_hooks`."""
    runs_of_ids = pair.clean[None], pair.corrupted[None]
    patched, other = runs_of_ids if direction == "noising" else runs_of_ids[::-1]
    names = [f"blocks.{layer}.hook_{stream}" for layer in layers]
    found = {}

    def keep(name):
        def hook(tensor, hook):
            found[name] = tensor.clone()

        return hook

    def write(name):
        def hook(tensor, hook):
            tensor = tensor.clone()
            tensor[:, positions] = found[name][:, positions]
            return tensor

        return hook

    def read(logits):
        return float(logits[0, -1, pair.old] - logits[0, -1, pair.rival])

    with torch.no_grad():
        after = read(runs.bridge.run_with_hooks(other, fwd_hooks=[(name, keep(name)) for name in names]))
        before = read(runs.bridge.original_model(patched).logits)
        value = read(runs.bridge.run_with_hooks(patched, fwd_hooks=[(name, write(name)) for name in names]))
    return (value - before) / (after - before)


def check_plain(runs, shape, groups, direction, window=1, max_tokens=10_000):
    [pair] = random_pairs(runs, 1)
    found = traced(runs, shape, pair, groups, direction, window, max_tokens)
    total = abs(pair.differences[0] - pair.differences[1])
    assert found.shape == (3, 3, len(groups))
    for number, stream in enumerate(STREAMS):
        for layer in range(3):
            for group, positions in enumerate(groups):
                around = layers_around(layer, window if number else 1, 3)
                plain = plainly(runs, pair, direction, stream, around, positions)
                assert float(found[number, layer, group]) == pytest.approx(plain, abs=1e-4 + 1e-4 / total)
    assert found[:, :, 0].abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_each_is_one_plain_run_with_hooks(family, direction):
    runs, shape = runs_of(tiny_model(family))
    check_plain(runs, shape, [[3], [1, 4, 6], [8]], direction)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_denoising_one_position_at_a_time_is_what_transformer_lens_patching_gives(family):
    runs, shape = runs_of(tiny_model(family))
    [pair] = random_pairs(runs, 1)
    found = traced(runs, shape, pair, [[place] for place in range(len(pair.clean))], "denoising", 1, 10_000)

    def share(logits):
        difference = logits[0, -1, pair.old] - logits[0, -1, pair.rival]
        clean, corrupted = pair.differences
        return (difference - corrupted) / (clean - corrupted)

    with torch.no_grad():
        _, cache = runs.bridge.run_with_cache(pair.clean[None])
        expected = get_act_patch_block_every(runs.bridge, pair.corrupted[None], cache, share)
    torch.testing.assert_close(found.float(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("window", [2, 3])
def test_layers_of_a_window_are_taken_together_but_of_the_residual_stream(direction, window):
    runs, shape = runs_of(tiny_model("llama"))
    check_plain(runs, shape, [[3, 4], [7]], direction, window)


def test_a_window_is_around_its_layer_as_romes():
    assert [list(layers_around(layer, 1, 3)) for layer in range(3)] == [[0], [1], [2]]
    assert list(layers_around(20, 10, 48)) == [*range(15, 25)]
    assert list(layers_around(20, 3, 48)) == [19, 20, 21]
    assert list(layers_around(2, 10, 48)) == [*range(7)]
    assert list(layers_around(47, 10, 48)) == [*range(42, 48)]


@pytest.mark.parametrize("model_type", ["falcon", "gpt_bigcode", "mpt"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_model_to_which_no_rows_can_be_added_on_the_way_is_traced_too(model_type, direction, monkeypatch):
    teach(monkeypatch, model_type)
    runs, shape = runs_of(untold_model(model_type))
    check_plain(runs, shape, [[3, 4], [7]], direction)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_all_of_the_residual_stream_is_the_other_run_at_every_layer(family, direction):
    runs, shape = runs_of(tiny_model(family))
    for pair in random_pairs(runs, 2):
        found = traced(runs, shape, pair, [range(len(pair.clean)), []], direction, 1, 10_000)
        torch.testing.assert_close(found[0, :, 0], torch.ones(3, dtype=torch.float64), atol=1e-3, rtol=0)
        # A group of nothing takes nothing.
        assert not found[:, :, 1].any()


def test_of_the_first_layer_only_what_the_corruption_changed_and_of_the_last_only_the_answer_position_counts():
    runs, shape = runs_of(tiny_model("llama"))
    [pair] = random_pairs(runs, 1)
    found = traced(runs, shape, pair, [[3, 4], [5, 6, 7, 8], [0, 1, 2], [*range(8)]], "noising", 1, 10_000)
    assert float(found[0, 0, 0]) == pytest.approx(1, abs=1e-3)
    assert found[0, 0, 1:3].abs().max() < 1e-4
    # Nothing differs before the first token that is corrupted.
    assert not found[:, :, 2].any()
    # What the last layer writes elsewhere nobody reads.
    assert found[1:, 2, 3].abs().max() < 1e-4
    assert found[1:, 2, 1].abs().max() > 1e-3


@pytest.mark.parametrize("max_tokens", [1, 30, 100])
def test_the_size_of_a_pass_does_not_matter(max_tokens):
    runs, shape = runs_of(tiny_model("qwen3"))
    [pair] = random_pairs(runs, 1)
    groups = [[3], [4, 5], [8]]
    expected = traced(runs, shape, pair, groups, "denoising", 2, 10_000)
    found = traced(runs, shape, pair, groups, "denoising", 2, max_tokens)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_no_layer_is_computed_twice_and_a_pass_is_no_larger_than_allowed():
    model = tiny_model("llama")
    runs, shape = runs_of(model)
    [pair] = random_pairs(runs, 1)
    assert runs.can_grow
    rows, read = [], []
    inner = runs.bridge.original_model
    for layer in inner.model.layers:
        layer.register_forward_pre_hook(lambda m, args: rows.append(tuple(args[0].shape[:2])))
    inner.lm_head.register_forward_pre_hook(lambda m, args: read.append(args[0].shape[:-1].numel()))
    changed = len(pair.clean) - 3
    traced(runs, shape, pair, [[3, 4], [8]], "noising", 1, 10_000)
    # The prefix, the corrupted run, and then the clean row, beside it six rows a layer, each from its own on.
    assert rows == [(1, 3)] * 3 + [(1, changed)] * 3 + [(1, changed), (7, changed), (13, changed)]
    assert read[-2:] == [1, 19]
    rows.clear()
    traced(runs, shape, pair, [[3, 4], [8]], "noising", 1, 5 * changed)
    assert max(count * width for count, width in rows) <= 5 * changed


def test_logits_that_are_not_finite_are_refused():
    runs, shape = runs_of(tiny_model("llama"))
    [pair] = random_pairs(runs, 1)
    with torch.no_grad():
        runs.bridge.original_model.lm_head.weight[:] = torch.inf
    with pytest.raises(ModelError, match=r"the model answers '0', patched, with logits that are not finite\."):
        traced(runs, shape, pair, [[3]], "noising", 1, 10_000)


def test_a_layer_without_such_a_hook_point_is_refused(monkeypatch):
    runs, shape = runs_of(tiny_model("llama"))
    [pair] = random_pairs(runs, 1)
    monkeypatch.setattr("peft_surgical.localizing.streams.STREAMS", ("resid_pre", "attn_out", "none"))
    monkeypatch.setattr("peft_surgical.sites.STREAMS", ("resid_pre", "attn_out", "none"))
    with pytest.raises(ModelError, match=r"^a LlamaForCausalLM cannot be traced: .*blocks\.0\.hook_none"):
        traced(runs, shape, pair, [[3]], "noising", 1, 10_000)
