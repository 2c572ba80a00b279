import warnings
from types import SimpleNamespace

import pytest
import torch

from peft_surgical.errors import ScorerError
from peft_surgical.localization import localize
from peft_surgical.localizing.effects import exact_drops
from peft_surgical.localizing.runs import Runs, sites_of
from peft_surgical.scorers.specificity import as_shares, control_shares
from peft_surgical.sites import Component, projection_slices

from .localizing import HEAD, MLP, OTHER, capital, fact_pairs, localized, planted, runs_of, without, word_tokenizer
from .tiny import FAMILIES, tiny_model


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


CAUSAL = [
    "logit_drop",
    "logit_drop:measure=old",
    "logit_drop:measure=new",
    "logit_drop:ablation=zero",
    "logit_drop:ablation=mean",
    "logit_drop:sites=v+pre",
    "attribution",
    "attribution:steps=5",
    "specificity",
    "verified",
    "consensus:of=logit_drop+attribution",
]


@pytest.mark.parametrize("scorer", CAUSAL)
@pytest.mark.parametrize("contrast", [["italy", "spain", "japan"], ["new zealand"]], ids=["swap", "noise"])
def test_causal_scorers_put_the_planted_components_first(tokenizer, scorer, contrast):
    if scorer == "specificity" and contrast == ["new zealand"]:
        pytest.skip("no control-like prompt of this fact depends on the subject")
    loc = localized(planted(), tokenizer, scorer, fact=capital(contrast=contrast))
    assert set(loc.top(2).components) == {HEAD, MLP}
    third = loc.top(3).components[2]
    assert min(loc.scores[scorer][HEAD], loc.scores[scorer][MLP]) > loc.scores[scorer][third]


def test_exact_scores_of_the_planted_model_are_what_the_corruption_takes(tokenizer):
    # Head and MLP are in one chain: taking either breaks all of it.
    loc = localized(planted(), tokenizer, "logit_drop:measure=old", fact=capital(contrast=["spain"]))
    scores = loc.scores["logit_drop:measure=old"]
    assert scores[HEAD] == pytest.approx(scores[MLP], rel=0.05)


def test_specificity_tells_a_general_component_from_a_specific_one(tokenizer):
    loc = localized(planted(), tokenizer, "specificity", "logit_drop", "verified")
    assert loc.scores["logit_drop"][OTHER] > 0.2 * loc.scores["logit_drop"][HEAD]
    assert loc.scores["specificity"][OTHER] < 0 < 0.5 < loc.scores["specificity"][HEAD]
    assert loc.scores["verified"][OTHER] == 0
    assert loc.scores["verified"][HEAD] == pytest.approx(loc.scores["logit_drop"][HEAD], abs=1e-4)


@pytest.mark.parametrize(
    ("many", "measured"),
    [(4, [0, 1, 2, 3]), (6, [0, 1, 2, 3, 4, 5]), (11, [0, 1, 3, 5, 7, 9]), (13, [0, 2, 4, 6, 8, 10])],
)
def test_verified_measures_on_evenly_spaced_prompts(tokenizer, many, measured, monkeypatch):
    prompts = ["please " * number + "name the capital of france" for number in range(many)]
    seen = []

    def spy(context, pairs, targets):
        seen.append([prompts.index(pair.prompt) for pair in pairs])
        return exact_drops(context, pairs, targets)

    monkeypatch.setattr("peft_surgical.scorers.verified.exact_drops", spy)
    localized(planted(), tokenizer, "verified", fact=capital(prompts=prompts))
    assert seen == [measured]


def test_verified_says_when_it_could_not_filter(tokenizer):
    loc = localized(planted(), tokenizer, "verified", fact=without("contrast", "retain"))
    assert loc.tables["verified"].notes["filter"].startswith("none: specificity needs")
    # First what was asked for, whatever that asked before.
    assert [*loc.tables] == ["verified", "attribution"]
    assert set(loc.top(2).components) == {HEAD, MLP}


def test_verified_measures_candidates_and_early_mlps_only(tokenizer):
    loc = localized(planted(), tokenizer, "verified:candidates=2")
    assert set(loc.tables["verified:candidates=2"].notes["measured"]) == {
        *loc.top(2, by="attribution").components,
        "L0.mlp",
    }
    with pytest.raises(ScorerError, match="at least 1"):
        run_failing(planted(), tokenizer, "verified:candidates=0")


def test_verified_measures_the_key_value_heads_that_attribution_finds(tokenizer):
    # Two key/value heads a layer, each read by two query heads, which share its score.
    attribution, verified = "attribution:sites=v", "verified:sites=v,candidates=3"
    fact = without("contrast", "retain")
    loc = localized(tiny_model("llama"), tokenizer, verified, attribution, "logit_drop:sites=v", fact=fact)
    best = loc.top(6, by=attribution).components
    assert "L1.head.2" in best
    exact = loc.scores["logit_drop:sites=v"]
    assert loc.scores[verified] == pytest.approx(
        {name: exact[name] if name in best else 0 for name in exact}, abs=1e-5
    )
    assert loc.tables[verified].notes["measured"].keys() == {name for name in best if int(name[-1]) % 2 == 0}


@pytest.mark.parametrize(("layers", "early"), [(4, 1), (5, 2)])
def test_the_early_mlps_are_those_of_the_first_quarter_of_the_layers(tokenizer, layers, early):
    model = tiny_model("llama", num_hidden_layers=layers)
    loc = localized(model, tokenizer, "verified:candidates=1", fact=without("contrast", "retain"))
    expected = {*loc.top(1, by="attribution").components, *(f"L{layer}.mlp" for layer in range(early))}
    assert loc.tables["verified:candidates=1"].notes["measured"].keys() == expected


@pytest.mark.parametrize(("margin", "kept"), [(0.29, True), (0.31, False)])
def test_the_margin_is_counted_in_the_share_itself(tokenizer, margin, kept, monkeypatch):
    # Head 0 of each layer holds the answer up, its MLP down; three tenths of either are of the fact alone.
    drops = torch.tensor([[2.0, 0.0, 0.0, 0.0, -1.0] * 3])
    monkeypatch.setattr("peft_surgical.scorers.verified.exact_drops", lambda *_: (drops, torch.tensor([4.0])))
    monkeypatch.setattr("peft_surgical.scorers.verified.control_shares", lambda *_: 0.7 * drops[0] / 4)
    name = f"verified:margin={margin}"
    scores = localized(planted(), tokenizer, name).scores[name]
    assert {component for component, score in scores.items() if score} == (
        {f"L{layer}.head.0" for layer in range(3)} if kept else set()
    )


@pytest.mark.parametrize("margin", ["nan", "inf"])
def test_a_margin_that_is_no_number_is_refused(tokenizer, margin):
    with pytest.raises(ScorerError, match=f"margin must be a finite number, not {margin}"):
        run_failing(planted(), tokenizer, f"verified:margin={margin}")


MEASURES = {
    "old": lambda logits, pair: logits[pair.old],
    "new": lambda logits, pair: logits[pair.old] - logits[pair.new],
    "difference": lambda logits, pair: logits[pair.old] - logits[pair.rival],
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("ablation", ["zero", "mean"])
@torch.no_grad()
def test_ablations_worked_by_hand(tokenizer, ablation, measure):
    name = f"logit_drop:measure={measure},ablation={ablation}"
    loc = localized(tiny_model("llama"), tokenizer, name)
    runs, shape = runs_of(tiny_model("llama"))
    model, pairs = tiny_model("llama"), fact_pairs(runs, capital(), tokenizer)
    for component, projection in ((Component("head", 1, 2), "z"), (Component("mlp", 1), "post")):
        piece = projection_slices(shape, component, projection)
        module, seen = model.get_submodule(piece.module), []
        handle = module.register_forward_pre_hook(lambda m, args: seen.append(args[0][0]))  # noqa: B023
        before = [float(MEASURES[measure](model(pair.clean[None]).logits[0, -1], pair)) for pair in pairs]
        handle.remove()
        # Over all positions of all prompts, which differ in length.
        mean = torch.cat(seen).mean(0) if ablation == "mean" else torch.zeros_like(seen[0][0])

        def replaced(module, args):
            value = args[0].clone()
            value[..., piece.start : piece.stop] = mean[piece.start : piece.stop]  # noqa: B023
            return (value,)

        handle = module.register_forward_pre_hook(replaced)
        after = [float(MEASURES[measure](model(pair.clean[None]).logits[0, -1], pair)) for pair in pairs]
        handle.remove()
        expected = sum(a - b for a, b in zip(before, after, strict=True)) / len(pairs)
        assert abs(expected) > 1e-3
        assert loc.scores[name][str(component)] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def run_failing(model, tokenizer, *scorers, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return localize(model, tokenizer, kwargs.pop("fact", capital()), list(scorers), progress=False, **kwargs)


def test_specificity_needs_control_like_prompts(tokenizer):
    with pytest.raises(ScorerError, match="needs the fact's `contrast`"):
        run_failing(planted(), tokenizer, "specificity", fact=without("contrast", "retain"))


def test_shares_worked_by_hand():
    drops = torch.tensor([[4.0, 1.0], [2.0, -1.0]])
    assert as_shares(drops, torch.tensor([7.0, 5.0])).tolist() == [0.5, 0.0]
    with pytest.raises(ScorerError, match="does not lower"):
        as_shares(drops, torch.tensor([-7.0, 5.0]))


def test_shares_on_control_like_prompts_worked_by_hand(monkeypatch):
    # The answer to the second swap is not lowered; each kind counts as one prompt.
    found = {
        "swap": (torch.tensor([[2.0, 0.0], [9.0, 9.0]]), torch.tensor([4.0, -1.0])),
        "mean": (torch.tensor([[1.0, 1.0]]), torch.tensor([2.0])),
    }
    module = "peft_surgical.scorers.specificity.exact_drops"
    monkeypatch.setattr(module, lambda context, pairs, targets: found[pairs[0].method])
    pairs = [SimpleNamespace(method=method) for method in ("swap", "mean", "swap")]
    assert control_shares(SimpleNamespace(controls=lambda: pairs), []).tolist() == [0.5, 0.25]
    assert control_shares(SimpleNamespace(controls=lambda: pairs[1:2]), []).tolist() == [0.5, 0.5]
    found["mean"] = (torch.ones(1, 2), torch.zeros(1))
    with pytest.raises(ScorerError, match="changes the answer to none of the contrast and retain prompts"):
        control_shares(SimpleNamespace(controls=lambda: pairs[1:2]), [])


def linear_model():
    """GPT-2, its logits linear in every activation: even attention, no activation function, norms that only center."""
    model = tiny_model("gpt2", activation_function="linear", layer_norm_epsilon=1e8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" in name:
                parameter.fill_(1e4 if name.endswith("weight") else 0.0)
            if "c_attn" in name:
                parameter[..., :64] = 0
    return model


@pytest.mark.parametrize("scorer", ["attribution", "attribution:steps=3"])
@pytest.mark.parametrize("sites", ["z+post", "v+pre"])
def test_attribution_is_exact_on_a_linear_model(tokenizer, scorer, sites):
    estimate = f"{scorer}{',' if ':' in scorer else ':'}sites={sites}"
    loc = localized(linear_model(), tokenizer, f"logit_drop:sites={sites}", estimate)
    exact, estimated = (torch.tensor(list(loc.scores[name].values())) for name in loc.scorers)
    assert exact.abs().max() > 0.1
    torch.testing.assert_close(estimated, exact, atol=2e-4 * float(exact.abs().max()), rtol=1e-3)


def test_integrated_attribution_is_the_gradient_along_the_line_between_the_runs(tokenizer):
    model, fact = tiny_model("llama"), capital(prompts=["what is the capital of france ?"])
    # Beside the other, of which it must take nothing.
    loc = localized(model, tokenizer, "attribution", "attribution:steps=2", fact=fact)
    runs, shape = runs_of(model)
    [pair] = fact_pairs(runs, fact, tokenizer)
    window, site = runs.window([pair]), sites_of(shape, ("z",))[1]

    def captured(embeddings):
        return runs.capture(window, embeddings, [site])[0][site]

    change = (captured(window.clean) - captured(window.corrupted)).detach()
    slopes = [
        runs.gradients(window, window.corrupted + share * (window.clean - window.corrupted), [site])[1][site]
        for share in (0.25, 0.75)
    ]
    expected = (change * (slopes[0] + slopes[1]) / 2).sum((0, 1, 3))
    found = [loc.scores["attribution:steps=2"][f"L1.head.{head}"] for head in range(4)]
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-5, rtol=1e-4)


def test_the_neurons_of_an_mlp_add_up_to_its_attribution(tokenizer):
    loc = localized(planted(), tokenizer, "attribution")
    table = loc.tables["attribution"]
    assert set(table.neurons) == {"L0.mlp", "L1.mlp", "L2.mlp"}
    assert table.neurons["L2.mlp"].sum() == pytest.approx(table.components["L2.mlp"], rel=1e-5)
    assert loc.top(1, mlps=1, neurons=1).neurons == {"L2.mlp": ((5, 6),)}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_norms_are_those_of_the_weights(tokenizer, family):
    model = tiny_model(family)
    fact = capital(prompts=["what is the capital of france ?"])
    loc = localized(model, tokenizer, "gradient_norm", "gradient_norm:sites=v+pre", fact=fact)
    runs, shape = runs_of(tiny_model(family))
    [pair] = fact_pairs(runs, fact, tokenizer)
    loss = -torch.log_softmax(model(pair.clean[None]).logits[0, -1].float(), -1)[pair.old]
    loss.backward()
    for scorer, of_head, of_mlp in (("gradient_norm", "z", "post"), ("gradient_norm:sites=v+pre", "v", "pre")):
        for name, score in loc.scores[scorer].items():
            component = Component.parse(name)
            piece = projection_slices(shape, component, of_head if component.kind == "head" else of_mlp)
            gradient = gradient_in_out(model, piece.module)
            part = (
                gradient[piece.start : piece.stop] if piece.side == "input" else gradient[:, piece.start : piece.stop]
            )
            assert score == pytest.approx(float(part.norm()), rel=1e-3, abs=1e-6), (name, scorer)
    neurons = loc.tables["gradient_norm"].neurons["L1.mlp"]
    down = gradient_in_out(model, projection_slices(shape, Component("mlp", 1), "post").module)
    torch.testing.assert_close(torch.tensor(neurons), down.norm(dim=1), atol=1e-5, rtol=1e-3)
    for module, norm in loc.tables["gradient_norm"].notes["weight_matrices"].items():
        assert norm == pytest.approx(float(gradient_in_out(model, module).norm()), rel=1e-3, abs=1e-5), module


def doubled_in_place(module, args, output):
    output *= 2


@pytest.mark.parametrize(
    ("family", "heads", "mlp"),
    [
        ("llama", "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj"),
        ("gpt2", "transformer.h.1.attn.c_proj", "transformer.h.1.mlp.c_proj"),
        ("opt", "model.decoder.layers.1.self_attn.out_proj", "model.decoder.layers.1.fc2"),
    ],
)
def test_gradient_norms_are_those_of_weights_whose_module_has_hooks(tokenizer, family, heads, mlp):
    model, fact = tiny_model(family), capital(prompts=["what is the capital of france ?"])
    for name in (heads, mlp):
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda module, args: (3 * args[0] + 0.5, *args[1:]))
        module.register_forward_hook(doubled_in_place)
    loc = localized(model, tokenizer, "gradient_norm", fact=fact)
    [pair] = fact_pairs(runs_of(model)[0], fact, tokenizer)
    (-torch.log_softmax(model(pair.clean[None]).logits[0, -1].float(), -1)[pair.old]).backward()
    expected = gradient_in_out(model, heads).unflatten(0, (4, -1)).flatten(1).norm(dim=1)
    torch.testing.assert_close(torch.tensor(loc.head_scores()[1]).float(), expected, rtol=1e-3, atol=1e-6)
    assert loc.scores["gradient_norm"]["L1.mlp"] == pytest.approx(float(gradient_in_out(model, mlp).norm()), rel=1e-3)


def gradient_in_out(model, name):
    module = model.get_submodule(name)
    return module.weight.grad if type(module).__name__ == "Conv1D" else module.weight.grad.T


def test_activation_magnitude_is_the_mean_size_at_the_last_position(tokenizer):
    model = tiny_model("qwen3")
    fact = capital()
    loc = localized(model, tokenizer, "activation_magnitude", fact=fact)
    seen = []
    layer = model.model.layers[1]
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda m, args: seen.append(args[0][0, -1])),
        layer.mlp.down_proj.register_forward_pre_hook(lambda m, args: seen.append(args[0][0, -1])),
    ]
    with torch.no_grad():
        for prompt in fact.prompts:
            model(torch.tensor([tokenizer(prompt)["input_ids"]]))
    for handle in handles:
        handle.remove()
    heads = torch.stack(seen[::2]).abs().mean(0).unflatten(0, (4, 16)).mean(1)
    scores = loc.scores["activation_magnitude"]
    assert [scores[f"L1.head.{h}"] for h in range(4)] == pytest.approx(heads.tolist(), rel=1e-4)
    assert scores["L1.mlp"] == pytest.approx(float(torch.stack(seen[1::2]).abs().mean()), rel=1e-4)


def test_activations_are_read_without_a_graph(tokenizer, monkeypatch):
    graphs, capture = [], Runs.capture
    monkeypatch.setattr(Runs, "capture", lambda *args: graphs.append(torch.is_grad_enabled()) or capture(*args))
    localized(tiny_model("llama"), tokenizer, "activation_magnitude")
    assert graphs
    assert not any(graphs)


def test_random_scores_of_the_last_seed(tokenizer):
    loc = localized(tiny_model("llama"), tokenizer, "random", "random:draw=1", seed=2**64 - 1)
    assert loc.scores["random"] != loc.scores["random:draw=1"]


def test_random_scores_follow_the_seed(tokenizer):
    model = tiny_model("llama")
    one, same = (localized(model, tokenizer, "random", "random:draw=1", seed=3) for _ in range(2))
    other = localized(model, tokenizer, "random", seed=4)
    assert one.scores == same.scores
    # Nor is another draw what another seed gives.
    assert other.scores["random"] not in (one.scores["random"], one.scores["random:draw=1"])
    assert one.scores["random"] != one.scores["random:draw=1"]


def test_consensus_worked_by_hand(tokenizer):
    loc = localized(tiny_model("llama"), tokenizer, "consensus:of=random+activation_magnitude", "random")
    ranks = loc.tables["consensus:of=random+activation_magnitude"].notes["ranks"]
    order = sorted((n for n in loc.scores["random"] if "head" in n), key=lambda n: -loc.scores["random"][n])
    assert [ranks[name]["random"] for name in order] == list(range(1, 13))
    name = order[3]
    expected = (1 - 3 / 11 + 1 - (ranks[name]["activation_magnitude"] - 1) / 11) / 2
    assert loc.scores[loc.scorers[0]][name] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ScorerError, match="two other scorers"):
        run_failing(tiny_model("llama"), tokenizer, "consensus:of=random")


def test_the_default_consensus_worked_by_hand(tokenizer):
    of = ("activation_magnitude", "attribution", "gradient_norm")
    loc = localized(tiny_model("gpt2"), tokenizer, "consensus", *of)
    for kind, count in (("head", 12), ("mlp", 3)):
        tables = [{n: score for n, score in loc.scores[name].items() if kind in n} for name in of]
        for name in tables[0]:
            # How many are better, and half of those that are as good.
            better = sum(sum(s > t[name] for s in t.values()) for t in tables)
            better += sum(sum(s == t[name] for s in t.values()) - 1 for t in tables) / 2
            assert loc.scores["consensus"][name] == pytest.approx(1 - better / 3 / (count - 1), abs=1e-6), name
    assert loc.tables["consensus"].notes["ranks"]["L2.mlp"].keys() == set(of)
