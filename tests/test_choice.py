"""What an edit scales, told from scores without an edit."""

from dataclasses import replace

import pytest

from peft_surgical.choice import check_choice, choose, ranked
from peft_surgical.errors import ScorerError, SelectionError
from peft_surgical.localization import localize
from peft_surgical.selection import Selection
from tests.localizing import capital, planted, word_tokenizer

FREE = {"granularity": "component", "neurons": None, "top": None, "heads": None, "mlps": None, "budget": None}


@pytest.fixture(scope="module")
def model():
    return planted()


@pytest.fixture(scope="module")
def localization(model):
    return localize(model, word_tokenizer(), capital(), ["attribution", "lookup"], progress=False)


@pytest.mark.parametrize(
    ("scorers", "first"),
    [(None, "attribution"), (["lookup"], "lookup"), ("lookup", "lookup"), (["attribution", "random"], "attribution")],
)
def test_the_first_scorer_that_is_asked_for_ranks(scorers, first, model, localization):
    found = ranked(localization, model, capital(), scorers)
    assert found.scorers[0] == first
    assert set(found.scorers) == {"attribution", "lookup"}
    assert found.top(3) == localization.top(3, by=first)
    assert localization.scorers == ("attribution", "lookup")


@pytest.mark.parametrize(
    ("scorers", "error", "words"),
    [
        (["random"], SelectionError, "the localization has no scores by 'random', only by attribution, lookup"),
        (["lokup"], ScorerError, "there is no scorer 'lokup'"),
        ([], ScorerError, "name at least one scorer"),
    ],
)
def test_a_scorer_that_did_not_score_cannot_rank(scorers, error, words, model, localization):
    with pytest.raises(error, match=words):
        ranked(localization, model, capital(), scorers)


def test_a_scorer_that_failed_ranks_nothing_and_says_so(model, localization):
    failed = replace(localization, errors={"random": "It broke."})
    found = ranked(failed, model, capital(), ["random"])
    assert found.scorers[0] == "random"
    with pytest.raises(SelectionError, match="the scorer 'random' failed, so nothing ranks the components"):
        choose(found, None, projections=("z", "in"), **FREE)


def test_heads_may_be_limited_where_neurons_of_the_others_are_meant():
    some = {**FREE, "granularity": "neuron", "neurons": 3, "heads": 2}
    for limits in ({"top": 5}, {"mlps": 1}):
        check_choice(None, **{**some, **limits})
    for limits in ({}, {"budget": 99}):
        with pytest.raises(SelectionError, match="no MLP is selected, and only MLPs have neurons"):
            check_choice(None, **{**some, **limits})


def test_neurons_at_the_residual_stream_are_refused_by_the_name_of_their_mlp():
    some = Selection(("L1.mlp", "L2.mlp"), neurons={"L2.mlp": ((0, 2),)})
    with pytest.raises(SelectionError, match=r"the projection 'in' of L2\.mlp is the residual stream"):
        check_choice(some, projections=["in"], **FREE)


def test_neurons_are_refused_with_whole_modules_before_there_is_a_model():
    some = Selection(("L1.mlp",), neurons={"L1.mlp": ((0, 2),)})
    with pytest.raises(SelectionError, match="the granularity 'module' scales whole modules, and neurons are chosen"):
        check_choice(some, **{**FREE, "granularity": "module"})
    with pytest.raises(SelectionError, match="a budget and the granularity 'module' exclude each other"):
        check_choice(None, **{**FREE, "granularity": "module", "budget": 0})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"granularity": "layer"}, "the granularity must be one of component, module, neuron, got 'layer'"),
        ({"projections": ("z", "inn")}, "the projection 'inn' is not one of z, v, q, k"),
    ],
)
def test_what_there_is_not_is_told_where_only_the_scores_say_what_is_scaled(options, words):
    with pytest.raises(SelectionError, match=words):
        check_choice(None, **{**FREE, "top": 2, **options})


def test_a_budget_counts_the_projections_alone_and_whole_modules_are_chosen_as_if_there_were_none(localization):
    chosen = choose(localization, None, projections=("z",), **{**FREE, "budget": 12 * localization.shape.d_head})
    assert chosen.components == localization.top(heads=12).components
    # Heads that share their keys are chosen all the same.
    grouped = replace(localization, shape=replace(localization.shape, n_kv_heads=1))
    whole = {**FREE, "granularity": "module", "heads": 12}
    assert choose(grouped, None, projections=("k",), **whole) == grouped.top(heads=12)


def test_without_limits_all_mlps_are_chosen_in_the_order_of_their_scores(localization):
    chosen = choose(localization, None, projections=("z", "in"), **FREE)
    layers = localization.shape.n_layers
    assert sorted(chosen.components) == sorted(f"L{layer}.mlp" for layer in range(layers))
    assert chosen == localization.top(mlps=layers)


def test_what_is_given_is_scaled_and_only_its_neurons_are_chosen(localization):
    given = Selection.from_components("L1.head.2", "L2.mlp")
    assert choose(localization, given, projections=("z", "in"), **FREE) == given
    some = {**FREE, "granularity": "neuron", "neurons": 2}
    chosen = choose(localization, given, projections=("z", "post", "pre"), **some)
    assert chosen.components == given.components
    assert sum(stop - start for start, stop in chosen.neurons["L2.mlp"]) == 2
    with pytest.raises(SelectionError, match=r"no MLP is selected \(L1\.head\.2\)"):
        choose(localization, Selection.from_components("L1.head.2"), projections=("z",), **some)
