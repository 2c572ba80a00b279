"""transformers' Trainer and TRL's SFTTrainer train a surgical adapter as they train any other."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

from peft_surgical.tuner import SurgicalIA3Config, activate
from tests.adapters import COMPONENTS, add, deltas, logits, tiny_peft
from tests.tiny import VOCAB, tiny_ids, tiny_model


def trainer(model, folder, rows=4, kind=Trainer, **options):
    """Batches of 4: one and the same with 4 rows, so that the loss of two steps can be compared."""
    arguments = TrainingArguments(
        str(folder),
        **{"max_steps": 8, "learning_rate": 0.05, "save_steps": 4, **options},
        per_device_train_batch_size=4,
        lr_scheduler_type="constant",
        logging_steps=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=3,
    )
    examples = [{"input_ids": row, "labels": row} for row in tiny_ids(batch=rows).tolist()]
    return kind(model, arguments, train_dataset=examples)


def losses(found):
    return [entry["loss"] for entry in found.state.log_history if "loss" in entry]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_falls_only_the_adapter_moves_and_the_checkpoint_reloads(dtype, tmp_path):
    model = tiny_peft(dtype=dtype, perturbed=False)
    base = {n: p.detach().clone() for n, p in model.named_parameters() if "surgical" not in n}
    found = trainer(model, tmp_path)
    found.train()
    assert losses(found)[-1] < losses(found)[0]
    assert all(torch.equal(base[n], p) for n, p in model.named_parameters() if n in base)
    saved = {path.name for path in (tmp_path / "checkpoint-8").iterdir()}
    assert "adapter_model.safetensors" in saved
    assert not saved & {"model.safetensors", "adapter_model.bin"}
    again = PeftModel.from_pretrained(tiny_model("llama", dtype=dtype), tmp_path / "checkpoint-8")
    assert torch.equal(logits(again), logits(model.eval()))
    assert not torch.equal(logits(again), logits(tiny_model("llama", dtype=dtype)))


def test_resuming_is_not_having_stopped(tmp_path):
    straight, resumed = tiny_peft(perturbed=False), tiny_peft(perturbed=False)
    trainer(straight, tmp_path / "a", rows=16).train()
    trainer(tiny_peft(perturbed=False), tmp_path / "b", rows=16, max_steps=4).train()
    trainer(resumed, tmp_path / "b", rows=16).train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-4"))
    expected = deltas(straight)
    assert all(torch.equal(delta, expected[name]) for name, delta in deltas(resumed).items())
    assert all((delta != 0).all() for delta in expected.values())


def second_stage(dtype=torch.float32):
    model = tiny_peft(dtype=dtype)
    add(model, "learn")
    activate(model, ["default", "learn"], trainable=["learn"])
    return model


class SecondStage(Trainer):
    def _load_from_checkpoint(self, *args, **kwargs):
        super()._load_from_checkpoint(*args, **kwargs)
        activate(self.model, ["default", "learn"], trainable=["learn"])


def test_resuming_a_second_stage_is_not_having_stopped_where_it_is_activated_again(tmp_path):
    straight, resumed = second_stage(), second_stage()
    before = deltas(straight)
    trainer(straight, tmp_path / "a", rows=16).train()
    trainer(second_stage(), tmp_path / "b", rows=16, max_steps=4).train()
    again = trainer(resumed, tmp_path / "b", rows=16, kind=SecondStage)
    again.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-4"))
    expected = deltas(straight)
    for name, delta in deltas(resumed).items():
        assert torch.equal(delta, expected[name])
        assert torch.equal(delta, before[name]) == name.endswith(".default")


def test_gradient_checkpointing_in_the_trainer(tmp_path):
    plain, checkpointed, runs = tiny_peft(perturbed=False), tiny_peft(perturbed=False), []
    trainer(plain, tmp_path / "a", max_steps=3).train()
    mlp = checkpointed.get_base_model().model.layers[1].mlp
    # Not a hook behind it: a layer is run again only as far as gradients need it.
    mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    trainer(checkpointed, tmp_path / "b", max_steps=3, gradient_checkpointing=True).train()
    assert len(runs) == 2 * 3
    expected = deltas(plain)
    for name, delta in deltas(checkpointed).items():
        torch.testing.assert_close(delta, expected[name], atol=1e-5, rtol=1e-4)


def test_a_second_stage_in_the_trainer_leaves_the_first_alone(tmp_path):
    model = second_stage(torch.bfloat16)
    before = deltas(model)
    found = trainer(model, tmp_path)
    found.train()
    assert losses(found)[-1] < losses(found)[0]
    for name, delta in deltas(model).items():
        assert torch.equal(delta, before[name]) == name.endswith(".default")


def word_tokenizer():
    words = {f"w{i}": i for i in range(VOCAB - 4)} | {
        "<pad>": VOCAB - 4,
        "<s>": VOCAB - 3,
        "</s>": VOCAB - 2,
        "<unk>": VOCAB - 1,
    }
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.mark.parametrize("wrapped", [False, True])
def test_trl_sft_trainer(wrapped, tmp_path):
    """TRL wraps the model itself when it is given a peft_config, and takes a wrapped one otherwise."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    config = SurgicalIA3Config(components=list(COMPONENTS), task_type="CAUSAL_LM")
    base = tiny_model("llama")
    texts = [" ".join(f"w{max(i, 4)}" for i in row) for row in tiny_ids(batch=4).tolist()]
    arguments = trl.SFTConfig(
        str(tmp_path),
        max_steps=8,
        learning_rate=0.05,
        per_device_train_batch_size=4,
        lr_scheduler_type="constant",
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
    )
    found = trl.SFTTrainer(
        get_peft_model(base, config) if wrapped else base,
        arguments,
        train_dataset=Dataset.from_list([{"text": text} for text in texts]),
        processing_class=word_tokenizer(),
        peft_config=None if wrapped else config,
    )
    found.train()
    assert losses(found)[-1] < losses(found)[0]
    assert all((delta != 0).all() for delta in deltas(found.model).values())
    found.save_model(str(tmp_path / "saved"))
    again = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "saved")
    assert torch.equal(logits(again), logits(found.model.eval()))
    base = tiny_model("llama")
    assert all(torch.equal(p, base.get_parameter(n)) for n, p in found.model.unload().named_parameters())
