"""What a scorer does to the model, to what it was given and to torch reaches no other scorer, and nobody's process."""

import os

import pytest
import torch

from peft_surgical.errors import ScorerError
from peft_surgical.localization import localize
from peft_surgical.scorers.attribution import estimates
from peft_surgical.scorers.gradient_norm import gradient_norm

from .localizing import capital, planted, word_tokenizer
from .plugin_points import Installed, fine, module
from .tiny import tiny_model


def hooked(context):
    context.model.add_hook("blocks.0.mlp.hook_post", lambda tensor, hook: tensor * 0)
    return fine(context)


def hooked_for_good(context):
    context.model.add_perma_hook("blocks.0.mlp.hook_post", lambda tensor, hook: tensor * 0)
    return fine(context)


def hooked_and_raises(context):
    hooked(context)
    raise ValueError("halfway")


def without_gradients(context):
    torch.set_grad_enabled(False)
    return fine(context)


def asks(context):
    context.model.add_hook("blocks.0.mlp.hook_post", seen := Seen())
    context.score("fine")
    before = len(seen)
    context.runs.logits(*next((window, window.clean) for window in context.windows()))
    context.notes["still there"] = len(seen) > before
    return fine(context)


def trains(context):
    context.model.train()
    context.model.requires_grad_(False)
    return fine(context)


def by_backward(context):
    window = next(context.windows(whole=True))
    with torch.enable_grad():
        window.difference(context.runs.logits(window, window.clean)).sum().backward()
    size = sum(float(p.grad.norm()) for p in context.model.parameters() if p.grad is not None)
    return {site: torch.full((site.size,), size) for site in context.sites}


def asks_by_backward(context):
    own = by_backward(context)
    assert context.score("again").components == context.score("by_backward").components
    after = by_backward(context)
    # What another one's backward pass gave has not come on top, and its own is still there.
    site = context.sites[0]
    torch.testing.assert_close(after[site], 2 * own[site])
    return own


def asks_in_half_precision(context):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        context.score("attribution")
    return fine(context)


def asks_in_inference_mode(context):
    with torch.inference_mode():
        context.score("attribution")
    return fine(context)


def in_half_precision_for_good(context):
    torch.autocast("cpu", dtype=torch.bfloat16).__enter__()
    return fine(context)


def in_double_precision_for_good(context):
    torch.set_default_dtype(torch.float64)
    return fine(context)


def in_rounded_products_for_good(context):
    torch.set_float32_matmul_precision("medium")
    return fine(context)


class Seen(list):
    def __call__(self, tensor, hook):
        self.append(tensor.shape)


@pytest.mark.parametrize(
    "scorer",
    [
        hooked,
        hooked_for_good,
        hooked_and_raises,
        without_gradients,
        trains,
        asks_in_half_precision,
        asks_in_inference_mode,
        in_half_precision_for_good,
        in_double_precision_for_good,
        in_rounded_products_for_good,
    ],
)
@pytest.mark.filterwarnings("ignore::peft_surgical.plugins.PluginWarning")
def test_what_a_scorer_leaves_behind_changes_no_other(scorer, install):
    install(Installed(module(fine=fine, messy=scorer)))
    model, tokenizer = tiny_model("llama", attention_dropout=0.5), word_tokenizer()
    alone = localize(model, tokenizer, capital(), ["attribution"], progress=False)
    after = localize(model, tokenizer, capital(), ["messy", "attribution"], progress=False)
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_float32_matmul_precision() == "highest"
    assert "messy" in after.scores or scorer is hooked_and_raises
    assert after.scores["attribution"] == alone.scores["attribution"]


@pytest.mark.filterwarnings("error::peft_surgical.plugins.PluginWarning")
def test_what_scorers_share_is_of_the_model_as_it_was_found(install):
    def shares(context):
        context.model.add_hook("blocks.1.attn.hook_z", lambda tensor, hook: tensor * 0)
        estimates(context)
        context.controls()
        return fine(context)

    install(Installed(module(shares=shares)))
    others = ["attribution", "specificity"]
    alone, after = (
        localize(planted(), word_tokenizer(), capital(), [*first, *others], progress=False)
        for first in ((), ("shares",))
    )
    assert {name: after.scores[name] for name in others} == alone.scores


MAKES = {
    "folds": lambda model: model.enable_compatibility_mode(),
    "splits": lambda model: model.set_use_split_qkv_input(True),
    "splits by heads": lambda model: model.set_use_attn_in(True),
    "gives results": lambda model: model.set_use_attn_result(True),
    "casts": lambda model: model.float(),
    "attends otherwise": lambda model: model.original_model.set_attn_implementation("eager"),
}


@pytest.mark.filterwarnings("error::peft_surgical.plugins.PluginWarning")
@pytest.mark.parametrize("made", MAKES)
@pytest.mark.parametrize(("family", "dtype"), [("gpt2", torch.float32), ("llama", torch.bfloat16)])
def test_what_a_scorer_makes_of_the_model_reaches_no_other(family, dtype, made, install):
    others = ["activation_magnitude", "attribution", "gradient_norm"]

    def makes(context):
        MAKES[made](context.model)
        return fine(context)

    def asks(context):
        makes(context)
        for other in others:
            context.score(other)
        return fine(context)

    install(Installed(module(makes=makes, asks=asks)))
    model, tokenizer = tiny_model(family, dtype=dtype), word_tokenizer()
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    alone = localize(model, tokenizer, capital(), others, progress=False)
    for first in ("makes", "asks"):
        after = localize(model, tokenizer, capital(), [first, *others], progress=False)
        assert {name: after.scores[name] for name in others} == alone.scores
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("made", ["folds", "splits", "splits by heads", "gives results"])
def test_gradient_norm_says_that_it_sees_nothing_of_weights_that_no_module_applies(made, install):
    def calls(context):
        asked = context.score("gradient_norm")
        MAKES[made](context.model)
        assert context.score("gradient_norm").components == asked.components
        return gradient_norm(context)

    install(Installed(module(calls=calls)))
    with pytest.raises(
        ScorerError, match=r"gradient_norm sees what passes blocks\.0\.(attn|mlp)\.\w+, and nothing did"
    ):
        localize(tiny_model("llama"), word_tokenizer(), capital(), ["calls"], progress=False)


def runs(context):
    for window in context.windows():
        context.runs.capture(window, window.clean, context.sites)
    return fine(context)


def drops_units(context):
    context.model.train()
    return runs(context)


def runs_in_half_precision(context):
    with torch.autocast("cpu", torch.bfloat16):
        return runs(context)


def runs_on_rounded_products(context):
    torch.set_float32_matmul_precision("medium")
    return runs(context)


def runs_on_folded_weights(context):
    context.model.enable_compatibility_mode()
    return runs(context)


def runs_on_split_inputs(context):
    context.model.set_use_split_qkv_input(True)
    return runs(context)


def runs_without_an_mlp(context):
    context.model.original_model.model.layers[0].mlp.forward = lambda x: x * 0
    return runs(context)


def runs_on_other_turns(context):
    [turns] = [module for module in context.model.original_model.modules() if "inv_freq" in module._buffers]
    turns._buffers["inv_freq"] = turns.inv_freq * 3
    return runs(context)


@pytest.mark.parametrize(
    "scorer",
    [
        runs,
        runs_without_an_mlp,
        runs_on_other_turns,
        drops_units,
        runs_in_half_precision,
        runs_on_rounded_products,
        runs_on_folded_weights,
        runs_on_split_inputs,
    ],
)
def test_the_keys_and_values_of_a_template_are_as_for_one_scorer_alone(scorer, install):
    install(Installed(module(before=scorer)))
    tokenizer = word_tokenizer()
    tokenizer.chat_template = (
        "what is the city that is .{% for message in messages %} {{ message.content }}{% endfor %}"
    )
    model = tiny_model("llama", attention_dropout=0.5)
    alone = localize(model, tokenizer, capital(), ["attribution"], progress=False)
    after = localize(model, tokenizer, capital(), ["before", "attribution"], progress=False)
    assert after.errors == {}
    assert after.scores["attribution"] == alone.scores["attribution"]


@pytest.mark.filterwarnings("error::peft_surgical.plugins.PluginWarning")
def test_a_scorers_backward_pass_leaves_no_gradient_in_the_model_nor_for_another(install):
    install(Installed(module(by_backward=by_backward, again=by_backward, asks=asks_by_backward)))
    model = planted()
    model.requires_grad_(False).lm_head.weight.requires_grad_(True)
    kept = model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    found = localize(model, word_tokenizer(), capital(), ["by_backward", "again", "asks"], progress=False)
    first, *others = (found.scores[name] for name in ("by_backward", "again", "asks"))
    assert next(iter(first.values())) > 0
    assert all(other == first for other in others)
    assert model.lm_head.weight.grad is kept
    assert bool((kept == 1).all())
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["lm_head.weight"]


def spoils(context):
    scores = context.score("attribution")
    scores.components.update(dict.fromkeys(scores.components, 7.0))
    for values in scores.neurons.values():
        values[:] = 7.0
    scores.notes["x"] = "theirs"
    for pair in (*context.pairs, *context.controls()):
        pair.clean[:] = 5
        pair.corrupted[:] = 5
        if pair.shift is not None:
            pair.shift[:] = 9.0
    return fine(context)


@pytest.mark.parametrize("contrast", [["italy"], ["new zealand"]])
def test_what_a_scorer_does_to_what_it_was_given_reaches_no_other(install, contrast):
    install(Installed(module(fine=fine, spoils=spoils)))
    model, tokenizer, fact = tiny_model("llama"), word_tokenizer(), capital(contrast=contrast)
    after = ["attribution", "logit_drop", "verified"]
    alone = localize(model, tokenizer, fact, after, progress=False)
    found = localize(model, tokenizer, fact, ["spoils", *after], progress=False)
    for name in after:
        assert found.scores[name] == alone.scores[name]
        for mlp, values in alone.tables[name].neurons.items():
            assert found.tables[name].neurons[mlp].tolist() == values.tolist()
    assert found.tables["attribution"].notes.keys() == {"seconds"}


def test_what_a_scorer_goes_on_doing_changes_no_score_of_its_own(install):
    kept = {}

    def keeps(context):
        found = {site: torch.ones(site.size) for site in context.sites}
        kept.update(found)
        context.notes["list"] = kept["list"] = [1]
        return found

    def later(context):
        for value in kept.values():
            value[0] = 9
        return fine(context)

    install(Installed(module(keeps=keeps, later=later)))
    found = localize(planted(), word_tokenizer(), capital(), ["keeps", "later"], progress=False)
    assert found.tables["keeps"].notes["list"] == [1]
    assert all(bool((values == 1).all()) for values in found.tables["keeps"].neurons.values())


def test_a_scorer_that_goes_to_another_folder_takes_no_path_along(install, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    seen = {}

    def goes(context):
        os.chdir(tmp_path)
        context.score("looks")
        seen["still"] = os.getcwd()
        return fine(context)

    def looks(context):
        seen["found"] = os.getcwd()
        os.chdir(os.sep)
        return fine(context)

    def fails(context):
        os.chdir(tmp_path)
        raise ValueError("halfway")

    install(Installed(module(goes=goes, looks=looks, fails=fails)))
    found = localize(planted(), word_tokenizer(), capital(), ["goes"], progress=False)
    found.save("localization.json")
    assert (tmp_path / "here" / "localization.json").exists()
    assert seen == dict.fromkeys(("found", "still"), os.path.realpath(tmp_path))
    with pytest.raises(ScorerError, match="halfway"):
        localize(planted(), word_tokenizer(), capital(), ["fails"], progress=False)
    assert os.getcwd() == os.path.realpath(tmp_path / "here")


def test_scorers_that_ask_for_each_other_are_refused(install):
    install(Installed(module(one=lambda context: context.score("two"), two=lambda context: context.score("one"))))
    with pytest.raises(ScorerError, match="in a circle: one → two → one"):
        localize(planted(), word_tokenizer(), capital(), ["one"], progress=False)


def test_a_scorer_keeps_its_own_hooks_while_it_asks_for_the_scores_of_another(install):
    install(Installed(module(fine=fine, asks=asks)))
    found = localize(planted(), word_tokenizer(), capital(), ["asks"], progress=False)
    assert found.tables["asks"].notes["still there"]
