import pytest
import torch

from peft_surgical.localizing.runs import Runs, sites_of
from peft_surgical.scorers.attribution import drops_by_position
from peft_surgical.sites import Component, projection_slices

from .localizing import HEAD, MLP, capital, fact_pairs, localized, planted, random_pairs, runs_of, word_tokenizer
from .tiny import tiny_model


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


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
    loc = localized(looked_up(), tokenizer, "lookup", "attribution", fact=fact)
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
    loc = localized(tiny_model(family), tokenizer, "lookup", fact=fact)
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


def test_lookup_and_attribution_share_their_passes_and_score_as_each_does_alone(tokenizer, monkeypatch):
    passes = []
    gradients = Runs.gradients
    monkeypatch.setattr(Runs, "gradients", lambda *args: passes.append(args[2]) or gradients(*args))
    alone = {name: localized(planted(), tokenizer, name).tables[name] for name in ("lookup", "attribution")}
    apart = len(passes)
    both = localized(planted(), tokenizer, "lookup", "attribution", "lookup:sites=v+pre").tables
    assert len(passes) - apart == apart, "those of one estimate, and of the other sites"
    for name, scores in alone.items():
        assert both[name].components == scores.components
        assert all((both[name].neurons[mlp] == own).all() for mlp, own in scores.neurons.items())
    assert both["lookup"].components != both["attribution"].components


def test_products_of_half_precision_are_not_rounded_again():
    runs, shape = runs_of(tiny_model("llama", dtype=torch.bfloat16))
    window, sites = runs.window(random_pairs(runs, 1)), sites_of(shape, ("z", "post"))
    with torch.no_grad():
        source, _ = runs.capture(window, window.corrupted, sites)
    clean, slopes = runs.gradients(window, window.clean, sites)
    for site, drops in drops_by_position(runs, window, sites, 1):
        # Float32 holds a product of two such numbers as it is.
        assert torch.equal(drops.double(), (clean[site] - source[site]).double() * slopes[site].double())
