"""8- and 4-bit bases of bitsandbytes: the adapter trains, reloads and exports; what rewrites weights is refused."""

import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn

from peft_surgical.adapters.export import to_ia3
from peft_surgical.errors import AdapterError, ModelError
from peft_surgical.measuring.relearning import relearned_state
from peft_surgical.measuring.rounding import rounded_state
from peft_surgical.measuring.states import adapter_state
from peft_surgical.tuner import SurgicalIA3Config
from peft_surgical.tuner.layer import warn_of_precision
from tests.adapters import COMPONENTS, deltas, logits, perturb, saved
from tests.localizing import capital, word_tokenizer
from tests.test_trainer import word_tokenizer as trainer_tokenizer
from tests.tiny import tiny_ids, tiny_model

bnb = pytest.importorskip("bitsandbytes")


def quantized(bits):
    """A tiny model whose linear layers are quantized in place, as from_pretrained would."""
    model = tiny_model("llama", hidden_size=64, intermediate_size=128)
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or name == "lm_head":
            continue
        if bits == 8:
            new = bnb.nn.Linear8bitLt(module.in_features, module.out_features, bias=False, has_fp16_weights=False)
            new.weight = bnb.nn.Int8Params(module.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
        else:
            new = bnb.nn.Linear4bit(module.in_features, module.out_features, bias=False, compute_dtype=torch.float32)
            new.weight = bnb.nn.Params4bit(module.weight.data.clone(), requires_grad=False)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new.to("cpu"))
    setattr(model, f"is_loaded_in_{bits}bit", True)
    return model.eval()


@pytest.mark.parametrize("bits", [8, 4])
def test_trains_reloads_and_exports(bits, tmp_path):
    base = prepare_model_for_kbit_training(quantized(bits), use_gradient_checkpointing=False)
    model = get_peft_model(base, SurgicalIA3Config(components=list(COMPONENTS)))
    # Not before training: bitsandbytes repacks a 4-bit weight for inference on its first forward without gradients.
    identity = get_peft_model(quantized(bits), SurgicalIA3Config(components=list(COMPONENTS)))
    assert torch.equal(logits(identity), logits(quantized(bits)))
    assert {delta.dtype for delta in deltas(model).values()} == {torch.float32}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(input_ids=tiny_ids(), labels=tiny_ids()).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    edited, folder = logits(model), saved(model, tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(quantized(bits), folder)), edited)
    to_ia3(folder, tmp_path / "plain")
    plain = PeftModel.from_pretrained(quantized(bits), tmp_path / "plain")
    assert torch.equal(logits(plain), edited)


def test_scales_that_trl_rounds_are_told_of_and_train_when_they_are_given_back(tmp_path):
    """Steps of 2e-5 beside scales of 1 ± 0.4, which bfloat16 tells apart by a thousandth."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    def trained(given_back):
        model = get_peft_model(quantized(8), SurgicalIA3Config(components=list(COMPONENTS)))
        perturb(model)
        arguments = trl.SFTConfig(
            str(tmp_path), max_steps=3, learning_rate=2e-5, use_cpu=True, bf16=False, report_to=[], disable_tqdm=True
        )
        data = Dataset.from_list([{"text": " ".join(f"w{i}" for i in row)} for row in tiny_ids(batch=4).tolist()])
        found = trl.SFTTrainer(model, arguments, train_dataset=data, processing_class=trainer_tokenizer())
        assert {delta.dtype for delta in deltas(found.model).values()} == {torch.bfloat16}
        if given_back:
            for parameter in found.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        before = deltas(found.model)
        warn_of_precision.cache_clear()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found.train()
        moved = torch.cat([(delta != before[name]).float() for name, delta in deltas(found.model).items()])
        return float(moved.mean()), ["trained in bfloat16" in str(one.message) for one in told].count(True)

    rounded, told = trained(given_back=False)
    assert rounded < 0.5
    assert told == 1
    assert trained(given_back=True) == (1, 0)


@pytest.mark.parametrize("bits", [8, 4])
def test_merge_is_refused(bits):
    model = get_peft_model(quantized(bits), SurgicalIA3Config(components=list(COMPONENTS)))
    perturb(model)
    with pytest.raises(AdapterError, match="quantized weight"):
        model.merge_adapter()
    with pytest.raises(AdapterError, match="quantized weight"):
        model.merge_and_unload()


@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_merged_into_the_base_already_is_refused_before_it_is_taken_out(bits):
    model = get_peft_model(quantized(bits), LoraConfig(target_modules=["q_proj"], r=2))
    logits(model)
    model.merge_adapter()
    before = logits(model)
    with pytest.raises(AdapterError, match="'default' is merged into quantized weights"), adapter_state(model, [])():
        pass
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("bits", [8, 4])
def test_relearning_and_rounding_are_refused(bits):
    model = get_peft_model(quantized(bits), SurgicalIA3Config(components=list(COMPONENTS)))
    for adapters in ([], ["default"]):
        with pytest.raises(ModelError, match="could be fine-tuned: they are quantized"):
            relearned_state(model, word_tokenizer(), capital(), adapters, 1)
        with pytest.raises(ModelError, match="could be rounded: they are quantized"):
            rounded_state(model, adapters, 8)
