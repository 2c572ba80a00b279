from dataclasses import replace

import pytest
import torch

from peft_surgical.errors import ModelError, ScorerError
from peft_surgical.localizing.bridge import wrap
from peft_surgical.localizing.corruption import PromptPair
from peft_surgical.localizing.runs import Runs, sites_of
from peft_surgical.sites import ModelShape

from .localizing import patch_all, planted, random_pairs, runs_of
from .tiny import FAMILIES, tiny_granite, tiny_ids, tiny_longrope, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("whole", [False, True])
def test_a_padded_window_gives_each_prompts_own_logits(family, whole):
    model = tiny_model(family)
    runs, _ = runs_of(model)
    window = runs.window(random_pairs(runs, 3), whole=whole)
    with torch.no_grad():
        for run, name in ((window.clean, "clean"), (window.corrupted, "corrupted")):
            logits = runs.logits(window, run)
            for row, pair in enumerate(window.pairs):
                expected = model(getattr(pair, name)[None]).logits[0, -1]
                torch.testing.assert_close(logits[row], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_scales_its_embeddings_gives_its_own_logits(dtype):
    model = tiny_granite(0.3, of_embeddings=6.0).to(dtype)
    runs = Runs(wrap(model), precise=True)
    pairs = random_pairs(runs, 2)
    noise = torch.randn(len(pairs[0].clean), 32, generator=torch.Generator().manual_seed(0))
    pairs = [*pairs, replace(pairs[0], corrupted=pairs[0].clean, shift=noise, first=0)]
    window, exact = runs.window(pairs), model.float()
    embedded = exact.get_input_embeddings()
    with torch.no_grad():
        for run, name in ((window.clean, "clean"), (window.corrupted, "corrupted")):
            logits = runs.logits(window, run)
            for row, pair in enumerate(pairs):
                # The noise is of the size of what enters the first layer.
                shift = noise / 6.0 if pair.shift is not None and name == "corrupted" else 0.0
                expected = exact(inputs_embeds=embedded(getattr(pair, name)[None]) + shift).logits[0, -1]
                torch.testing.assert_close(logits[row], expected, atol=2e-5, rtol=1e-4)


def test_a_shared_template_changes_no_logits():
    model = tiny_model("qwen3")
    head = tiny_ids(1, 4, seed=5)[0]
    pairs = []
    for number in range(3):
        own = tiny_ids(1, 6 + number, seed=number)[0]
        changed = own.clone()
        changed[1] = own[1] % 100 + 4
        clean, corrupted = torch.cat([head, own]), torch.cat([head, changed])
        pairs.append(PromptPair("", "swap", None, clean, corrupted, None, 5, 7, 8, 9))
    with_template, without = Runs(wrap(model), head.tolist()), Runs(wrap(model))
    for runs in (with_template, without):
        window = runs.window(pairs)
        assert runs._shared(pairs) == (4 if runs is with_template else 0)
        for row, pair in enumerate(pairs):
            expected = model(pair.corrupted[None]).logits[0, -1].detach()
            torch.testing.assert_close(runs.logits(window, window.corrupted)[row], expected, atol=2e-5, rtol=1e-4)


def test_what_hooks_change_in_the_template_is_for_the_windows_under_them_alone():
    model = tiny_model("llama")
    head, own = tiny_ids(1, 4, seed=5)[0], tiny_ids(1, 6, seed=1)[0]
    clean = torch.cat([head, own])
    pairs = [PromptPair("", "swap", None, clean, clean.flip(0), None, 5, 7, 8, 9)]
    expected = model(clean[None]).logits[0, -1].detach()

    def ablated(runs, scale):
        with runs.bridge.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda tensor, hook: tensor * scale)]):
            window = runs.window(pairs)
            return runs.logits(window, window.clean)[0]

    runs = Runs(wrap(model), head.tolist())
    whole = ablated(Runs(wrap(model)), 0)
    for scale in (0, 3, 0):
        found = ablated(runs, scale)
    assert runs._template_cache is None
    torch.testing.assert_close(found, whole, atol=2e-5, rtol=1e-4)
    for _ in range(2):
        window = runs.window(pairs)
        torch.testing.assert_close(runs.logits(window, window.clean)[0], expected, atol=2e-5, rtol=1e-4)
    template = runs._template_cache
    assert template is not None
    torch.testing.assert_close(ablated(runs, 0), whole, atol=2e-5, rtol=1e-4)
    assert runs._template_cache is template


def test_a_template_that_the_corruption_changes_is_not_shared():
    model = tiny_model("qwen3")
    runs, _ = runs_of(model)
    pairs = random_pairs(runs, 2, first=2)
    head = pairs[0].clean[:4]
    pairs = [replace(pair, clean=torch.cat([head, pair.clean[4:]])) for pair in pairs]
    runs = Runs(wrap(model), head.tolist())
    assert runs._shared(pairs) == 0
    window = runs.window(pairs)
    for row, pair in enumerate(pairs):
        expected = model(pair.clean[None]).logits[0, -1].detach()
        torch.testing.assert_close(runs.logits(window, window.clean)[row], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_prompts_longer_than_a_sliding_window_keep_their_logits(family):
    model = tiny_model(family, sliding_window=6)
    head = tiny_ids(1, 4, seed=5)[0]
    base = random_pairs(Runs(wrap(model)), 3, length=9)
    pairs = [
        replace(pair, clean=torch.cat([head, pair.clean]), corrupted=torch.cat([head, pair.corrupted]), first=7)
        for pair in base
    ]
    runs = Runs(wrap(model), head.tolist())
    window = runs.window(pairs)
    logits = runs.logits(window, window.corrupted)
    for row, pair in enumerate(pairs):
        expected = model(pair.corrupted[None]).logits[0, -1].detach()
        torch.testing.assert_close(logits[row], expected, atol=2e-5, rtol=1e-4)
    site = sites_of(runs_of(model)[1], ("z", "post"))
    one = runs.window(pairs[:1])
    sources, corrupted = runs.capture(one, one.corrupted, site)
    torch.testing.assert_close(patch_all(runs, one, sources), corrupted, atol=2e-5, rtol=1e-4)


def long_and_short():
    """Prompts of 9, 11, 13, 15 and 17 tokens, of which the model turns those of more than 12 otherwise."""
    model = tiny_longrope(12)
    pairs = random_pairs(runs_of(model)[0], 5)
    return model, [pairs[number] for number in (0, 3, 1, 2, 4)]


@pytest.mark.parametrize("whole", [False, True])
def test_prompts_turn_no_positions_of_shorter_ones(whole):
    model, pairs = long_and_short()
    # A template that all begin with is not run apart either.
    pairs = [replace(pair, clean=torch.cat([pairs[0].clean[:3], pair.clean[3:]])) for pair in pairs]
    runs = Runs(wrap(model), pairs[0].clean[:3].tolist())
    windows = list(runs.windows(pairs, 10_000, whole=whole))
    assert ["".join(pair.prompt for pair in window.pairs) for window in windows] == ["0", "3", "1", "24"]
    for window in windows:
        logits = runs.logits(window, window.clean)
        for row, pair in enumerate(window.pairs):
            expected = model(pair.clean[None]).logits[0, -1].detach()
            torch.testing.assert_close(logits[row], expected, atol=2e-5, rtol=1e-4)


def test_windows_that_long_prompts_begin_early_are_bounded_too():
    model, pairs = long_and_short()
    sizes = [window.clean.shape[:2] for window in Runs(wrap(model)).windows(pairs[-2:], 25)]
    assert sizes == [(1, 13), (1, 17)]


def test_a_window_of_prompts_that_turn_otherwise_is_refused():
    model, pairs = long_and_short()
    with pytest.raises(ModelError, match="prompts of up to 12 tokens and longer ones cannot be in one window"):
        Runs(wrap(model)).window(pairs)


def test_gradients_are_those_of_autograd_and_no_parameter_gets_one():
    model = tiny_model("llama")
    runs, shape = runs_of(model)
    window = runs.window(random_pairs(runs, 2))
    site = sites_of(shape, ("z", "post"))[-1]
    values, slopes = runs.gradients(window, window.clean, [site])
    step = 1e-2 * torch.randn(values[site].shape, generator=torch.Generator().manual_seed(0))

    def moved(scale):
        def hook(tensor, hook):
            return tensor + scale * step.reshape(tensor.shape)

        return window.difference(runs.logits(window, window.clean, [(site.name, hook)])).detach()

    expected = (moved(0.5) - moved(-0.5)).double()
    torch.testing.assert_close((slopes[site] * step).flatten(1).sum(1).double(), expected, atol=1e-5, rtol=1e-2)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_windows_are_bounded_and_in_order():
    runs, _ = runs_of(tiny_model("llama"))
    pairs = random_pairs(runs, 5)
    # Of 9, 11, 13, 15 and 17 tokens, which differ from the fourth on.
    for most, whole, expected in (
        (20, False, ["01", "2", "3", "4"]),
        (30, False, ["012", "34"]),
        (20, True, ["0", "1", "2", "3", "4"]),
        (30, True, ["01", "23", "4"]),
    ):
        windows = list(runs.windows(pairs, most, whole=whole))
        assert ["".join(pair.prompt for pair in window.pairs) for window in windows] == expected
        assert all(len(window.pairs) == 1 or window.clean.shape[:2].numel() <= most for window in windows)


@pytest.mark.parametrize("family", FAMILIES)
def test_precise_runs_of_a_half_precision_model_are_those_of_its_float32_copy(family):
    half = tiny_model(family, dtype=torch.bfloat16)
    runs, _ = runs_of(half, precise=True)
    exact, _ = runs_of(tiny_model(family, dtype=torch.bfloat16).float())
    pairs = random_pairs(exact, 2)
    found, expected = runs.window(pairs), exact.window(pairs)
    torch.testing.assert_close(
        runs.logits(found, found.corrupted), exact.logits(expected, expected.corrupted), atol=1e-5, rtol=1e-4
    )
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    coarse = Runs(wrap(half)).window(pairs)
    difference = Runs(wrap(half)).logits(coarse, coarse.corrupted) - exact.logits(expected, expected.corrupted)
    assert difference.abs().max() > 1e-3


def test_sites_of_grouped_heads_have_the_size_of_their_group():
    shape = ModelShape("llama", n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, d_mlp=64, d_model=32)
    assert [site.size for site in sites_of(shape, ("z", "v", "post"))] == [4, 2, 64] * 2


def test_what_windows_share_is_run_within_the_bound_too():
    runs, _ = runs_of(tiny_model("llama"))
    pairs = random_pairs(runs, 3, length=20, first=18)
    sizes = []
    plain = runs._forward
    runs._forward = lambda tokens, *rest: (sizes.append(tokens.numel()), plain(tokens, *rest))[1]
    whole, parts = runs.window(pairs), runs.window(pairs, max_tokens=12)
    assert sizes[0] == 3 * 18
    assert sizes[1:] == [12] * 4 + [6]
    torch.testing.assert_close(runs.logits(parts, parts.corrupted), runs.logits(whole, whole.corrupted))


def test_the_mask_is_that_of_the_windows_positions():
    runs, _ = runs_of(tiny_model("llama"))
    for whole in (False, True):
        window = runs.window(random_pairs(runs, 3), whole=whole)
        assert window.mask.shape == window.clean.shape[:2]
        assert window.mask.sum(1).tolist() == ([9, 11, 13] if whole else [9, 10, 10])


def test_prompts_about_other_things_have_no_new_answer():
    runs, _ = runs_of(planted())
    window = runs.window(random_pairs(runs, 2))
    window.new.fill_(-1)
    with pytest.raises(ScorerError, match="prompts about other things have no new answer"):
        window.new_difference(runs.logits(window, window.clean))
