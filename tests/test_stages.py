import copy
from dataclasses import replace

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from peft_surgical import stages
from peft_surgical.errors import AdapterError, ModelError, SelectionError
from peft_surgical.selection import Selection
from peft_surgical.stacking import stack
from peft_surgical.stages import learn, unlearn
from peft_surgical.staging import trained_rows
from peft_surgical.staging.by_subject import learn_by_subject
from peft_surgical.staging.retain import retain_prompts
from peft_surgical.texts.prompts import encode, encode_answer
from peft_surgical.texts.wording import variants
from peft_surgical.tuner import SurgicalIA3Layer, activate

from .adapters import deltas, logits, tiny_peft, trainable
from .conftest import fingerprint
from .offloading import offloaded
from .staged import FACT, RECIPE, TOKENIZER, config, first_stage, second_stage
from .tiny import FAMILIES, tiny_model

pytestmark = pytest.mark.usefixtures("few_carried_prompts")


def of(model, adapter):
    """Parameters of one adapter, by module."""
    ending = f".{adapter}"
    return {name.removesuffix(ending): delta for name, delta in deltas(model).items() if name.endswith(ending)}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def answer_loss(model, fact, answer):
    rows = [encode_answer(TOKENIZER, prompt, answer) for prompt in fact.prompts]
    losses = []
    for row in rows:
        found = logits(model, torch.tensor([row.ids]))[0, row.answer_start - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(found, torch.tensor(row.ids[row.answer_start :])))
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_two_stages_train_two_adapters_and_leave_the_base(family):
    base = tiny_model(family)
    before, plain = {n: p.clone() for n, p in base.named_parameters()}, logits(base)
    first = first_stage(family, model=base)
    assert first.adapter == "unlearn"
    unlearned, stage_one = logits(first.model), of(first.model, "unlearn")
    assert not torch.equal(unlearned, plain)
    assert answer_loss(first.model, FACT, FACT.refusal) < answer_loss(tiny_model(family), FACT, FACT.refusal)

    second = second_stage(first)
    assert second.adapter == "learn"
    assert second.model is first.model
    assert second.retained is first.retained
    assert same(of(second.model, "unlearn"), stage_one)
    assert all(delta.abs().max() > 0 for delta in of(second.model, "learn").values())
    assert not torch.equal(logits(second.model), unlearned)
    # Both act, neither is left trainable nor with a gradient, and the model is ready to answer.
    assert trainable(second.model) == set()
    assert all(parameter.grad is None for parameter in second.model.parameters())
    assert not second.model.training
    with second.model.disable_adapter():
        assert torch.equal(logits(second.model), plain)
    activate(second.model, ["unlearn"])
    assert torch.equal(logits(second.model), unlearned)
    names = {name.replace(".base_layer", ""): p for name, p in second.model.get_base_model().named_parameters()}
    assert all(torch.equal(names[name], p) for name, p in before.items())


def test_each_stage_has_its_answer(monkeypatch):
    taught = []

    def spy(tokenizer, prompt, answer):
        taught.append((prompt, answer))
        return encode_answer(tokenizer, prompt, answer)

    monkeypatch.setattr(trained_rows, "encode_answer", spy)
    first = first_stage()
    prompts = [*FACT.prompts, *variants(FACT.prompts)[: RECIPE.variants]]
    assert taught == [(prompt, FACT.refusal) for prompt in prompts]
    taught.clear()
    second_stage(first)
    assert taught == [(prompt, FACT.answer) for prompt in prompts]


def test_no_other_wording_is_one_that_evaluation_asks(monkeypatch):
    asked = variants(FACT.prompts)[2]
    taught = []
    monkeypatch.setattr(trained_rows, "encode_answer", lambda *given: taught.append(given[1]) or encode_answer(*given))
    first_stage(fact=replace(FACT, held_out=(*FACT.held_out, asked)))
    assert asked not in taught
    assert taught[: len(FACT.prompts)] == list(FACT.prompts)


def test_learning_lowers_the_loss_of_the_new_answer():
    first = first_stage()
    before = answer_loss(first.model, FACT, FACT.answer)
    assert answer_loss(second_stage(first).model, FACT, FACT.answer) < before


ON_OUTPUTS = {"projections": ["v", "pre"]}


@pytest.mark.parametrize("options", [{}, ON_OUTPUTS, {"granularity": "module"}], ids=["inputs", "outputs", "modules"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma3", "phi3"])
def test_a_frozen_first_stage_is_the_papers_merge(family, options, monkeypatch):
    # The frozen scales decide to which numbers the second stage's are rounded, and merged ones are not seen.
    monkeypatch.setattr(stages, "settle_on_half", lambda *_: None)
    first = first_stage(family, options=options)
    # The paper's order: the first stage goes into the weights, and the second is trained on what that gives.
    merged = copy.deepcopy(first.model).merge_and_unload()
    assert not any(isinstance(module, SurgicalIA3Layer) for module in merged.modules())
    torch.testing.assert_close(logits(merged), logits(first.model), atol=1e-4, rtol=1e-4)
    assert (logits(merged) - logits(tiny_model(family))).abs().max() > 1e-2

    # Merged weights no longer tell what the first stage changed, so nothing of it can be taken back.
    recipe = replace(RECIPE, undo=0.0, pull=0.0)
    stacked = second_stage(first, recipe=recipe)
    papers = learn(merged, TOKENIZER, FACT, config(**options), recipe=recipe, retained=first.retained, progress=False)
    ours, theirs = of(stacked.model, "learn"), of(papers.model, "learn")
    assert ours.keys() == theirs.keys()
    for name, delta in ours.items():
        assert delta.abs().max() > 0.01
        # A step is as long as the metric allows, so rounding stretches little.
        torch.testing.assert_close(delta, theirs[name], atol=0.02 * float(delta.abs().max()), rtol=0.02)
    torch.testing.assert_close(logits(stacked.model), logits(papers.model), atol=5e-3, rtol=5e-3)
    # Exactly the same scales are the same function, up to rounding.
    for name, parameter in papers.model.named_parameters():
        if name.endswith(".learn"):
            parameter.data.copy_(ours[name.removesuffix(".learn")])
    torch.testing.assert_close(logits(stacked.model), logits(papers.model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("own", [None, ["L1.mlp", "L0.mlp"]], ids=["same", "others"])
def test_stacked_stages_are_written_in_half_precision_and_lose_nothing(own, tmp_path):
    first = first_stage()
    given = None if own is None else config(own)
    second = learn(first.model, TOKENIZER, FACT, given, recipe=RECIPE, progress=False)
    first.save(tmp_path / "unlearn")
    second.save(tmp_path / "learn")
    stack([tmp_path / "unlearn", tmp_path / "learn"], tmp_path / "edit")
    assert {t.dtype for t in load_file(tmp_path / "edit" / "adapter_model.safetensors").values()} == {torch.float16}
    plain = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "edit")
    assert {p.dtype for n, p in plain.named_parameters() if "ia3_l" in n} == {torch.float32}
    assert torch.equal(logits(plain), logits(second.model))


def test_only_selected_coordinates_have_parameters():
    model = first_stage().model
    sizes = {name.split(".surgical")[0].split(".model.")[-1]: delta.shape for name, delta in deltas(model).items()}
    assert sizes == {
        "model.layers.1.self_attn.o_proj": (8,),
        "model.layers.1.mlp.down_proj": (48,),
        "model.layers.2.self_attn.o_proj": (8,),
        "model.layers.2.mlp.down_proj": (48,),
    }
    assert {p.dtype for n, p in model.named_parameters() if "surgical_ia3" in n} == {torch.float32}


def test_the_second_stage_may_have_coordinates_of_its_own():
    first = first_stage()
    frozen = of(first.model, "unlearn")
    second = learn(first.model, TOKENIZER, FACT, config(["L0.mlp"]), recipe=RECIPE, progress=False)
    [name] = of(second.model, "learn")
    assert "layers.0.mlp.down_proj" in name
    assert same(of(second.model, "unlearn"), frozen)
    assert second.record.steps == RECIPE.steps


def test_what_is_retained_is_the_bases_own_whichever_stage_works_it_out():
    first = first_stage()
    near, far = retain_prompts(FACT.training, RECIPE.neighbours, RECIPE.general)
    rows = first.retained.kept.rows
    assert [list(row.ids[: row.answer_start]) for row in rows] == [encode(TOKENIZER, p) for p in [*near, *far]]
    base = tiny_model("llama")
    for row, distribution in zip(rows, first.retained.base, strict=True):
        expected = logits(base, torch.tensor([row.ids]))[0, row.answer_start - 1 : -1]
        assert distribution.kl(expected).abs().max() < 1e-4
        assert distribution.tokens[:, 0].tolist() == list(row.ids[row.answer_start :])  # its own greedy answer
    # Also above the first stage's layers, whose hidden states are not the base's.
    higher = learn(first.model, TOKENIZER, FACT, config(["L2.mlp"]), recipe=RECIPE, progress=False)
    assert higher.retained.kept.rows == rows
    for mine, theirs in zip(higher.retained.base, first.retained.base, strict=True):
        torch.testing.assert_close(mine.log_probs, theirs.log_probs, atol=1e-5, rtol=1e-5)


def test_what_is_retained_is_worked_out_where_the_base_is():
    given = second_stage(first_stage())
    found = second_stage(first_stage(), retained=None)
    curvatures = (stage.retained.curvature.gradients for stage in (given, found))
    for theirs, mine in zip(*curvatures, strict=True):
        torch.testing.assert_close(mine, theirs)
    expected = of(given.model, "learn")
    assert all(torch.allclose(own, expected[name], atol=2e-3) for name, own in of(found.model, "learn").items())


def test_whole_modules_of_an_earlier_adapter_are_no_part_of_the_base():
    model = get_peft_model(tiny_model("llama"), config(modules_to_save=["lm_head"]), adapter_name="mine")
    model.get_output_embeddings().modules_to_save["mine"].weight.data.mul_(3)
    stage = learn(model, TOKENIZER, FACT, config(), recipe=RECIPE, progress=False)
    base = tiny_model("llama")
    for row, distribution in zip(stage.retained.kept.rows, stage.retained.base, strict=True):
        expected = logits(base, torch.tensor([row.ids]))[0, row.answer_start - 1 : -1]
        assert distribution.kl(expected).abs().max() < 1e-4


def test_training_sees_the_training_fact_only():
    expected = of(first_stage().model, "unlearn")
    assert same(of(first_stage(fact=FACT.training).model, "unlearn"), expected)
    changed = replace(FACT, held_out=("where is lyon ?",), controls=())
    assert same(of(first_stage(fact=changed).model, "unlearn"), expected)
    changed = replace(FACT, prompts=(*FACT.prompts[:2], "where is the seat of france ?"))
    assert not same(of(first_stage(fact=changed).model, "unlearn"), expected)


def test_the_seed_decides_all():
    one, same_seed, other = (of(first_stage(seed=seed).model, "unlearn") for seed in (1, 1, 2))
    assert same(one, same_seed)
    assert not same(one, other)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_faster_copy_trains_the_adapter_and_touches_nothing_else(family):
    base = tiny_model(family)
    weights = {id(p): p.detach().clone() for p in base.parameters()}
    attention = base.config._attn_implementation
    first = first_stage(family, model=base, recipe=replace(RECIPE, compute_dtype="bfloat16"))
    second = second_stage(first, recipe=replace(RECIPE, compute_dtype="bfloat16"))
    inner = second.model.get_base_model()
    assert inner is base
    assert inner.dtype == torch.float32
    assert inner.config._attn_implementation == attention
    frozen = {id(p): p for n, p in inner.named_parameters() if "surgical_ia3" not in n}
    assert frozen.keys() == weights.keys()
    assert all(torch.equal(p, weights[key]) for key, p in frozen.items())
    for stage in ("unlearn", "learn"):
        trained = of(second.model, stage)
        assert all(delta.dtype == torch.float32 and delta.abs().max() > 0 for delta in trained.values())
    # Coarser arithmetic, the same training.
    exact = of(first_stage(family).model, "unlearn")
    found = of(first.model, "unlearn")
    left, right = (torch.cat([side[name] for name in exact]) for side in (exact, found))
    assert not torch.equal(left, right)
    assert torch.nn.functional.cosine_similarity(left, right, dim=0) > 0.8


def test_a_model_of_low_precision_is_computed_in_its_own():
    first = first_stage(model=tiny_model("llama", dtype=torch.bfloat16), recipe=replace(RECIPE, compute_dtype="auto"))
    assert first.model.get_base_model().dtype == torch.bfloat16
    assert {delta.dtype for delta in of(first.model, "unlearn").values()} == {torch.float32}
    assert all(delta.abs().max() > 0 for delta in of(first.model, "unlearn").values())


def test_learning_in_one_stage():
    base = tiny_model("llama")
    stage = learn(base, TOKENIZER, FACT, config(), recipe=RECIPE, progress=False)
    assert list(stage.model.peft_config) == ["learn"]
    assert answer_loss(stage.model, FACT, FACT.answer) < answer_loss(tiny_model("llama"), FACT, FACT.answer)


def test_what_is_refused():
    first = first_stage()
    with pytest.raises(AdapterError, match="already has an adapter named 'unlearn'"):
        unlearn(first.model, TOKENIZER, FACT, config(), recipe=RECIPE, progress=False)
    with pytest.raises(AdapterError, match="learn needs a config, since the model has no active adapter"):
        learn(tiny_model("llama"), TOKENIZER, FACT, recipe=RECIPE, progress=False)
    with pytest.raises(SelectionError, match=r"L7\.mlp"):
        unlearn(tiny_model("llama"), TOKENIZER, FACT, config(["L7.mlp"]), recipe=RECIPE, progress=False)
    lora = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    before = fingerprint(lora)
    with pytest.raises(AdapterError, match=r"has one of type (PeftType\.)?LORA; merge it first"):
        learn(lora, TOKENIZER, FACT, config(), recipe=RECIPE, progress=False)
    assert fingerprint(lora) == before


@pytest.mark.parametrize("learned", [unlearn, learn, learn_by_subject])
def test_a_config_of_another_kind_is_refused(learned):
    ia3 = IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"])
    for wrong, told in ((ia3, "IA3Config"), (["L0.mlp"], r"\['L0"), (Selection(("L0.mlp",)), "Selection")):
        with pytest.raises(AdapterError, match=rf"^a stage's config must be a SurgicalIA3Config, not {told}.*\.$"):
            learned(tiny_model("llama"), TOKENIZER, FACT, wrong, progress=False)


def test_a_stage_is_neither_what_it_retained_nor_its_model():
    first = first_stage()
    match = r"^retained must be what a stage has as its `retained`, not Stage\('unlearn' of a Llama.*\)\.$"
    with pytest.raises(ModelError, match=match):
        learn(first.model, TOKENIZER, FACT, retained=first, progress=False)
    with pytest.raises(ModelError, match=r"not Stage\('unlearn' of .*\); give its model\.$"):
        learn(first, TOKENIZER, FACT, progress=False)


def test_an_idle_adapter_stays_idle():
    model = tiny_peft()
    model.add_adapter("idle", config(["L0.mlp"]))
    stage = learn(model, TOKENIZER, FACT, recipe=RECIPE, progress=False)
    assert stage.model.base_model.active_adapters == ["default", "learn"]
    assert of(stage.model, "learn").keys() == of(stage.model, "default").keys()


def test_a_stage_goes_on_top_of_any_surgical_adapter():
    model = tiny_peft()
    before, frozen = logits(model), of(model, "default")
    stage = learn(model, TOKENIZER, FACT, recipe=RECIPE, progress=False)
    assert same(of(stage.model, "default"), frozen)
    assert [p.shape for p in of(model, "learn").values()] == [p.shape for p in frozen.values()]
    activate(stage.model, ["default"])
    assert torch.equal(logits(stage.model), before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_saved_stages_load_to_the_same_model(family, tmp_path):
    first = first_stage(family)
    unlearned = logits(first.model)
    first.save(tmp_path / "unlearn")
    second = second_stage(first)
    second.save(tmp_path / "learn")
    both = logits(second.model)
    assert not torch.equal(both, unlearned)
    loaded = PeftModel.from_pretrained(tiny_model(family), tmp_path / "unlearn", adapter_name="unlearn")
    assert torch.equal(logits(loaded), unlearned)
    loaded.load_adapter(tmp_path / "learn", "learn")
    activate(loaded, ["unlearn", "learn"])
    assert torch.equal(logits(loaded), both)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_else_of_the_model_trains_gets_no_gradient(dtype):
    model = get_peft_model(tiny_model("llama"), config(), adapter_name="first")
    norms = [p for name, p in model.named_parameters() if "norm" in name]
    for number, parameter in enumerate(norms):
        parameter.requires_grad_(True)
        parameter.grad = torch.ones_like(parameter) if number % 2 else None
    before = [None if p.grad is None else p.grad.clone() for p in norms]
    recipe = replace(RECIPE, compute_dtype=dtype)
    learn(model, TOKENIZER, FACT, recipe=recipe, progress=False)
    assert all(p.requires_grad for p in norms)
    for parameter, gradient in zip(norms, before, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


def test_a_model_that_carries_adapters_unseen_is_refused():
    model = tiny_model("llama")
    first = first_stage(model=model)
    said = logits(first.model)
    with pytest.raises(AdapterError, match="has adapters on it, put there by transformers or"):
        first_stage(model=model)
    with pytest.raises(AdapterError, match="has adapters on it, put there by transformers or"):
        learn(model, TOKENIZER, FACT, config(), recipe=RECIPE, progress=False)
    assert torch.equal(logits(first.model), said)


@pytest.mark.parametrize("names", [["model.embed_tokens"], ["model.layers.0"], ["lm_head"]])
def test_what_is_not_scaled_may_be_offloaded(names):
    expected = of(first_stage().model, "unlearn")
    assert same(of(first_stage(model=offloaded(tiny_model("llama"), names)).model, "unlearn"), expected)


def test_what_is_scaled_may_not_be_offloaded():
    model = offloaded(tiny_model("llama"), ["model.layers.2"])
    before = list(model.state_dict())
    with pytest.raises(ModelError, match=r"layers\.2\..* has no weights at hand .* offloaded"):
        first_stage(model=model)
    assert list(model.state_dict()) == before
