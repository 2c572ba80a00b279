"""An edited checkpoint beside its base."""

import copy
import shutil
import warnings
from contextlib import nullcontext

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralForCausalLM

import peft_surgical as ps
from peft_surgical.errors import ModelError
from peft_surgical.measuring import checkpoints
from peft_surgical.measuring.afterwards import with_relearned, with_rounded
from peft_surgical.measuring.checkpoints import edited_checkpoint
from peft_surgical.measuring.rounding import round_channels
from peft_surgical.reporting.weights import weights_told

from .adapters import logits
from .conftest import fingerprint
from .localizing import capital, planted, word_tokenizer
from .test_merging import hub
from .tiny import FAMILIES, tiny_experts, tiny_model

TOKENIZER = word_tokenizer()
DOWN = "model.layers.1.mlp.down_proj.weight"
LOOSE = {"max_new_tokens": 4, "retention_tokens": 60, "progress": False}


def edited_model(family="llama", seed=0, dtype=torch.float32, **config):
    """The tiny model with one weight matrix changed, whatever it is called."""
    model = tiny_model(family, seed, dtype, **config)
    name, weight = [(n, p) for n, p in model.named_parameters() if p.ndim == 2 and ("layers.1" in n or ".h.1" in n)][
        -1
    ]
    with torch.no_grad():
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)).to(dtype) * 0.5)
    return model, name


def checkpoint(folder, family="llama", **config):
    model, name = edited_model(family, **config)
    model.save_pretrained(folder)
    return folder, model, name


def in_state(model, state):
    with state():
        return logits(model)


@pytest.fixture
def whole(monkeypatch):
    """Loading a second model whole is an error."""

    def load(*args, **options):
        raise AssertionError("a second model was loaded whole")

    monkeypatch.setattr(checkpoints, "load_model", load)
    monkeypatch.setattr(checkpoints, "load_alone", load)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_its_state_the_base_is_the_edited_model_and_then_the_base_again(family, tmp_path, whole):
    folder, other, name = checkpoint(tmp_path / "edited", family)
    base = tiny_model(family)
    before, storages = fingerprint(base), [p.data_ptr() for p in base.parameters()]
    edited = edited_checkpoint(base, TOKENIZER, folder)
    assert edited.record["changed"] == [name]
    assert edited.record["tensors"] == len(list(base.parameters())) + len(
        [key for key in base.state_dict() if key not in dict(base.named_parameters(remove_duplicate=False))]
    )
    for _ in range(2):
        assert torch.equal(in_state(base, edited.state), logits(other))
        assert fingerprint(base) == before
    # Not even copied: the base's own tensors are where they were.
    assert [p.data_ptr() for p in base.parameters()] == storages
    assert not torch.equal(logits(base), logits(other))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_base_comes_back_whatever_ends_the_state(error, tmp_path):
    folder, _, _ = checkpoint(tmp_path / "edited")
    base = tiny_model("llama")
    before, state = fingerprint(base), edited_checkpoint(base, TOKENIZER, folder).state
    with pytest.raises(error), state():
        raise error
    assert fingerprint(base) == before


def test_an_interrupt_while_weights_are_exchanged_leaves_the_base(tmp_path, monkeypatch):
    other = tiny_model("llama", seed=1)
    other.save_pretrained(tmp_path / "edited")
    base = tiny_model("llama")
    before, state = fingerprint(base), edited_checkpoint(base, TOKENIZER, tmp_path / "edited").state
    calls, to = [], torch.Tensor.to

    def interrupted(tensor, *args, **options):
        calls.append(tensor)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return to(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", interrupted)
    with pytest.raises(KeyboardInterrupt), state():
        raise AssertionError("not reached")
    monkeypatch.undo()
    assert len(calls) > 5
    assert fingerprint(base) == before


def test_what_is_written_in_the_state_reaches_neither_the_base_nor_the_file(tmp_path):
    folder, _, name = checkpoint(tmp_path / "edited")
    stored = (folder / "model.safetensors").read_bytes()
    base = tiny_model("llama")
    before, state = fingerprint(base), edited_checkpoint(base, TOKENIZER, folder).state
    with state(), torch.no_grad():
        base.get_parameter(name).mul_(2)
    assert fingerprint(base) == before
    assert (folder / "model.safetensors").read_bytes() == stored


def test_shards_a_body_without_its_head_and_names_of_another_version(tmp_path, monkeypatch):
    _, other, name = checkpoint(tmp_path / "one")
    wanted = logits(other)
    other.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len([*(tmp_path / "shards").glob("*.safetensors")]) > 2
    # Of a tied model the body alone is all there is.
    tied, changed = edited_model("qwen2")
    tied.save_pretrained(tmp_path / "body")
    file = tmp_path / "body" / "model.safetensors"
    save_file({key.removeprefix("model."): value for key, value in load_file(file).items()}, file, {"format": "pt"})
    for folder, family, model, key in (("shards", "llama", other, name), ("body", "qwen2", tied, changed)):
        base = tiny_model(family)
        edited = edited_checkpoint(base, TOKENIZER, tmp_path / folder)
        assert edited.record["changed"] == [key]
        assert torch.equal(in_state(base, edited.state), logits(model))
    # What transformers leaves out is left out.
    loaded = []
    load = checkpoints.load_alone
    monkeypatch.setattr(checkpoints, "load_alone", lambda *args, **how: loaded.append(args) or load(*args, **how))
    file = tmp_path / "one" / "model.safetensors"
    # Of the first it is known beforehand, and no second model is loaded.
    for number, key in enumerate(("model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.more")):
        save_file({**load_file(file), key: torch.ones(4)}, file, {"format": "pt"})
        base = tiny_model("llama")
        edited = edited_checkpoint(base, TOKENIZER, tmp_path / "one")
        assert (len(loaded), edited.record["changed"]) == (number, [name])
        assert torch.equal(in_state(base, edited.state), wanted)


def test_experts_that_are_stored_one_by_one(tmp_path):
    other = tiny_experts()
    with torch.no_grad():
        other.model.layers[1].mlp.experts.down_proj.mul_(1.5)
    other.save_pretrained(tmp_path / "edited")
    base = tiny_experts()
    assert isinstance(base, MixtralForCausalLM)
    # Without a tokenizer beside them, and with one.
    for beside in (False, True):
        if beside:
            TOKENIZER.save_pretrained(tmp_path / "edited")
        edited = edited_checkpoint(base, TOKENIZER, tmp_path / "edited")
        assert edited.record["changed"] == ["model.layers.1.mlp.experts.down_proj"]
        assert torch.equal(in_state(base, edited.state), logits(other))


def test_a_model_in_memory(tmp_path):
    other, name = edited_model()
    base = tiny_model("llama")
    edited = edited_checkpoint(base, TOKENIZER, other)
    assert edited.record["changed"] == [name]
    assert torch.equal(in_state(base, edited.state), logits(other))
    folder, _, _ = checkpoint(tmp_path / "edited")
    assert edited_checkpoint(base, TOKENIZER, folder).record["sha256"] == edited.record["sha256"]


def test_evaluate_is_as_with_the_adapter_that_was_merged(tmp_path, model_folder):
    with torch.random.fork_rng(devices=[]):
        # Of an edit that changes next to nothing, rounding is a part of the divergence that shows.
        torch.manual_seed(2)
        model = get_peft_model(
            planted(), LoraConfig(target_modules=["down_proj"], r=2, init_lora_weights=False)
        ).eval()
    states = {"base": ps.adapter_state(model, []), "edited": ps.adapter_state(model, ["default"])}
    adapted = ps.evaluate(model, TOKENIZER, capital(), states=states, **LOOSE)
    model.save_pretrained(tmp_path / "adapter")
    base, tokenizer = ps.load_model(model_folder)
    ps.merge(base, tmp_path / "adapter", tmp_path / "merged", tokenizer=tokenizer)
    before = fingerprint(base)
    for given in (tmp_path / "merged", AutoModelForCausalLM.from_pretrained(tmp_path / "merged")):
        report = ps.evaluate(base, tokenizer, capital(), edited=given, **LOOSE)
        assert fingerprint(base) == before
        assert list(report.stages) == ["base", "edited"]
        assert report.answers == adapted.answers
        kl, wanted = (found.stages["edited"]["kl_per_token"].value for found in (report, adapted))
        assert kl == pytest.approx(wanted, rel=1e-3)
        assert kl > 0
        assert report.settings["edited"]["changed"] == [f"model.layers.{n}.mlp.down_proj.weight" for n in range(3)]
    assert ps.Report.from_dict(report.to_dict()) == report


def test_rounded_and_relearned_are_those_of_the_edited_model(tmp_path):
    folder, other, _ = checkpoint(tmp_path / "edited")
    base, fact = tiny_model("llama"), capital()
    before = fingerprint(base)
    states = {"base": nullcontext, "edited": edited_checkpoint(base, TOKENIZER, folder).state}
    states = with_rounded(base, states, [4])
    states = with_relearned(base, states, TOKENIZER, fact, [2], seed=0, progress=False)
    added = [f"{name} {what}" for what in ("in 4 bits", "relearned 2 steps") for name in ("base", "edited")]
    assert list(states) == ["base", *added, "edited"]
    seen = {name: in_state(base, state) for name, state in states.items()}
    assert fingerprint(base) == before
    for name, model in (("base", tiny_model("llama")), ("edited", other)):
        alone = with_relearned(model, {"base": nullcontext}, TOKENIZER, fact, [2], seed=0, progress=False)
        torch.testing.assert_close(seen[f"{name} relearned 2 steps"], in_state(model, alone["base relearned 2 steps"]))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "proj" in key:
                    parameter.copy_(round_channels(parameter, 4))
        torch.testing.assert_close(seen[f"{name} in 4 bits"], logits(model))
    report = ps.evaluate(base, TOKENIZER, fact, states=states, **LOOSE)
    assert "relearning_recovery" not in report.stages["base relearned 2 steps"]
    assert len({figures["kl_per_token"].value for figures in report.stages.values()}) == 6


def test_the_edited_model_has_its_ratio_to_the_base_relearned_alike(model_folder, tmp_path):
    """The planted model gives the old answer before and after so few steps, and so does one with other weights."""
    base = planted()
    other = planted()
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.add_(0.01)
    states = {"base": nullcontext, "edited": edited_checkpoint(base, TOKENIZER, other).state}
    states = with_relearned(base, states, TOKENIZER, capital(), [1], seed=0, progress=False)
    report = ps.evaluate(base, TOKENIZER, capital(), states=states, **LOOSE)
    assert report.stages["edited relearned 1 step"]["relearning_recovery"].value == 1.0
    assert "relearning_recovery" not in report.stages["base relearned 1 step"]


def test_a_buffer_that_becomes_wider_is_the_checkpoints_too():
    base, other = tiny_model("llama"), tiny_model("llama")
    base.register_buffer("own", torch.ones(2, dtype=torch.bfloat16))
    other.register_buffer("own", torch.full((2,), 1.001))
    edited = edited_checkpoint(base, TOKENIZER, other, wider="widen")
    assert edited.record["changed"] == ["own"]
    with edited.state():
        assert torch.equal(base.own, other.own)
    assert torch.equal(base.own, torch.ones(2))


def test_a_narrower_checkpoint_is_measured_in_the_bases_dtype_and_told_of(tmp_path):
    """Of what differs, one tensor is edited, and the others are what storing them rounded."""
    other, name = edited_model()
    other.to(torch.bfloat16).save_pretrained(tmp_path / "edited")
    base = tiny_model("llama")
    with pytest.warns(UserWarning, match=r"stored in bfloat16 and the base in float32; both are measured in float32"):
        edited = edited_checkpoint(base, TOKENIZER, tmp_path / "edited")
    assert base.dtype == torch.float32
    assert edited.record["dtype"] == "bfloat16"
    assert edited.record["only_rounding"] == len(edited.record["changed"]) - 1 > 10
    widened = AutoModelForCausalLM.from_pretrained(tmp_path / "edited", dtype=torch.float32)
    assert torch.equal(in_state(base, edited.state), logits(widened))
    # A base that is rounded alike leaves the edit.
    rounded = tiny_model("llama").to(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edited = edited_checkpoint(rounded, TOKENIZER, tmp_path / "edited")
    assert edited.record["changed"] == [name]
    assert edited.record["only_rounding"] == 0


def test_a_wider_checkpoint_is_never_rounded_in_silence(tmp_path):
    base = tiny_model("llama", dtype=torch.bfloat16)
    other = copy.deepcopy(base).float()
    with torch.no_grad():
        # Less than bfloat16 tells apart.
        other.get_parameter(DOWN).mul_(1 + 2**-12)
    other.save_pretrained(tmp_path / "edited")
    before = logits(base)
    with pytest.raises(ModelError, match=r"in bfloat16 would round the edit; load the base with dtype='float32'"):
        edited_checkpoint(base, TOKENIZER, tmp_path / "edited")
    assert torch.equal(logits(base), before)
    with pytest.warns(UserWarning, match="rounded to bfloat16, as the base is") as told:
        edited = edited_checkpoint(base, TOKENIZER, tmp_path / "edited", wider="round")
    assert [str(each.message) for each in told if "has the very weights of the base" in str(each.message)]
    assert edited.record["changed"] == []
    edited = edited_checkpoint(base, TOKENIZER, tmp_path / "edited", wider="widen")
    assert base.dtype == torch.float32
    assert edited.record["changed"] == [DOWN]
    assert torch.equal(in_state(base, edited.state), logits(other))
    report = ps.evaluate(base, TOKENIZER, capital(), states=edited.states, settings=edited.settings, **LOOSE)
    assert weights_told(report)[0].endswith("1 of 30 tensors differs from the base's; both are measured in float32.")
    halves = copy.deepcopy(other).to(torch.float16)
    narrow = tiny_model("llama", dtype=torch.bfloat16)
    with pytest.raises(ModelError, match="load the base with dtype='float32', which holds both"):
        edited_checkpoint(narrow, TOKENIZER, halves)


def test_of_a_base_in_two_dtypes_each_tensor_is_compared_with_its_own(tmp_path):
    """As some models of experts keep a few of theirs in float32."""
    base = tiny_model("llama", dtype=torch.bfloat16)
    base.model.norm.float()
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.get_parameter(DOWN).mul_(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert edited_checkpoint(base, TOKENIZER, other).record["changed"] == [DOWN]
    other.model.norm.bfloat16()
    with pytest.warns(UserWarning, match="in bfloat16 and the base in bfloat16 and float32; both are measured in"):
        edited_checkpoint(base, TOKENIZER, other)
    other.model.norm.float()
    base.model.norm.bfloat16()
    with pytest.warns(UserWarning, match="and rounded to bfloat16, as the base is, which may round a small edit away"):
        edited_checkpoint(base, TOKENIZER, other, wider="round")


def test_a_buffer_is_exchanged_where_the_base_became_wider():
    base, other = tiny_model("llama", dtype=torch.bfloat16), tiny_model("llama")
    base.register_buffer("factor", torch.tensor(1.0, dtype=torch.bfloat16))
    other.register_buffer("factor", torch.tensor(1.5))
    edited = edited_checkpoint(base, TOKENIZER, other, wider="widen")
    with edited.state():
        assert base.factor == 1.5
    assert (base.factor, base.factor.dtype) == (1.0, torch.float32)


def test_a_tied_weight_is_one_tensor_and_is_exchanged_once():
    base, other = tiny_model("qwen2"), tiny_model("qwen2")
    before = fingerprint(base)
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(2)
    edited = edited_checkpoint(base, TOKENIZER, other)
    assert edited.record["changed"] == ["model.embed_tokens.weight"]
    assert edited.record["tensors"] == len([*base.parameters()])
    assert torch.equal(in_state(base, edited.state), logits(other))
    assert fingerprint(base) == before


def test_the_base_beside_itself_is_told_of(tmp_path):
    base = tiny_model("llama")
    base.save_pretrained(tmp_path / "same")
    with pytest.warns(UserWarning, match="same has the very weights of the base, so base and edited are the same"):
        assert edited_checkpoint(base, TOKENIZER, tmp_path / "same").record["changed"] == []
    with pytest.raises(ModelError, match="the edited model is the base itself"):
        edited_checkpoint(base, TOKENIZER, base)
    # That it is narrower rounded nothing.
    narrow = tiny_model("llama", dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="has the very weights of the base") as told:
        edited_checkpoint(copy.deepcopy(narrow).float(), TOKENIZER, narrow)
    assert sum(warning.category is UserWarning for warning in told) == 1


def test_what_a_model_leaves_out_is_left_out_without_loading_it(tmp_path, whole):
    base, (folder, _, name) = tiny_model("llama"), checkpoint(tmp_path / "edited")
    file = folder / "model.safetensors"
    save_file({**load_file(file), "draft.weight": torch.ones(2)}, file, metadata={"format": "pt"})
    base._keys_to_ignore_on_load_unexpected = [r"^draft\."]
    assert edited_checkpoint(base, TOKENIZER, folder).record["changed"] == [name]


def test_weights_train_after_a_state_in_inference_mode(tmp_path):
    folder, _, _ = checkpoint(tmp_path / "edited")
    base = tiny_model("llama")
    state = edited_checkpoint(base, TOKENIZER, folder).state
    with torch.inference_mode(), state():
        logits(base)
    base(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    with torch.inference_mode():
        made = copy.deepcopy(base)
    before = fingerprint(made)
    state = edited_checkpoint(made, TOKENIZER, folder).state
    with torch.no_grad(), state():
        assert fingerprint(made) != before
    assert fingerprint(made) == before


def test_a_merged_checkpoint_tells_its_edits_in_the_record(tmp_path, model_folder, monkeypatch):
    model = get_peft_model(planted(), LoraConfig(target_modules=["down_proj"], r=2, init_lora_weights=False))
    model.save_pretrained(tmp_path / "out" / "lora")
    base, tokenizer = ps.load_model(model_folder)
    ps.merge(base, tmp_path / "out" / "lora", tmp_path / "merged", tokenizer=tokenizer)
    hub(tmp_path / "cache", tmp_path / "merged")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    in_memory = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    for given in (in_memory, ps.load_model("org/base")[0], "org/base", tmp_path / "merged"):
        edited = edited_checkpoint(base, tokenizer, given)
        assert [each["name"] for each in edited.record["edits"][0]["adapters"]] == ["out/lora"]
    shutil.rmtree(tmp_path / "merged")
    # What was mapped is there as long as it is needed.
    assert not torch.equal(in_state(base, edited.state), logits(base))
