from types import SimpleNamespace

import pytest

from peft_surgical.errors import ScorerError
from peft_surgical.localizing.runs import sites_of
from peft_surgical.scorers.consensus import consensus
from peft_surgical.sites import ModelShape


def asked(tables, of, n_layers=2):
    """What `consensus` makes of tables that are given: a model of two heads and an MLP a layer."""
    shape = ModelShape("llama", n_layers=n_layers, n_heads=2, n_kv_heads=2, d_head=4, d_mlp=8, d_model=8)
    context = SimpleNamespace(
        shape=shape,
        sites=sites_of(shape, ("z", "post")),
        notes={},
        score=lambda name: SimpleNamespace(components=tables[name]),
    )
    found = consensus(context, of=of)
    return {f"L{site.layer}.{site.projection}": values.tolist() for site, values in found.items()}, context.notes


def test_a_consensus_ranks_ties_by_their_mean_and_what_is_left_out_last():
    one = {"L0.head.0": 3.0, "L0.head.1": 0.0, "L1.head.0": 0.0, "L1.head.1": 0.0, "L0.mlp": 1.0, "L1.mlp": 2.0}
    # Leaves layer 0 out.
    two = {"L1.head.0": 5.0, "L1.head.1": 4.0, "L1.mlp": -1.0}
    found, notes = asked({"one": one, "two": two}, "one+two")
    # Of heads: one ranks them 1, 3, 3, 3 and two 3.5, 3.5, 1, 2; of MLPs: 2, 1 and 2, 1.
    expected = {"L0.z": [7 / 12, 1 / 4], "L1.z": [2 / 3, 1 / 2], "L0.post": [0.0], "L1.post": [1.0]}
    assert found.keys() == expected.keys()
    for site, values in expected.items():
        assert found[site] == pytest.approx(values), site
    assert notes["ranks"]["L1.head.1"] == {"one": 3.0, "two": 2.0}
    assert notes["ranks"]["L0.head.0"] == {"one": 1.0, "two": 3.5}


def test_exact_zeros_do_not_favour_early_layers():
    zeros = dict.fromkeys(("L0.head.0", "L0.head.1", "L0.mlp", "L1.head.0", "L1.head.1", "L1.mlp"), 0.0)
    found, _ = asked({"one": zeros, "two": {**zeros, "L1.mlp": 1.0}}, "one+two")
    assert found == {"L0.z": [0.5, 0.5], "L1.z": [0.5, 0.5], "L0.post": [0.25], "L1.post": [0.75]}


def test_a_component_that_is_alone_of_its_kind_is_in_the_first_place():
    one = {"L0.head.0": 1.0, "L0.head.1": 2.0, "L0.mlp": 3.0}
    found, _ = asked({"one": one, "two": one}, "one+two", n_layers=1)
    assert found == {"L0.z": [0.0, 1.0], "L0.post": [1.0]}


def test_a_consensus_leaves_out_what_every_scorer_leaves_out():
    found, notes = asked({"one": {"L1.mlp": 1.0}, "two": {"L0.mlp": 2.0, "L1.mlp": 3.0}}, "one+two")
    assert found == {"L0.post": [0.0], "L1.post": [1.0]}
    assert notes["ranks"].keys() == {"L0.mlp", "L1.mlp"}


@pytest.mark.parametrize("of", ["random", "random+random", "random+consensus", ""])
def test_a_consensus_of_less_than_two_others_is_refused(of):
    with pytest.raises(ScorerError, match=r"two other scorers or more, each once, joined by \+, not"):
        asked({}, of)
