import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import get_peft_model
from torch import nn

import peft_surgical as ps
from peft_surgical import plugins
from peft_surgical.errors import ModelError
from peft_surgical.localization import localize
from peft_surgical.localizing.bridge import has_hooks, same_logits, wrap
from peft_surgical.localizing.runs import Runs

from .localizing import capital, planted, word_tokenizer
from .test_hardening_scorers import Installed, module
from .tiny import FAMILIES, tiny_ids, tiny_model


def scores(model):
    return localize(model, word_tokenizer(), capital(), ["logit_drop"], progress=False).scores["logit_drop"]


@pytest.mark.parametrize("family", FAMILIES)
def test_nobodys_random_numbers_are_drawn(family):
    model, before = tiny_model(family), torch.get_rng_state()
    wrap(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_importing_transformer_lens_leaves_filters_of_warnings_and_the_logger():
    # In a process of its own, since an import is done once.
    script = """
import sys, warnings
from transformers.utils import logging
from peft_surgical.localizing.bridge import wrap
from tests.tiny import tiny_model

model = tiny_model("llama")
before = list(warnings.filters), logging.get_verbosity()
assert "transformer_lens" not in sys.modules
wrap(model)
assert "transformer_lens" in sys.modules
assert (warnings.filters, logging.get_verbosity()) == before
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_models_weights_are_not_copied(family):
    model = tiny_model(family)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    copied = [p for p in wrap(model).parameters() if p.untyped_storage().data_ptr() not in own]
    # TransformerLens splits GPT-NeoX's, and this much and no more is copied.
    split = [p for name, p in model.named_parameters() if "query_key_value" in name]
    assert bool(split) == (family == "gpt_neox")
    assert sum(p.numel() for p in copied) == sum(p.numel() for p in split)


def test_buffers_are_the_models_and_what_is_frozen_stays_so():
    model = tiny_model("llama").requires_grad_(False)
    model.lm_head.requires_grad_(True)
    bridge = wrap(model)
    assert {id(buffer) for buffer in model.buffers()} <= {id(buffer) for buffer in bridge.original_model.buffers()}
    assert sum(p.requires_grad for p in bridge.original_model.parameters()) == 1
    assert not any(module.training for module in bridge.modules())


def test_a_model_whose_keys_and_values_transformer_lens_would_not_see_is_refused(monkeypatch):
    model = tiny_model("llama")

    def forward(self, input_ids=None, cache=None, **kwargs):
        raise AssertionError("nothing is run")

    monkeypatch.setattr(type(model), "forward", forward)
    with pytest.raises(ModelError, match=r"transformer-lens 4\..* and transformers 5\..* do not fit together"):
        wrap(model)


def test_a_model_under_transformer_lens_hooks_is_refused():
    bridge = wrap(tiny_model("llama"))
    for given in (bridge, bridge.original_model):
        with pytest.raises(ModelError, match="under TransformerLens hooks already"):
            wrap(given)


@pytest.mark.parametrize("kind", ["bridge", "below a bridge", "data parallel"])
@pytest.mark.parametrize(
    "step",
    ["get_peft_model", "localize", "unlearn", "edit", "edit_keyed", "learn_sentence", "learn_keyed", "evaluate"],
)
def test_no_step_takes_a_model_that_something_else_has_wrapped(step, kind, tmp_path):
    given = nn.DataParallel(tiny_model("llama")) if kind == "data parallel" else wrap(tiny_model("llama"))
    given = given.original_model if kind == "below a bridge" else given
    config = ps.SurgicalIA3Config(components=["L1.mlp"], task_type="CAUSAL_LM")
    tokenizer, fact = word_tokenizer(), capital()
    steps = {
        "get_peft_model": lambda: get_peft_model(given, config),
        "localize": lambda: ps.localize(given, tokenizer, fact, ["random"]),
        "unlearn": lambda: ps.unlearn(given, tokenizer, fact, config),
        "edit": lambda: ps.edit(given, tokenizer, fact, out=tmp_path / "out"),
        "edit_keyed": lambda: ps.edit_keyed(given, tokenizer, fact, out=tmp_path / "out"),
        "learn_sentence": lambda: ps.learn_sentence(given, tokenizer, "the capital of france is", new="lyon"),
        "learn_keyed": lambda: ps.learn_keyed(given, tokenizer, fact),
        "evaluate": lambda: ps.evaluate(given, tokenizer, fact),
    }
    words = "by DataParallel; give what it wraps" if kind == "data parallel" else "under TransformerLens hooks already"
    with pytest.raises(ModelError, match=words):
        steps[step]()
    assert not (tmp_path / "out").exists()


FUSED = [
    ("phi3", "model.layers.1.self_attn.qkv_proj"),
    ("phi3", "model.layers.1.mlp.gate_up_proj"),
    ("gpt2", "transformer.h.1.attn.c_attn"),
    ("gpt_neox", "gpt_neox.layers.1.attention.query_key_value"),
]


class Doubled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

    def forward(self, x):
        return 2 * self.inner(x)


@pytest.mark.parametrize(
    ("family", "name", "dtype"),
    [(*fused, torch.float32) for fused in FUSED] + [(*FUSED[0], torch.bfloat16), (*FUSED[0], torch.float16)],
)
def test_a_hook_on_a_fused_projection_is_refused(family, name, dtype):
    model = tiny_model(family, dtype=dtype)
    handle = model.get_submodule(name).register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(ModelError, match=f"computes something else than this model, a {type(model).__name__}: a hook"):
        wrap(model)
    handle.remove()
    wrap(model)


def test_a_wrapper_around_a_fused_projection_is_refused():
    model = tiny_model("phi3")
    attention = model.model.layers[1].self_attn
    attention.qkv_proj = Doubled(attention.qkv_proj)
    with pytest.raises(ModelError, match="a hook or wrapper on a fused projection"):
        wrap(model)


def test_a_setting_that_only_transformer_lens_knows_is_refused():
    with pytest.raises(ModelError, match="or a setting that one of them does not know"):
        wrap(tiny_model("gemma3", attn_logit_softcapping=2.0))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hook_elsewhere_is_taken_over(family):
    model = tiny_model(family, dtype=torch.bfloat16)
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: output * 2)
    ids = tiny_ids()
    with torch.no_grad():
        expected, found = model(ids).logits.float(), wrap(model).original_model(ids).logits.float()
    assert (found - expected).abs().max() < 0.1 * expected.std()


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_rounded_products_are_no_fault(precision):
    """Where products may be rounded to TF32, or bfloat16, so may the logits be."""
    before = torch.get_float32_matmul_precision()
    model = tiny_model("llama")
    head = model.get_output_embeddings()
    calls = iter([0.01, 0.0] * 4)
    head.register_forward_hook(lambda module, args, output: output + next(calls) * output.std())
    with pytest.raises(ModelError, match="computes something else"):
        wrap(model)
    try:
        torch.set_float32_matmul_precision(precision)
        wrap(model)
    finally:
        torch.set_float32_matmul_precision(before)


def test_what_half_precision_adds_up_to_is_looked_at_again_in_float32():
    model = tiny_model("llama", dtype=torch.bfloat16)
    calls: list[float] = []
    model.lm_head.register_forward_hook(lambda module, args, output: output + calls.pop(0) * output.std())
    calls += [0.0, 0.5, 0.0, 0.0]
    wrap(model)
    assert not calls
    calls += [0.0, 0.5, 0.0, 0.5]
    with pytest.raises(ModelError, match="computes something else"):
        wrap(model)


def test_logits_are_compared_in_units_of_their_own_spread():
    model, own = tiny_model("llama"), torch.tensor([0.0, 2.0, 4.0])
    # Of these the standard deviation is 2, so that float32 may be 0.002 away.
    for scale in (1.0, 1e6):
        assert same_logits(scale * own, scale * (own + 0.0015), model)
        assert not same_logits(scale * own, scale * (own + 0.0025), model)


def test_the_check_leaves_the_model_as_it_was():
    model = tiny_model("phi3", resid_pdrop=0.5).train()
    model.model.layers[0].mlp.eval()
    modes = [module.training for module in model.modules()]
    drawn = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: drawn.append(torch.rand(1)))
    before = torch.get_rng_state()
    wrap(model)
    assert drawn
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_logits_that_are_not_finite_are_left_to_who_reads_the_answers():
    model = tiny_model("llama")
    model.get_output_embeddings().weight.data.fill_(torch.inf)
    wrap(model)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("opt", {"do_layer_norm_before": False}, "cannot wrap a OPTForCausalLM: .*final_layer_norm"),
        ("gpt_neox", {"attention_bias": False}, "cannot wrap a GPTNeoXForCausalLM: AssertionError$"),
    ],
)
def test_a_variant_that_transformer_lens_does_not_know_is_refused(family, changes, message):
    with pytest.raises(ModelError, match=message):
        wrap(tiny_model(family, **changes))


def test_a_model_that_fails_by_itself_is_refused():
    model = tiny_model("llama")

    def fails(module, args):
        raise KeyError("missing")

    model.model.layers[1].register_forward_pre_hook(fails)
    with pytest.raises(ModelError, match="the model, a LlamaForCausalLM, cannot be run: 'missing'"):
        wrap(model)


class Recorder:
    def __init__(self):
        self.seen = []

    def __call__(self, module, args, output):
        self.seen.append(output)


def test_a_model_that_cannot_be_copied_is_refused():
    model, recorder = tiny_model("llama"), Recorder()
    handle = model.model.layers[1].mlp.register_forward_hook(recorder)
    model(tiny_ids())
    with pytest.raises(ModelError, match=r"a hook or attribute of the model cannot be copied \(.*deepcopy.*remove it"):
        wrap(model)
    handle.remove()
    model.lock = threading.Lock()
    with pytest.raises(ModelError, match=r"cannot be copied \(cannot pickle '_thread.lock' object\)"):
        wrap(model)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_of_float64_is_refused(family):
    with pytest.raises(ModelError, match=r"weights are float64 \(.*\); localize in float32"):
        wrap(tiny_model(family).double())


def test_a_hook_on_a_projection_of_its_own_is_part_of_the_model():
    hooked, doubled = tiny_model("llama"), tiny_model("llama")
    hooked.model.layers[1].mlp.down_proj.register_forward_hook(lambda module, args, output: output * 2)
    with torch.no_grad():
        doubled.model.layers[1].mlp.down_proj.weight *= 2
    found, expected = (scores(model) for model in (hooked, doubled))
    torch.testing.assert_close(found, expected)


def test_a_hook_on_a_fused_projection_is_refused_before_anything_is_scored():
    model = tiny_model("phi3")
    model.model.layers[1].self_attn.qkv_proj.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(ModelError, match="TransformerLens computes something else than this model"):
        scores(model)


def steered(hook, family="llama", dtype=torch.float32):
    """A model with a hook on its first MLP, and what that adds; the hook is given the MLP's output and this."""
    model = tiny_model(family, dtype=dtype)
    added = torch.randn(32, generator=torch.Generator().manual_seed(0)).to(dtype)
    name = next(name for name, _ in model.named_modules() if name.endswith("0.mlp"))
    model.get_submodule(name).register_forward_hook(lambda module, args, output: hook(output.clone(), added))
    return model


def at_places(places, rows=slice(None)):
    def hook(output, added):
        output[rows, places] += added
        return output

    return hook


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("hook", "how"),
    [
        (at_places(slice(0, 3)), r"it gives other logits after 'what is the capital of france \?'"),
        (at_places(slice(5, None)), "it gives other logits after"),
        (at_places(-1), "it gives other logits after"),
        (at_places(slice(None), rows=0), r"it gives other logits after 'name the capital of france \.'"),
        (at_places(2), "in a pass of another length it fails: index 2 is out of bounds"),
    ],
)
def test_a_hook_that_depends_on_a_tokens_place_is_refused(hook, how, dtype):
    with pytest.raises(ModelError, match=rf"depends on a token's position or on how long a pass is, .*\({how}"):
        scores(steered(hook, dtype=dtype))


def test_a_hook_that_only_a_pass_of_one_token_is_without_is_refused_where_there_is_one():
    model = steered(lambda output, added: output + added if output.shape[1] > 1 else output)
    more, one = capital(prompts=["the capital of france ?"]), capital(prompts=["the capital of france"])
    for fact, refused in ((more, False), (one, True)):
        with pytest.raises(ModelError, match="how long a pass is") if refused else nullcontext():
            localize(model, word_tokenizer(), fact, ["random"], progress=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gemma3", "gpt_neox"])
@pytest.mark.parametrize(
    "hook",
    [lambda output, added: output + added, lambda output, added: output * (output.mean(-1, keepdim=True) > 0)],
    ids=["everywhere", "by what it reads"],
)
def test_a_hook_that_acts_wherever_a_token_stands_is_none_that_is_refused(hook, family, dtype):
    scores(steered(hook, family, dtype))


def test_only_models_with_hooks_are_tried_for_them(monkeypatch):
    tried = []
    monkeypatch.setattr(Runs, "_check_hooks", lambda runs, pairs, max_tokens: tried.append(len(pairs)))
    plain, mapped, forwarded, fed = (tiny_model("llama") for _ in range(4))
    add_hook_to_module(mapped.model.layers[1], AlignDevicesHook(torch.device("cpu")))
    scores(plain)
    scores(mapped)
    assert not tried
    forwarded.model.layers[1].mlp.forward = forwarded.model.layers[1].mlp.forward
    fed.model.layers[1].register_forward_pre_hook(lambda module, args: None)
    for model in (steered(at_places(slice(None))), forwarded, fed):
        assert has_hooks(model)
    scores(steered(at_places(slice(None))))
    assert tried == [3]


def test_a_scorer_that_is_asked_does_not_see_the_hooks_of_who_asks(monkeypatch):
    tokenizer, found = word_tokenizer(), {}

    def asks(context):
        zeros = [("blocks.1.attn.hook_z", lambda tensor, hook: tensor * 0)]
        with context.model.hooks(fwd_hooks=zeros):
            found["asked"] = context.score("attribution").components
            found["once"] = context.once("logits", lambda: said(context))
            found["own"] = said(context)
        found["behind"] = said(context)
        return {site: torch.ones(site.size) for site in context.sites}

    def said(context):
        [window] = context.windows()
        return context.runs.logits(window, window.clean)

    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: [Installed(module(asks=asks))])
    asked = localize(planted(), tokenizer, capital(), ["asks", "attribution"], progress=False)
    alone = localize(planted(), tokenizer, capital(), ["attribution"], progress=False)
    assert asked.scores["attribution"] == alone.scores["attribution"] == found["asked"]
    assert torch.equal(found["once"], found["behind"])
    assert not torch.equal(found["own"], found["behind"])


def test_hidden_states_are_there_for_every_scorer(monkeypatch):
    found = []

    def states(context):
        out = context.model.original_model(input_ids=context.pairs[0].clean[None], output_hidden_states=True)
        found.append(len(out.hidden_states))
        return {site: torch.ones(site.size) for site in context.sites}

    own = module(first=states, second=lambda context: states(context))
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: [Installed(own)])
    localize(planted(), word_tokenizer(), capital(), ["first", "second"], progress=False)
    assert found == [4, 4]
