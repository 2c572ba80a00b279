"""Selections taken together, against the plain way and against what they must be."""

from types import SimpleNamespace

import pytest
import torch

from peft_surgical.errors import ModelError
from peft_surgical.localizing.circuits import kept, random_selections
from peft_surgical.localizing.effects import exact_drops
from peft_surgical.localizing.patching import component_of, targets_of
from peft_surgical.localizing.runs import Runs, sites_of
from peft_surgical.selection import Selection
from peft_surgical.sites import ModelShape, components

from .localizing import random_pairs, runs_of
from .tiny import FAMILIES, tiny_model
from .untold import teach, untold_model

SITES = ("z", "post")


def everything(shape):
    return Selection(tuple(str(component) for component in components(shape)), shape)


def by_hand(runs, shape, pair, selection):
    """The plain way: whole prompts, one `run_with_hooks`; what is left where the selection is taken."""
    sites = sites_of(shape, SITES)
    _, cache = runs.bridge.run_with_cache(pair.corrupted[None], names_filter=[site.name for site in sites])

    def take(site):
        def hook(tensor, hook):
            source = cache[site.name].reshape(tensor.shape)
            for name in selection.components:
                layer, _, part = name[1:].partition(".")
                if int(layer) != site.layer or part.startswith("head") != site.of_heads:
                    continue
                if site.of_heads:
                    tensor[:, :, int(part[5:])] = source[:, :, int(part[5:])]
                    continue
                for start, stop in (selection.neurons or {}).get(name, ((0, site.size),)):
                    tensor[..., start:stop] = source[..., start:stop]
            return tensor

        return hook

    def read(logits):
        return float(logits[pair.old] - logits[pair.rival])

    hooks = [(site.name, take(site)) for site in sites]
    clean, corrupted = (
        read(runs.bridge.original_model(ids[None]).logits[0, -1]) for ids in (pair.clean, pair.corrupted)
    )
    return (read(runs.bridge.run_with_hooks(pair.clean[None], fwd_hooks=hooks)[0, -1]) - corrupted) / (
        clean - corrupted
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_all_components_are_the_corrupted_run_and_none_the_clean_run_bit_for_bit(family):
    runs, shape = runs_of(tiny_model(family))
    pairs = random_pairs(runs, 3)
    # Where the last token is the same, nothing but components carries what differs.
    assert all(int(pair.clean[-1]) == int(pair.corrupted[-1]) for pair in pairs)
    # Beside another circuit, of whose rows it must be none.
    circuits = [Selection.from_components("L1.mlp"), everything(shape)]
    alone, without = kept(runs, shape, pairs, circuits, 10_000)
    assert alone[:, 1].tolist() == [1.0] * 3
    totals = torch.tensor([pair.differences[0] - pair.differences[1] for pair in pairs])
    assert (without[:, 1] * totals).abs().max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_one_component_is_what_exact_drops_say(family):
    runs, shape = runs_of(tiny_model(family))
    pairs = random_pairs(runs, 2)
    context = SimpleNamespace(precise=runs, max_tokens=10_000, track=lambda items, total: items)
    targets = targets_of(sites_of(shape, SITES))
    drops, totals = exact_drops(context, pairs, targets)
    ones = [Selection.from_components(component_of(target, shape)) for target in targets]
    _, without = kept(runs, shape, pairs, ones, 10_000)
    found = (1 - without) * totals[:, None].double()
    torch.testing.assert_close(found, drops.double(), atol=2e-5, rtol=1e-4)
    assert drops.abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_several_together_and_all_else_are_as_by_hand(family):
    runs, shape = runs_of(tiny_model(family))
    pairs = random_pairs(runs, 2)
    chosen = Selection.from_components("L2.head.1", "L1.mlp", "L0.head.3", "L2.mlp")
    others = tuple(str(component) for component in components(shape) if str(component) not in chosen.components)
    alone, without = kept(runs, shape, pairs, [chosen], 10_000)
    with torch.no_grad():
        for row, pair in enumerate(pairs):
            assert float(without[row, 0]) == pytest.approx(by_hand(runs, shape, pair, chosen), abs=1e-3)
            expected = by_hand(runs, shape, pair, Selection(others))
            assert float(alone[row, 0]) == pytest.approx(expected, abs=1e-3)


def test_of_an_mlp_only_the_neurons_that_are_meant():
    runs, shape = runs_of(tiny_model("llama"))
    [pair] = random_pairs(runs, 1)
    some = Selection(("L1.mlp", "L0.mlp"), shape, {"L1.mlp": ((3, 10), (20, 21))})
    rest = Selection(
        ("L1.mlp", *(f"L{layer}.head.{head}" for layer in range(3) for head in range(4)), "L2.mlp"),
        shape,
        {"L1.mlp": ((0, 3), (10, 20), (21, 48))},
    )
    alone, without = kept(runs, shape, [pair], [some, rest], 10_000)
    with torch.no_grad():
        assert float(without[0, 0]) == pytest.approx(by_hand(runs, shape, pair, some), abs=1e-3)
    # One is the other's complement. How the same products round depends on how rows are split over torch's threads.
    torch.testing.assert_close(alone[0], without[0].flip(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("max_tokens", [1, 30, 100])
def test_the_size_of_a_pass_and_what_else_is_in_it_do_not_matter(max_tokens):
    runs, shape = runs_of(tiny_model("qwen3"))
    pairs = random_pairs(runs, 2)
    chosen = Selection.from_components("L2.head.1", "L1.mlp")
    circuits = [chosen, *random_selections(chosen, shape, 4, 0)]
    expected = [kept(runs, shape, pairs, [one], 10_000) for one in circuits]
    for found, wanted in zip(kept(runs, shape, pairs, circuits, max_tokens), zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(found, torch.cat(wanted, 1), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("model_type", ["falcon", "gpt_bigcode"])
def test_a_model_to_which_no_rows_can_be_added_on_the_way_is_measured_too(model_type, monkeypatch):
    teach(monkeypatch, model_type)
    runs, shape = runs_of(untold_model(model_type))
    pairs = random_pairs(runs, 2)
    chosen = Selection.from_components("L1.head.1", "L1.mlp")
    _, without = kept(runs, shape, pairs, [chosen], 10_000)
    with torch.no_grad():
        for row, pair in enumerate(pairs):
            assert float(without[row, 0]) == pytest.approx(by_hand(runs, shape, pair, chosen), abs=1e-3)


def test_no_layer_is_computed_twice_and_none_for_nobody():
    model = tiny_model("llama")
    runs, shape = runs_of(model)
    [pair] = random_pairs(runs, 1)
    rows, read = [], []
    inner = runs.bridge.original_model
    late, last = Selection.from_components("L2.mlp"), Selection.from_components("L2.head.0", "L1.mlp")
    for layer in inner.model.layers:
        layer.register_forward_pre_hook(lambda m, args: rows.append(tuple(args[0].shape[:2])))
    inner.lm_head.register_forward_pre_hook(lambda m, args: read.append(args[0].shape[:-1].numel()))
    # The last is given twice, in another order, and everything leaves no complement to run.
    twice = Selection.from_components("L1.mlp", "L2.head.0")
    kept(runs, shape, [pair], [late, last, twice, everything(shape)], 10_000)
    changed = len(pair.clean) - 3
    # The prefix, the corrupted run, and then the clean row, beside it two complements and everything from the first
    # layer on, one from the second and one from the third.
    assert rows[:3] == [(1, 3)] * 3
    assert rows[3:6] == [(1, changed)] * 3
    assert rows[6:] == [(1, changed), (4, changed), (5, changed)]
    assert read[-2:] == [1, 6]


def test_logits_that_are_not_finite_are_refused(monkeypatch):
    runs, shape = runs_of(tiny_model("llama"))
    pairs = random_pairs(runs, 1)
    plain = Runs.logits

    def broken(self, window, embeddings, hooks=()):
        return plain(self, window, embeddings, hooks) * (float("nan") if len(hooks) > 6 else 1)

    monkeypatch.setattr(Runs, "logits", broken)
    with pytest.raises(ModelError, match="answers '0', patched, with logits that are not finite"):
        kept(runs, shape, pairs, [Selection.from_components("L0.mlp")], 10_000)


def test_a_selection_that_is_alone_of_its_size_has_no_random_ones_beside_it():
    shape = ModelShape("llama", n_layers=2, n_heads=2, n_kv_heads=2, d_head=8, d_mlp=20, d_model=32)
    mlps, heads = ("L0.mlp", "L1.mlp"), tuple(f"L{layer}.head.{head}" for layer in (0, 1) for head in (0, 1))
    for alone in (mlps, heads, (*mlps, *heads)):
        assert random_selections(Selection(alone, shape), shape, 3, 0) == []
    some = Selection(mlps, shape, {"L0.mlp": ((0, 3),)})
    for other in (Selection(mlps[:1], shape), Selection((*mlps, heads[0]), shape), some):
        assert len(random_selections(other, shape, 3, 0)) == 3


def test_random_selections_are_of_the_same_size_and_kinds():
    shape = ModelShape("llama", n_layers=6, n_heads=4, n_kv_heads=2, d_head=8, d_mlp=20, d_model=32)
    chosen = Selection(("L1.mlp", "L0.head.3", "L2.mlp", "L5.head.0"), shape, {"L2.mlp": ((0, 3), (7, 9))})
    found = random_selections(chosen, shape, 200, 3)
    for one in found:
        assert (len(one.heads), len(one.mlps)) == (2, 2)
        [ranges] = one.neurons.values()
        assert sum(stop - start for start, stop in ranges) == 5
    drawn = {
        i for one in found for ranges in one.neurons.values() for start, stop in ranges for i in range(start, stop)
    }
    assert drawn == set(range(shape.d_mlp))
    # Every component comes, the selection's own too.
    assert {name for one in found for name in one.components} == {str(component) for component in components(shape)}
    assert found == random_selections(chosen, shape, 200, 3)
    assert found != random_selections(chosen, shape, 200, 4)
    assert found[:5] == random_selections(chosen, shape, 5, 3)
    assert all(one.neurons is None for one in random_selections(Selection.from_components("L1.mlp"), shape, 3, 0))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    random_selections(chosen, shape, 5, 3)
    assert torch.equal(torch.get_rng_state(), state)
