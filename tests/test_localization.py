import copy
import re
import warnings
from types import MethodType

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn
from transformers.utils import logging

from peft_surgical.errors import ArchitectureError, ModelError, ScorerError, SurgicalError
from peft_surgical.localization import DEFAULT_SCORERS, localize
from peft_surgical.sites import ModelShape, components

from .localizing import capital, planted, without, word_tokenizer
from .offloading import offloaded
from .tiny import FAMILIES, tiny_ids, tiny_model

ALL = [
    "logit_drop",
    "attribution",
    "attribution:steps=3",
    "lookup",
    "gradient_norm",
    "activation_magnitude",
    "specificity",
]
OPTIONS = ["measure=old", "measure=new", "ablation=zero", "ablation=mean"]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def run(model, tokenizer, *scorers, fact=None, **options):
    return localize(model, tokenizer, fact or capital(), list(scorers) or None, progress=False, **options)


def vector(loc, scorer):
    return torch.tensor([loc.scores[scorer][str(c)] for c in components(loc.shape)])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_localizes_by_default(tokenizer, family):
    loc = run(tiny_model(family), tokenizer)
    assert loc.scorers == DEFAULT_SCORERS
    assert loc.errors == {}
    for scorer in DEFAULT_SCORERS:
        assert list(loc.scores[scorer]) == [str(c) for c in components(loc.shape)]
    assert len(loc.top(5).components) == 5
    loc.top(5).check(ModelShape.from_config(tiny_model(family).config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_left_as_it_was(tokenizer, dtype):
    model = tiny_model("llama", dtype=dtype).train()
    model.requires_grad_(False)
    model.model.layers[0].mlp.down_proj.weight.requires_grad_(True)
    before = {
        name: (tensor, tensor.clone(), tensor.requires_grad)
        for name, tensor in model.state_dict(keep_vars=True).items()
    }
    modules = dict(model.named_modules())
    configuration = copy.deepcopy(model.config.to_dict())
    verbosity = logging.get_verbosity()
    ids = tiny_ids()
    with torch.no_grad():
        logits = model(ids).logits
    run(model, tokenizer, *ALL)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    for name, (tensor, values, requires_grad) in before.items():
        assert after[name] is tensor
        assert torch.equal(tensor, values)
        assert tensor.requires_grad == requires_grad
        assert tensor.grad is None
    assert dict(model.named_modules()) == modules
    assert all(module.training for module in modules.values())
    assert model.config.to_dict() == configuration
    assert logging.get_verbosity() == verbosity
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules.values())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "phi3", "qwen3", "gpt_neox"])
def test_scores_do_not_depend_on_batch_size_or_padding_side(family):
    scorers = [*ALL, *(f"logit_drop:{option}" for option in OPTIONS), "verified", "consensus"]
    if family == "gpt_neox":
        scorers.remove("specificity")  # the corruption lowers nothing in this random model, so nothing has a share
    model = tiny_model(family)
    found = []
    # Prompts of two lengths, and others that they are compared with; in one pass, a row at a time, and some at a time.
    fact = capital(prompts=capital().prompts[:2], contrast=["italy"])
    for side, max_tokens in (("right", 4096), ("right", 1), ("left", 150)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.append(run(model, word_tokenizer(padding_side=side), *scorers, fact=fact, max_tokens=max_tokens))
    for scorer in scorers:
        first, *others = (vector(loc, scorer) for loc in found)
        for other in others:
            torch.testing.assert_close(other, first, atol=2e-5, rtol=1e-3, msg=lambda m, s=scorer: f"{s}: {m}")
        assert first.abs().max() > 1e-3, scorer


def test_what_is_measured_is_never_tokenized(tokenizer):
    seen = []

    class Spy(type(tokenizer)):
        def __call__(self, text, *args, **kwargs):
            seen.append(text)
            return super().__call__(text, *args, **kwargs)

    spy = copy.copy(tokenizer)
    spy.__class__ = Spy
    fact = capital(
        probes=[{"prompt": "is paris the capital of france ?", "kind": "contradiction"}],
        portability=[{"kind": "reversal", "prompt": "lyon is the capital of", "answer": ["france"]}],
    )
    run(planted(), spy, fact=fact)
    assert any(fact.prompts[0] in text for text in seen)
    hidden = [*fact.held_out, *(asked.prompt for asked in (*fact.controls, *fact.probes, *fact.portability))]
    assert len(hidden) == 4
    assert not any(prompt in text for text in seen for prompt in hidden)


def test_a_fact_and_its_training_part_localize_alike(tokenizer):
    model = tiny_model("llama")
    one, other = run(model, tokenizer), run(model, tokenizer, fact=capital().training)
    assert one.scores == other.scores


def test_only_the_first_prompts_can_be_used(tokenizer):
    loc = run(tiny_model("llama"), tokenizer, "attribution", prompts=2)
    assert [record["prompt"] for record in loc.corruption] == list(capital().prompts[:2])


def test_the_corruption_is_recorded(tokenizer):
    loc = run(planted(), tokenizer, "random", fact=capital(contrast=["italy"]))
    record = loc.corruption[0]
    assert (record["method"], record["other"], record["rival"]) == ("swap", "italy", "rome")
    assert record["rival_token"] == tokenizer.convert_tokens_to_ids("rome")
    assert record["clean"] > 0 > record["corrupted"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"contrast": ["new zealand"]}, ("noise", None)),
        ({"prompts": ["which city has the government ?"]}, ("mean", None)),
    ],
)
def test_a_corruption_of_the_embeddings_is_recorded(tokenizer, changes, expected):
    [record, *_] = run(planted(), tokenizer, "random", fact=capital(**changes)).corruption
    assert (record["method"], record["other"]) == expected
    assert record["clean"] != record["corrupted"]


def test_scores_are_averages_over_the_prompts(tokenizer):
    model = tiny_model("llama")
    fact = capital(contrast=["italy"])
    scorers = ["logit_drop", "attribution", "gradient_norm"]
    whole = run(model, tokenizer, *scorers, fact=fact)
    parts = [
        run(model, tokenizer, *scorers, fact=capital(contrast=["italy"], prompts=[prompt])) for prompt in fact.prompts
    ]
    for scorer in whole.scorers:
        mean = torch.stack([vector(part, scorer) for part in parts]).mean(0)
        torch.testing.assert_close(vector(whole, scorer), mean, atol=1e-5, rtol=1e-4)
    tables = [loc.tables["gradient_norm"] for loc in (whole, *parts)]
    for measured in (lambda own: own.neurons["L1.mlp"], lambda own: list(own.notes["weight_matrices"].values())):
        found, *alone = (torch.tensor(measured(own)) for own in tables)
        torch.testing.assert_close(found, torch.stack(alone).mean(0), atol=1e-5, rtol=1e-4)


def test_half_precision_is_scored_exactly_in_float32(tokenizer):
    half = tiny_model("llama", dtype=torch.bfloat16)
    full = copy.deepcopy(half).float()
    for name in ("logit_drop:measure=old", "logit_drop"):
        scored, expected = run(half, tokenizer, name), run(full, tokenizer, name)
        torch.testing.assert_close(vector(scored, name), vector(expected, name), atol=1e-5, rtol=1e-3)
        assert [record["rival"] for record in scored.corruption] == [record["rival"] for record in expected.corruption]
        assert scored.dtype == "bfloat16"


EVERY = [*ALL, "verified", "consensus", "random", "logit_drop:ablation=mean"]


def same_scores(found, expected):
    assert found.errors == expected.errors == {}
    assert found.corruption == expected.corruption
    assert found.scores == expected.scores
    for name, table in expected.tables.items():
        for mlp, values in table.neurons.items():
            assert np.array_equal(found.tables[name].neurons[mlp], values)


def test_autocast_of_the_caller_is_set_aside(tokenizer):
    expected = run(tiny_model("llama"), tokenizer, *EVERY)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(tiny_model("llama"), tokenizer, *EVERY)
        assert torch.is_autocast_enabled("cpu")
    same_scores(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_not_rounded_as_the_caller_may_have_them(tokenizer, dtype):
    expected = run(tiny_model("llama", dtype=dtype), tokenizer, "logit_drop")
    torch.set_float32_matmul_precision("medium")
    try:
        found = run(tiny_model("llama", dtype=dtype), tokenizer, "logit_drop")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    same_scores(found, expected)


def around(module):
    """Puts a closure around a module's forward, as profilers and patches do."""
    own = module.forward
    module.forward = lambda *args, **kwargs: own(*args, **kwargs)


@pytest.mark.parametrize("name", ["", "model", "model.layers.1", "model.layers.1.mlp"])
def test_a_forward_that_hooks_do_not_see_below_is_refused(tokenizer, name):
    model = tiny_model("llama")
    around(model.get_submodule(name))
    for layer in model.model.layers:
        if "forward" not in vars(layer.mlp):
            layer.mlp.forward = MethodType(type(layer.mlp).forward, layer.mlp)
    where = re.escape(f"model.get_submodule('{name}')" if name else "model")
    message = rf"the forward of {name or 'the model itself'} was replaced by a function.*`del {where}\.forward`"
    with pytest.raises(ModelError, match=message):
        run(model, tokenizer, "lookup")


def test_a_forward_that_runs_nothing_below_is_refused(tokenizer):
    model = tiny_model("gpt2")
    model.transformer.h[1].mlp.forward = torch.zeros_like
    with pytest.raises(ModelError, match=r"the forward of transformer\.h\.1\.mlp was replaced"):
        run(model, tokenizer, "lookup")


def test_a_forward_with_nothing_to_see_below_is_taken(tokenizer):
    model = tiny_model("llama")
    layer = model.model.layers[1]
    # TransformerLens computes attention by itself.
    for module in (layer.mlp.down_proj, layer.mlp.act_fn, layer.input_layernorm, layer.self_attn):
        around(module)
    layer.mlp.forward = MethodType(type(layer.mlp).forward, layer.mlp)
    same_scores(run(model, tokenizer, "lookup"), run(tiny_model("llama"), tokenizer, "lookup"))


def test_what_a_model_of_half_precision_says_is_read_in_float32(tokenizer):
    model = tiny_model("llama", dtype=torch.bfloat16)
    half, full = (run(each, tokenizer, "random").corruption for each in (model, copy.deepcopy(model).float()))
    for one, other in zip(half, full, strict=True):
        assert (one["clean"], one["corrupted"]) == pytest.approx((other["clean"], other["corrupted"]), abs=2e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("contrast", [["italy", "spain", "japan"], ["new zealand"]], ids=["swap", "noise"])
def test_the_callers_default_dtype_changes_nothing(tokenizer, dtype, contrast):
    fact = capital(contrast=contrast)
    scorers = [scorer for scorer in EVERY if scorer != "specificity"]
    expected = run(tiny_model("llama"), tokenizer, *scorers, fact=fact)
    model = tiny_model("llama")
    torch.set_default_dtype(dtype)
    try:
        found = run(model, tokenizer, *scorers, fact=fact)
    finally:
        torch.set_default_dtype(torch.float32)
    same_scores(found, expected)


@pytest.mark.parametrize(
    "config", [LoraConfig(target_modules=["q_proj"]), IA3Config(target_modules=["v_proj"], feedforward_modules=[])]
)
def test_an_adapter_is_refused_and_the_way_out_works(tokenizer, config):
    base = tiny_model("llama")
    peft_model = get_peft_model(base, config)
    for model in (peft_model, peft_model.base_model.model):
        with pytest.raises(ModelError, match=r"carries a PEFT adapter.*unload"):
            run(model, tokenizer, "random")
    expected = run(tiny_model("llama"), tokenizer, "attribution")
    assert run(peft_model.unload(), tokenizer, "attribution").scores == expected.scores


def test_a_quantized_model_is_refused(tokenizer):
    model = tiny_model("llama")
    linear = model.model.layers[1].mlp.up_proj
    linear.weight = nn.Parameter(torch.zeros(linear.weight.shape, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"quantized \(model.layers.1.mlp.up_proj.weight holds torch.int8\)"):
        run(model, tokenizer, "random")


@pytest.mark.parametrize("bits", [8, 4])
def test_a_model_quantized_by_bitsandbytes_is_refused(tokenizer, bits):
    pytest.importorskip("bitsandbytes")
    from .test_quantized import quantized

    with pytest.raises(ModelError, match=r"quantized .*; localize on the unquantized checkpoint"):
        run(quantized(bits), tokenizer, "random")


def test_other_models_that_cannot_be_localized_are_refused(tokenizer, monkeypatch):
    with pytest.raises(ModelError, match="meta device"):
        run(tiny_model("llama").to("meta"), tokenizer, "random")
    with pytest.raises(ModelError, match="Linear has no configuration"):
        run(nn.Linear(2, 2), tokenizer, "random")
    monkeypatch.setattr("peft_surgical.architectures._KNOWN", {})
    with pytest.raises(ModelError, match="register_architecture"):
        run(tiny_model("llama"), tokenizer, "random")


@pytest.mark.parametrize(
    ("scorers", "options", "message"),
    [
        (["nonsense"], {}, "no scorer 'nonsense'"),
        ([], {}, "at least one scorer"),
        (["random"], {"prompts": 0}, "prompts"),
        (["random"], {"prompts": 2.5}, "prompts must be a whole number of 1 or more; got 2.5"),
        (["random"], {"prompts": "3"}, "prompts must be"),
        (["random"], {"prompts": True}, "prompts must be"),
        (["random"], {"seed": 1.5}, r"seed must be a whole number \(int\) from"),
        (["random"], {"seed": 2**64}, r"seed must be a whole number \(int\) from"),
        (["random"], {"max_tokens": "x"}, "max_tokens must be a whole number of 1 or more; got 'x'"),
        ([3], {}, "a scorer is given as text, such as 'attribution:steps=5', not 3"),
        (["random:draw=\ud83d"], {}, "a scorer is given as text"),
    ],
)
def test_wrong_arguments_are_refused(tokenizer, scorers, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        localize(tiny_model("llama"), tokenizer, capital(), scorers, progress=False, **options)
    assert isinstance(caught.value, SurgicalError)


def test_what_is_no_model_is_refused(tokenizer):
    with pytest.raises(ModelError, match="a model must be a torch module, such as load_model gives, not None"):
        run(None, tokenizer)


def test_a_function_in_the_place_of_scorers_is_refused(tokenizer):
    with pytest.raises(ScorerError, match=r"names of installed ones, such as \['attribution'\], not <func"):
        localize(tiny_model("llama"), tokenizer, capital(), vector)


def test_a_model_of_inference_mode_is_refused(tokenizer):
    model = tiny_model("llama")
    with torch.inference_mode():
        model, buffer = copy.deepcopy(model), torch.ones(1)
    buffered = tiny_model("llama")
    buffered.register_buffer("mine", buffer)
    for each in (model, buffered):
        with pytest.raises(ModelError, match=r"was loaded under torch.inference_mode\(\), .* load it outside"):
            run(each, tokenizer)


def test_one_scorer_may_be_text(tokenizer):
    assert localize(planted(), tokenizer, capital(), "random", progress=False).scorers == ("random",)


def test_inference_mode_is_refused(tokenizer):
    with torch.inference_mode(), pytest.raises(ModelError, match=r"takes gradients, which torch.inference_mode\(\)"):
        run(planted(), tokenizer, "attribution")


@pytest.mark.filterwarnings("ignore::peft_surgical.plugins.PluginWarning")
def test_an_unfit_scorer_error_is_raised_when_alone(tokenizer):
    with pytest.raises(ScorerError, match="there is no scorer 'nope'"):
        localize(planted(), tokenizer, capital(), "consensus:of=lookup+nope", progress=False)
    # What it had computed before it failed is none of those that were to be.
    fact = without("contrast", "retain")
    with pytest.raises(ScorerError, match="needs the fact's `contrast`"):
        localize(planted(), tokenizer, fact, "consensus:of=lookup+specificity", progress=False)
    with pytest.raises(ScorerError, match="steps must be at least 1"):
        run(tiny_model("llama"), tokenizer, "attribution:steps=0")


def test_experts_in_the_place_of_an_mlp_are_refused(tokenizer, experts):
    with pytest.raises(ArchitectureError, match=r"names model\.layers\.0\.mlp\.gate_proj, and this model has no such"):
        localize(experts, tokenizer, capital(), progress=False)


def test_a_model_whose_weights_are_not_at_hand_is_refused():
    for model, why in (
        (
            offloaded(tiny_model("llama"), ["model.layers.1"]),
            r"\(model\.layers\.1\..*\) are offloaded to memory or disk",
        ),
        (tiny_model("llama").to("meta"), "weights are not loaded"),
    ):
        with pytest.raises(ModelError, match=why):
            localize(model, word_tokenizer(), capital(), ["logit_drop"], progress=False)
