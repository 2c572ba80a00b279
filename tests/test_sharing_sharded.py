"""A model that is sharded over processes, here over one."""

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

import peft_surgical as ps
from peft_surgical.errors import AdapterError, ArchitectureError, ModelError
from peft_surgical.measuring.relearning import relearned_state
from peft_surgical.measuring.rounding import rounded_state
from peft_surgical.running.sharing import shard, shared_work

from . import test_editing
from .adapters import tiny_peft
from .localizing import capital, word_tokenizer
from .threads import threads
from .tiny import tiny_experts, tiny_model


@pytest.fixture
def sharded():
    """A tiny model, sharded over the one process of a group."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    model = tiny_model("llama")
    shard(model)
    yield model
    distributed.destroy_process_group()


def test_a_stage_whose_prompts_begin_alike_trains_on_a_sharded_model_as_on_a_whole_one(sharded):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "what is the city .{% for message in messages %} {{ message.content }}{% endfor %}"
    config = ps.SurgicalIA3Config(components=["L0.mlp", "L1.head.1"])
    recipe = ps.Recipe(steps=2, general=3, everyday=2, compute_dtype="float32")
    records = []
    for model, rows in ((sharded, False), (tiny_model("llama"), True)):
        with threads(1), shared_work(rows=rows):
            stage = ps.unlearn(model, tokenizer, capital(), config, recipe=recipe, progress=False)
        records.append(stage.record)
    assert records[0].loss == pytest.approx(records[1].loss, rel=1e-4)
    assert records[0].kl == pytest.approx(records[1].kl, rel=1e-2)


def test_scales_that_are_sharded_are_read_as_a_whole(sharded):
    model = tiny_peft()
    before = model.base_model.edit("default").modules
    fully_shard(model)
    after = model.base_model.edit("default").modules
    assert before.keys() == after.keys()
    for name, module in after.items():
        assert type(module.scale) is torch.Tensor
        assert torch.equal(module.scale, before[name].scale)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda m: rounded_state(m, [], 4), "spread over processes cannot be rounded"),
        (lambda m: relearned_state(m, word_tokenizer(), test_editing.FACT, [], 1), "cannot be fine-tuned"),
        (lambda m: ps.learn_by_subject(m, word_tokenizer(), test_editing.FACT), "'s are spread over processes"),
        (lambda m: ps.merge(m, [], "merged"), "sharded over processes; load it whole to merge"),
    ],
)
def test_what_needs_whole_weights_refuses_a_sharded_model(use, message, sharded):
    with pytest.raises(ModelError, match=message):
        use(sharded)


def test_a_model_is_sharded_over_processes_that_there_are():
    model = tiny_model("llama")
    with pytest.raises(ModelError, match="the processes of torch's default group, and there is none"):
        shard(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_accelerator_that_torch_is_built_for_and_is_not_there_is_not_sharded_on(monkeypatch):
    def current(check_available=False):
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current)
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        model = tiny_model("llama")
        shard(model)
        assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    finally:
        distributed.destroy_process_group()


def test_only_a_bare_model_is_sharded_and_once(sharded):
    with pytest.raises(ModelError, match="sharded already"):
        shard(sharded)
    model = tiny_peft()
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for given in (model, model.get_base_model()):
        with pytest.raises(AdapterError, match="shard it before they are put on"):
            shard(given)
    # What `unload` leaves, and what learns prompts and has no layers of its own.
    left, prompts = (
        tiny_peft(),
        get_peft_model(tiny_model("llama"), PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=2)),
    )
    ps.unload(left)
    for given in (left, prompts):
        with pytest.raises(AdapterError, match=r"shard the bare one, as peft_surgical.unload\(model\) returns it"):
            shard(given)
    with pytest.raises(ModelError, match="wrapped by DistributedDataParallel; give what it wraps, its `module`"):
        shard(DistributedDataParallel(tiny_model("llama")))
    unknown = tiny_experts()
    with pytest.raises(ArchitectureError):
        shard(unknown)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trained
    assert all(parameter.requires_grad for parameter in unknown.parameters())
