import json
from dataclasses import replace

import pytest
import torch

from benchmarks.baselines import METHODS, Request, build, described, settings
from benchmarks.baselines.adapters import module_names
from benchmarks.baselines.fitting import first_trained, fit, fit_recipe, stopping_at, target_loss
from benchmarks.baselines.ft_l import ConstrainedFineTuning
from benchmarks.baselines.ia3_closed import solve
from benchmarks.baselines.ia3_stock import ATTENTIONS, MLPS, same_depth
from benchmarks.baselines.lora_kept import Kept, LoraKept
from benchmarks.baselines.mlps import edited_layer, output_projection
from benchmarks.baselines.restoring import weights_restored
from benchmarks.plain_text import log_likelihoods
from peft_surgical.architectures import decoder_layers
from peft_surgical.errors import SelectionError, SurgicalError
from peft_surgical.keying import keyed
from peft_surgical.stages import RECIPES
from peft_surgical.staging import retain
from peft_surgical.staging.retain import TopDistribution
from peft_surgical.texts.prompts import span

from .adapters import logits
from .conftest import fingerprint
from .counterfacts import CONTEXTS, REQUEST, TOKENIZER, word_model
from .tiny import tiny_ids

EDITING = [name for name in METHODS if name != "base"]
IDS = tiny_ids() % len(TOKENIZER)


@pytest.fixture(autouse=True)
def few_everyday_prompts(monkeypatch):
    everyday = retain.everyday_prompts()[:3]
    monkeypatch.setattr(retain, "everyday_prompts", lambda: everyday)
    # Of three layers, leaving out the first and the last leaves too few.
    monkeypatch.setattr(keyed, "keyed_layers", lambda model: [0, 1, 2])


def state(model):
    """All that an edit could leave behind."""
    return fingerprint(model), sorted(vars(model)), [(p.requires_grad, p.grad) for p in model.parameters()]


def test_scales_in_closed_form_reach_the_value_and_move_other_text_least():
    # Two neurons write the same output, and other text minds the second three times as much.
    weight, key, form = torch.ones(1, 2), torch.ones(2), torch.diag(torch.tensor([1.0, 3.0]))
    found = solve(weight, key, torch.ones(1), form, damping=0.0, slack=0.0)
    torch.testing.assert_close(found, torch.tensor([0.75, 0.25]))
    # A mean of 2 on the diagonal: costs of 2 and 4.
    damped = solve(weight, key, torch.ones(1), form, damping=0.5, slack=0.0)
    torch.testing.assert_close(damped, torch.tensor([4.0, 2.0]) / 6)
    short = solve(weight, key, torch.ones(1), form, damping=0.0, slack=0.25)
    torch.testing.assert_close(short, found / 1.25)


def test_fitting_stops_where_it_is_asked_to():
    model, losses = word_model(), []
    assert fit_recipe()["target_loss"] == target_loss() == 0.01
    for target in (0.5, None):
        with weights_restored(model.parameters()) as parameters, stopping_at(target):
            assert fit_recipe()["target_loss"] == (target or 0.01)
            fit(model, TOKENIZER, REQUEST, parameters, 0.05)
            pairs = [(prompt, REQUEST.new) for prompt in REQUEST.prompts]
            losses.append(-sum(log_likelihoods(model, TOKENIZER, pairs)) / len(pairs))
    assert 0.01 < losses[0] < 0.5
    assert losses[1] < 0.01


def said(model, request=REQUEST):
    return log_likelihoods(model, TOKENIZER, [(request.prompt, request.new)])[0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("name", EDITING)
def test_an_edit_teaches_the_answer_and_leaves_every_bit_as_it_was(name, family, monkeypatch):
    for stage, own in RECIPES.items():
        # Stages teach the tiny model in half of their steps.
        monkeypatch.setitem(RECIPES, stage, replace(own, steps=own.steps // 2))
    model, method = word_model(family), build(name)
    before, base, plain = state(model), said(model), logits(model, IDS)
    rng = torch.get_rng_state()
    with method.edit(model, TOKENIZER, REQUEST, 0):
        assert said(model) > base
        assert not torch.equal(logits(model, IDS), plain)
        first = logits(model, IDS)
    assert state(model) == before
    assert torch.equal(logits(model, IDS), plain)
    assert torch.equal(torch.get_rng_state(), rng)
    # The next edit finds the same base, and what a method keeps between edits changes nothing.
    with method.edit(model, TOKENIZER, Request("italy", "the capital of italy is", "rome", "paris", CONTEXTS), 0):
        pass
    with method.edit(model, TOKENIZER, REQUEST, 0):
        assert torch.equal(logits(model, IDS), first)
    assert state(model) == before


@pytest.mark.parametrize("name", EDITING)
def test_what_fails_leaves_the_base_too(name, monkeypatch):
    model, method = word_model(), build(name)
    before = state(model)
    with pytest.raises(KeyboardInterrupt), method.edit(model, TOKENIZER, REQUEST, 0):
        raise KeyboardInterrupt
    assert state(model) == before

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    monkeypatch.setattr("peft_surgical.staging.training._step", interrupted)
    monkeypatch.setattr("peft_surgical.staging.by_subject._step", interrupted)
    with pytest.raises(KeyboardInterrupt), method.edit(model, TOKENIZER, REQUEST, 0):
        raise AssertionError("the edit went on without its optimizer")
    assert state(model) == before


def test_no_edit_is_no_edit():
    model = word_model()
    before = state(model)
    with build("base").edit(model, TOKENIZER, REQUEST, 0):
        assert state(model) == before


def test_adapters_depend_on_the_seed_alone():
    model, found = word_model(), []
    for seed in (0, 0, 1):
        with build("lora").edit(model, TOKENIZER, REQUEST, seed):
            found.append(logits(model, IDS))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_lora_that_keeps_answers_moves_them_less(monkeypatch):
    model = word_model()
    kept = Kept.of(model, TOKENIZER, REQUEST, 0)
    assert 0 < kept.near < len(kept.rows) == len(kept.base)
    answers, tokens = [row.ids for row in kept.rows], [span(row) for row in kept.rows]
    found = {}
    for name in ("lora", "lora_kept"):
        with build(name, 5e-3).edit(model, TOKENIZER, REQUEST, 0), torch.no_grad():
            read = zip(answers, tokens, strict=True)
            after = [model(torch.tensor([ids])).logits[0, start:stop] for ids, (start, stop) in read]
            kl = TopDistribution.cat(kept.base).kl(torch.cat(after)).mean()
            found[name] = (float(kl), said(model), logits(model, IDS))
    assert found["lora_kept"][0] < 0.7 * found["lora"][0]
    # It learns the answer all the same.
    assert found["lora_kept"][1] > said(model) + 0.5
    # By itself the answer's term is LoRA's: Adam does not care for its factor.
    monkeypatch.setattr(Kept, "of", lambda *_: Kept((), 0, ()))
    with LoraKept(5e-3).edit(model, TOKENIZER, REQUEST, 0):
        torch.testing.assert_close(logits(model, IDS), found["lora"][2], rtol=1e-3, atol=1e-3)


def test_constrained_fine_tuning_moves_one_weight_within_its_bound():
    model, method = word_model(), ConstrainedFineTuning(learning_rate=0.01, layer=2)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with method.edit(model, TOKENIZER, REQUEST, 0):
        moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in model.named_parameters()}
    assert [name for name, size in moved.items() if size] == ["model.layers.2.mlp.down_proj.weight"]
    assert max(moved.values()) == pytest.approx(0.01, rel=1e-5)


def test_a_fit_stops_at_its_loss():
    model, steps = word_model(), []
    with weights_restored(model.parameters()) as parameters:
        fit(model, TOKENIZER, REQUEST, parameters, 0.05, lambda: steps.append(1))
        assert 1 < len(steps) < 25
        # ROME's 0.01 nats over the target's tokens.
        pairs = [(prompt, REQUEST.new) for prompt in REQUEST.prompts]
        assert -sum(log_likelihoods(model, TOKENIZER, pairs)) / len(pairs) < 0.01
        fit(model, TOKENIZER, REQUEST, parameters, 0.05, lambda: steps.append(1))
        already = len(steps)
    assert already < 25


def test_layers_below_what_is_trained_are_found():
    model = word_model()
    layers = decoder_layers(model)
    weights = [layers[2].mlp.down_proj.weight, layers[1].self_attn.q_proj.weight]
    assert first_trained(layers, weights) == 1
    assert first_trained(layers, weights[:1]) == 2
    assert first_trained(layers, [*weights, model.lm_head.weight]) == 0


def test_which_modules_are_adapted():
    llama, phi3 = word_model(), word_model("phi3")
    assert module_names(llama, ("k", "v"), range(1, 9, 2)) == [
        "model.layers.1.self_attn.k_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    # One fused module stands for three, once.
    assert module_names(phi3, ("q", "k", "v", "up"), range(1)) == [
        "model.layers.0.self_attn.qkv_proj",
        "model.layers.0.mlp.gate_up_proj",
    ]
    assert len(module_names(llama, ("q", "mlp_out"))) == 6


def test_stock_ia3_scales_the_ten_modules_of_the_paper():
    phi3 = word_model("phi3", num_hidden_layers=32)
    assert same_depth(phi3, MLPS) == [16, 18, 23]
    assert same_depth(word_model(num_hidden_layers=16), ATTENTIONS) == [10, 11]
    found = []

    def watched(self, *_, **__):
        found.extend(name for name, module in phi3.named_modules() if hasattr(module, "ia3_l"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", watched)
        with build("ia3_stock").edit(phi3, TOKENIZER, REQUEST, 0):
            pass
    mlps = [f"model.layers.{i}.mlp.{name}" for i in (16, 18, 23) for name in ("gate_up_proj", "down_proj")]
    attentions = [f"model.layers.{i}.self_attn.{name}" for i in (20, 22) for name in ("qkv_proj", "o_proj")]
    assert set(found) == {*mlps, *attentions}
    assert len(set(found)) == 10


def test_which_mlp_is_edited():
    model = word_model()
    assert edited_layer(model) == 1
    assert edited_layer(word_model(num_hidden_layers=12)) == 5
    assert edited_layer(model, 2) == 2
    assert output_projection(model, 2) is model.model.layers[2].mlp.down_proj
    with pytest.raises(SelectionError, match=r"3 layers \(0 to 2\), so no layer 3"):
        edited_layer(model, 3)


def test_a_request_hands_out_its_prompt_behind_every_context():
    assert REQUEST.prompts == ("the capital of france is", *(f"{c}the capital of france is" for c in CONTEXTS))


def test_methods_by_name():
    assert build("rome", 0.25).learning_rate == 0.25
    assert settings(build("rome_cov")) == {"learning_rate": 0.5, "layer": None, "ridge": 0.01}
    assert settings(build("base")) == {}
    model = word_model()
    assert described(build("base"), model) == {}
    assert described(build("ft"), model) == {"learning_rate": 3e-6, "recipe": {"steps": 25, "target_loss": 0.01}}
    for name in EDITING:
        found = described(build(name), model)
        assert found == json.loads(json.dumps(found))
        assert found["recipe"]
    staged = described(build("staged"), model)["recipe"]
    # What `auto` stands for here is told, and not how many tokens go through the model at once.
    assert {staged[stage]["compute_dtype"] for stage in ("unlearn", "learn")} <= {"float32", "bfloat16"}
    assert (staged["unlearn"]["steps"], staged["learn"]["steps"]) == (8, 15)
    assert "pass_tokens" not in staged["learn"]
    assert described(build("one_stage"), model)["recipe"] == {k: v for k, v in staged.items() if k != "unlearn"}
    assert described(build("keyed"), model)["recipe"]["learn"]["held"] == 16
    assert all(build(name).name == name for name in METHODS)
    with pytest.raises(SurgicalError, match="no method 'grace'; choose from base, surgical"):
        build("grace")
    with pytest.raises(SurgicalError, match="'base' has no learning rate"):
        build("base", 0.1)
