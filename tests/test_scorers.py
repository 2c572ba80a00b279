import warnings

import pytest
import torch

from peft_surgical.errors import ScorerError
from peft_surgical.localization import localize
from peft_surgical.localizing.effects import site_scores
from peft_surgical.localizing.patching import Target
from peft_surgical.localizing.runs import Runs, Site, sites_of
from peft_surgical.scorers.specificity import as_shares
from peft_surgical.sites import Component, ModelShape, projection_slices

from .localizing import HEAD, MLP, OTHER, capital, fact_pairs, planted, runs_of, without, word_tokenizer
from .tiny import FAMILIES, tiny_model


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def run(model, tokenizer, *scorers, fact=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return localize(model, tokenizer, fact or capital(), list(scorers), progress=False, **options)


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
    loc = run(planted(), tokenizer, scorer, fact=capital(contrast=contrast))
    assert set(loc.top(2).components) == {HEAD, MLP}
    third = loc.top(3).components[2]
    assert min(loc.scores[scorer][HEAD], loc.scores[scorer][MLP]) > loc.scores[scorer][third]


def test_exact_scores_of_the_planted_model_are_what_the_corruption_takes(tokenizer):
    # Head and MLP are in one chain: taking either breaks all of it.
    loc = run(planted(), tokenizer, "logit_drop:measure=old", fact=capital(contrast=["spain"]))
    scores = loc.scores["logit_drop:measure=old"]
    assert scores[HEAD] == pytest.approx(scores[MLP], rel=0.05)


def test_specificity_tells_a_general_component_from_a_specific_one(tokenizer):
    loc = run(planted(), tokenizer, "specificity", "logit_drop", "verified")
    assert loc.scores["logit_drop"][OTHER] > 0.2 * loc.scores["logit_drop"][HEAD]
    assert loc.scores["specificity"][OTHER] < 0 < 0.5 < loc.scores["specificity"][HEAD]
    assert loc.scores["verified"][OTHER] == 0
    assert loc.scores["verified"][HEAD] == pytest.approx(loc.scores["logit_drop"][HEAD], abs=1e-4)


def test_lookup_and_attribution_share_their_passes_and_score_as_each_does_alone(tokenizer, monkeypatch):
    passes = []
    gradients = Runs.gradients
    monkeypatch.setattr(Runs, "gradients", lambda *args: passes.append(args[2]) or gradients(*args))
    alone = {name: run(planted(), tokenizer, name).tables[name] for name in ("lookup", "attribution")}
    apart = len(passes)
    both = run(planted(), tokenizer, "lookup", "attribution", "lookup:sites=v+pre").tables
    assert len(passes) - apart == apart, "those of one estimate, and of the other sites"
    for name, scores in alone.items():
        assert both[name].components == scores.components
        assert all((both[name].neurons[mlp] == own).all() for mlp, own in scores.neurons.items())
    assert both["lookup"].components != both["attribution"].components


def test_verified_says_when_it_could_not_filter(tokenizer):
    loc = run(planted(), tokenizer, "verified", fact=without("contrast", "retain"))
    assert loc.tables["verified"].notes["filter"].startswith("none: specificity needs")
    assert set(loc.top(2).components) == {HEAD, MLP}


def test_verified_measures_candidates_and_early_mlps_only(tokenizer):
    loc = run(planted(), tokenizer, "verified:candidates=2")
    assert set(loc.tables["verified:candidates=2"].notes["measured"]) == {
        *loc.top(2, by="attribution").components,
        "L0.mlp",
    }
    with pytest.raises(ScorerError, match="at least 1"):
        run_failing(planted(), tokenizer, "verified:candidates=0")


def test_verified_measures_the_key_value_heads_that_attribution_finds(tokenizer):
    # Two key/value heads a layer, each read by two query heads, which share its score.
    attribution, verified = "attribution:sites=v", "verified:sites=v,candidates=6"
    fact = without("contrast", "retain")
    loc = run(tiny_model("llama"), tokenizer, verified, attribution, "logit_drop:sites=v", fact=fact)
    best = loc.top(6, by=attribution).components
    assert "L1.head.2" in best
    exact = loc.scores["logit_drop:sites=v"]
    assert loc.scores[verified] == pytest.approx(
        {name: exact[name] if name in best else 0 for name in exact}, abs=1e-5
    )
    assert loc.tables[verified].notes["measured"].keys() == {name for name in best if int(name[-1]) % 2 == 0}


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
    loc = run(tiny_model("llama"), tokenizer, name)
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
    loc = run(linear_model(), tokenizer, f"logit_drop:sites={sites}", estimate)
    exact, estimated = (torch.tensor(list(loc.scores[name].values())) for name in loc.scorers)
    assert exact.abs().max() > 0.1
    torch.testing.assert_close(estimated, exact, atol=2e-4 * float(exact.abs().max()), rtol=1e-3)


def test_integrated_attribution_is_the_gradient_along_the_line_between_the_runs(tokenizer):
    model, fact = tiny_model("llama"), capital(prompts=["what is the capital of france ?"])
    loc = run(model, tokenizer, "attribution:steps=2", fact=fact)
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
    loc = run(planted(), tokenizer, "attribution")
    table = loc.tables["attribution"]
    assert set(table.neurons) == {"L0.mlp", "L1.mlp", "L2.mlp"}
    assert table.neurons["L2.mlp"].sum() == pytest.approx(table.components["L2.mlp"], rel=1e-5)
    assert loc.top(1, mlps=1, neurons=1).neurons == {"L2.mlp": ((5, 6),)}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_norms_are_those_of_the_weights(tokenizer, family):
    model = tiny_model(family)
    fact = capital(prompts=["what is the capital of france ?"])
    loc = run(model, tokenizer, "gradient_norm", "gradient_norm:sites=v+pre", fact=fact)
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


def gradient_in_out(model, name):
    module = model.get_submodule(name)
    return module.weight.grad if type(module).__name__ == "Conv1D" else module.weight.grad.T


def test_activation_magnitude_is_the_mean_size_at_the_last_position(tokenizer):
    model = tiny_model("qwen3")
    fact = capital()
    loc = run(model, tokenizer, "activation_magnitude", fact=fact)
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


def test_random_scores_of_the_last_seed(tokenizer):
    loc = run(tiny_model("llama"), tokenizer, "random", "random:draw=1", seed=2**64 - 1)
    assert loc.scores["random"] != loc.scores["random:draw=1"]


def test_random_scores_follow_the_seed(tokenizer):
    model = tiny_model("llama")
    one, same = (run(model, tokenizer, "random", "random:draw=1", seed=3) for _ in range(2))
    other = run(model, tokenizer, "random", seed=4)
    assert one.scores == same.scores
    assert one.scores["random"] != other.scores["random"]
    assert one.scores["random"] != one.scores["random:draw=1"]


def looked_up():
    """The planted model, with a country that the MLP of layer 0 recognizes: the head moves what that MLP writes."""
    model, recognized = planted(), 6
    with torch.no_grad():
        model.model.embed_tokens.weight[:, recognized] = 0
        mlp, attention = model.model.layers[0].mlp, model.model.layers[1].self_attn
        mlp.gate_proj.weight[7, 0] = 2  # dimension 0 is what only france has
        mlp.up_proj.weight[7, 5] = 0.5
        mlp.down_proj.weight[recognized, 7] = 0.1
        attention.v_proj.weight[16, 0] = 0
        attention.v_proj.weight[16, recognized] = 3
    return model


@pytest.mark.parametrize("contrast", [["italy", "spain", "japan"], ["new zealand"]], ids=["swap", "noise"])
def test_lookup_finds_what_is_written_at_the_subject_and_not_what_carries_it_on(tokenizer, contrast):
    # The subject is not the last word, so that it is told from where the answer is read.
    prompts = ["what is the capital of france ?", "name the capital of france ."]
    fact = capital(contrast=contrast, prompts=prompts)
    loc = run(looked_up(), tokenizer, "lookup", "attribution", fact=fact)
    scores, everywhere = loc.scores["lookup"], loc.scores["attribution"]
    assert loc.top(1).components == ("L0.mlp",)
    assert min(everywhere[HEAD], everywhere[MLP]) > 0.3 * everywhere["L0.mlp"] > 0
    assert scores["L0.mlp"] == pytest.approx(everywhere["L0.mlp"], rel=0.1)
    for component in (HEAD, MLP):
        assert abs(scores[component]) < 0.02 * scores["L0.mlp"]
    # The neuron that recognizes the country, too.
    assert loc.top(1, neurons=1).neurons == {"L0.mlp": ((7, 8),)}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_lookup_is_attribution_at_the_positions_of_the_subject(tokenizer, family):
    """By hand on the Hugging Face model: no bridge, no cache, no padding."""
    fact = capital(
        prompts=["what is the capital of france ?", "france has which capital city ?"],
        contrast=["italy", "new zealand"],
    )
    loc = run(tiny_model(family), tokenizer, "lookup", fact=fact)
    runs, shape = runs_of(tiny_model(family))
    pairs = fact_pairs(runs, fact, tokenizer)
    assert all(pair.method == "swap" for pair in pairs)
    model = tiny_model(family)
    totals = dict.fromkeys(loc.scores["lookup"], 0.0)
    for pair in pairs:
        changed = pair.clean != pair.corrupted
        assert changed.sum() == 1
        clean, logits = inputs_of(model, shape, pair.clean)
        corrupted, _ = inputs_of(model, shape, pair.corrupted)
        slopes = torch.autograd.grad(logits[pair.old] - logits[pair.rival], list(clean.values()))
        for module, slope in zip(clean, slopes, strict=True):
            drops = ((clean[module] - corrupted[module]) * slope)[0, changed].sum(0).detach()
            for name in totals:
                piece = projection_slices(shape, component := Component.parse(name), AT[component.kind])
                if piece.module == module:
                    totals[name] += float(drops[piece.start : piece.stop].sum()) / len(pairs)
    assert max(map(abs, totals.values())) > 1e-2
    for name, total in totals.items():
        assert loc.scores["lookup"][name] == pytest.approx(total, rel=1e-3, abs=1e-5), name
    # Nothing reads the subject's position after the last layer's attention.
    assert totals["L2.mlp"] == 0


AT = {"head": "z", "mlp": "post"}


def inputs_of(model, shape, ids):
    """What enters the output and down projections, in one graph, and the last position's logits."""
    modules = {
        projection_slices(shape, component, AT[component.kind]).module
        for layer in range(shape.n_layers)
        for component in (Component("head", layer, 0), Component("mlp", layer))
    }
    found = {}

    def keep(name):
        return lambda module, args: found.__setitem__(name, args[0])

    handles = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in sorted(modules)]
    logits = model(ids[None]).logits[0, -1]
    for handle in handles:
        handle.remove()
    return found, logits


def test_consensus_worked_by_hand(tokenizer):
    loc = run(tiny_model("llama"), tokenizer, "consensus:of=random+activation_magnitude", "random")
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
    loc = run(tiny_model("gpt2"), tokenizer, "consensus", *of)
    for kind, count in (("head", 12), ("mlp", 3)):
        tables = [{n: score for n, score in loc.scores[name].items() if kind in n} for name in of]
        for name in tables[0]:
            # How many are better, and half of those that are as good.
            better = sum(sum(s > t[name] for s in t.values()) for t in tables)
            better += sum(sum(s == t[name] for s in t.values()) - 1 for t in tables) / 2
            assert loc.scores["consensus"][name] == pytest.approx(1 - better / 3 / (count - 1), abs=1e-6), name
    assert loc.tables["consensus"].notes["ranks"]["L2.mlp"].keys() == set(of)


def test_site_scores_put_each_target_in_its_place():
    z, post = Site("z", 0, 3), Site("post", 0, 8)
    found = site_scores([Target(post), Target(z, 2), Target(z, 0)], torch.tensor([5.0, 2.0, 1.0]))
    assert {site: values.tolist() for site, values in found.items()} == {post: [5.0], z: [1.0, 0.0, 2.0]}


def test_sites_of_grouped_heads_have_the_size_of_their_group():
    shape = ModelShape("llama", n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, d_mlp=64, d_model=32)
    assert [site.size for site in sites_of(shape, ("z", "v", "post"))] == [4, 2, 64] * 2
