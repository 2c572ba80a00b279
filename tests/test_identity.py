import functools

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.moe import ExpertsInterface, batched_mm_experts_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from peft_surgical.measuring.states import adapter_state
from peft_surgical.running.attention import GROUPED
from peft_surgical.running.identity import Hashes, content_hash, sums_of, weights_digest

from .adapters import add, perturb, tiny_peft
from .tiny import FAMILIES, packed, tiny_experts, tiny_granite, tiny_longrope, tiny_model, tiny_sighted


def test_two_adapters_and_their_values_do_not_matter_when_none_acts():
    model = tiny_peft("llama")
    add(model, "second")
    perturb(model, "second", seed=9)
    with adapter_state(model, [])():
        assert weights_digest(model) == weights_digest(tiny_model("llama"))


def test_what_cannot_be_told_has_no_hash():
    merged = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    merged.merge_adapter()
    merged.base_model.disable_adapter_layers()
    # Its weights are the base's only after the forward that takes the adapter out of them.
    assert weights_digest(merged) is None
    hooked = tiny_model("llama")
    hooked.model.layers[0].register_forward_hook(lambda _, __, output: output)
    assert weights_digest(hooked) is None
    replaced = tiny_model("llama")
    replaced.model.layers[0].forward = replaced.model.layers[0].forward
    assert weights_digest(replaced) is None
    everywhere = nn.modules.module.register_module_forward_hook(lambda _, __, output: output)
    try:
        assert weights_digest(tiny_model("llama")) is None
    finally:
        everywhere.remove()
    assert weights_digest(tiny_model("llama")) is not None
    elsewhere = tiny_model("llama").to("meta")
    assert weights_digest(elsewhere) is None
    with torch.random.fork_rng(devices=[]):
        prompted = get_peft_model(tiny_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert weights_digest(prompted) is None


def test_tied_weights_are_told_from_equal_ones():
    tied = tiny_model("qwen2")
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    before = weights_digest(tied)
    tied.lm_head.weight = nn.Parameter(tied.lm_head.weight.detach().clone())
    assert weights_digest(tied) != before


def test_what_a_weight_is_tied_to_tells_models_apart():
    digests = set()
    for place in (0, 1):
        model = tiny_model("llama")
        first, second, third = (layer.mlp.gate_proj for layer in model.model.layers)
        third.weight = (first, second)[place].weight
        digests.add(weights_digest(model))
    assert len(digests) == 2


def other_dtype(model):
    norm = model.model.norm.weight
    norm.data = norm.data.view(torch.float16)


def other_shape(model):
    norm = model.model.norm.weight
    norm.data = norm.data[None]


def other_buffer(model):
    model.model.rotary_emb.inv_freq.mul_(2)


@pytest.mark.parametrize("change", [other_dtype, other_shape, other_buffer])
def test_buffers_and_what_the_same_bytes_stand_for_tell_models_apart(change):
    model = tiny_model("llama", dtype=torch.bfloat16)
    before = weights_digest(model)
    change(model)
    assert weights_digest(model) not in (before, None)


def one_column(weight):
    weight.data[:, 77] += 1


def two_rows(weight):
    weight.data[[3, 200]] = weight.data[[200, 3]]


def two_columns(weight):
    weight.data[:, [3, 200]] = weight.data[:, [200, 3]]


def one_value(weight):
    weight.data[-1, -1] += 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("write", [one_column, two_rows, two_columns, one_value])
def test_what_torch_does_not_count_is_noticed_wherever_it_is_written(write, dtype):
    weight = nn.Parameter(torch.arange(576 * 1537).reshape(576, 1537).remainder(113).to(dtype), requires_grad=False)
    # Its rows are rows of what is summed.
    aligned = torch.arange(256 * (width := 8192 // dtype.itemsize)).reshape(256, width).remainder(113).to(dtype)
    # Of a tensor that begins where no word of eight bytes does, too.
    for own in (weight, weight.data[:, 1:], aligned):
        tensor = nn.Parameter(own, requires_grad=False)
        hashes, version = Hashes(), tensor._version
        before = hashes.of(tensor)
        assert hashes.of(tensor) is before
        write(tensor)
        assert tensor._version == version
        assert hashes.of(tensor) == content_hash(tensor) != before


@pytest.mark.parametrize("other", [1, 1024])
def test_words_that_change_places_within_a_row_or_a_column_of_the_table_are_noticed(other):
    words = torch.arange(4096)
    swapped = words.clone()
    swapped[[0, other]] = words[[other, 0]]
    assert sums_of(swapped) != sums_of(words)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.tensor(2.0),
        lambda: torch.ones(3, dtype=torch.bool),
        # Begins where no word of eight bytes does.
        lambda: torch.ones(5, dtype=torch.float16)[1:],
    ],
)
def test_what_torch_does_not_count_is_noticed_in_small_tensors_too(make):
    hashes, tensor = Hashes(), make()
    before, version = hashes.of(tensor), tensor._version
    tensor.data.zero_()
    assert tensor._version == version
    assert hashes.of(tensor) == content_hash(tensor) != before


def test_a_tensor_of_inference_mode_is_read_each_time():
    with torch.inference_mode():
        tensor, hashes = torch.zeros(3), Hashes()
        before = hashes.of(tensor)
        tensor.fill_(1)
    assert hashes.of(tensor) == content_hash(tensor) != before


def test_a_tensor_without_values_has_a_hash_too():
    assert Hashes().of(torch.zeros(0)) == content_hash(torch.zeros(0))


def test_how_experts_are_computed_tells_models_apart():
    model = tiny_experts()
    model.set_experts_implementation("eager")
    one_by_one = weights_digest(model)
    model.set_experts_implementation("batched_mm")
    assert weights_digest(model) != one_by_one


@pytest.mark.parametrize("make", [lambda: tiny_model("llama"), tiny_sighted])
def test_where_a_checkpoint_was_loaded_from_does_not_matter(make, tmp_path, monkeypatch):
    model = make()
    for name in ("one", "two"):
        model.save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    loaded = [type(model).from_pretrained(place) for place in (tmp_path / "one", "one", "./one", "two")]
    assert len({module.name_or_path for module in loaded}) == 4
    [digest] = {weights_digest(module) for module in loaded}
    assert digest is not None


@pytest.mark.parametrize("notes", [{1: 1, "a": 2}, {("a", "b"): 1}])
def test_a_configuration_whose_keys_have_no_order_has_no_hash(notes):
    model = tiny_model("llama")
    model.config.notes = notes
    assert weights_digest(model) is None


MAKERS = [
    *(functools.partial(tiny_model, family) for family in FAMILIES),
    tiny_experts,
    functools.partial(tiny_granite, 0.5),
    tiny_sighted,
    functools.partial(tiny_longrope, 16),
]


@pytest.mark.parametrize("make", MAKERS)
def test_transformers_own_models_with_all_that_wraps_their_forwards_have_a_hash(make):
    assert weights_digest(make()) is not None


@pytest.mark.parametrize("name", ["forward", "__call__"])
def test_a_class_whose_function_was_replaced_has_no_hash_even_if_it_passes_for_the_old_one(name, monkeypatch):
    model = tiny_model("llama")
    for kind in (type(model), type(model.model.layers[0]), type(model.model.layers[0].mlp), nn.Linear):
        own = getattr(kind, name)

        @functools.wraps(own)
        def doubled(*args, own=own, **kwargs):
            return 2 * own(*args, **kwargs)

        for replaced in (doubled, torch.no_grad()(doubled), functools.partial(own)):
            with monkeypatch.context() as patch:
                patch.setattr(kind, name, replaced)
                assert weights_digest(model) is None
    assert weights_digest(model) is not None


OWN_FUNCTIONS = [
    (AttentionInterface, sdpa_attention_forward, "sdpa"),
    (AttentionMaskInterface, sdpa_mask, "sdpa"),
    (ExpertsInterface, batched_mm_experts_forward, "batched_mm"),
]


@pytest.mark.parametrize(("interface", "own", "name"), OWN_FUNCTIONS)
def test_a_function_of_somebodys_own_that_a_name_chooses_has_no_hash(interface, own, name, monkeypatch):
    model = tiny_experts()
    model.set_experts_implementation("batched_mm")
    assert weights_digest(model) is not None

    @functools.wraps(own)
    def doubled(*args, **kwargs):
        return own(*args, **kwargs)

    monkeypatch.setitem(interface._global_mapping, name, doubled)
    assert weights_digest(model) is None


def test_an_attention_function_of_somebodys_own_has_no_hash_under_its_own_name_either(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setitem(AttentionInterface._global_mapping, "mine", lambda *args, **kwargs: None)
    model.set_attn_implementation("mine")
    assert weights_digest(model) is None


def test_how_attention_is_computed_tells_models_apart_in_a_part_of_one_too():
    model, digests = tiny_model("llama"), []
    for name in ("sdpa", "eager", GROUPED):
        model.set_attn_implementation(name)
        digests.append(weights_digest(model))
    model = tiny_sighted()
    digests.append(weights_digest(model))
    model.set_attn_implementation({"text_config": "eager"})
    assert model.config._attn_implementation == "sdpa"
    digests.append(weights_digest(model))
    assert None not in digests
    assert len(set(digests)) == 5


def test_weights_that_are_packed_have_no_hash():
    assert weights_digest(packed(tiny_model("llama"))) is None


def test_what_is_saved_beside_weights_has_no_hash(monkeypatch):
    monkeypatch.setattr(nn.Linear, "get_extra_state", lambda _: {"scale": 2.0})
    assert weights_digest(tiny_model("llama")) is None
