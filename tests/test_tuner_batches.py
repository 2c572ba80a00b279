"""Batches in which every row has an adapter of its own."""

from itertools import combinations

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    SwinConfig,
    SwinModel,
    SwitchTransformersConfig,
    SwitchTransformersModel,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetModel,
)

from peft_surgical.errors import AdapterError
from peft_surgical.tuner import SurgicalIA3Config
from peft_surgical.tuner.batches import _Batch, check_rows
from tests.adapters import add, logits, perturb, tiny_peft
from tests.tiny import tiny_ids, tiny_model, tiny_sighted


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_mixed_batch_scales_each_row_by_its_own_adapter(family):
    model = tiny_peft(family)
    add(model, "other")
    names = ["default", "__base__", "other", "default"]
    ids = tiny_ids(batch=4)
    with torch.no_grad():
        mixed = model(ids, adapter_names=names).logits
    assert torch.allclose(mixed[1], logits(tiny_model(family), ids)[1], atol=1e-5)
    for row, name in enumerate(names):
        if name != "__base__":
            model.set_adapter(name)
            torch.testing.assert_close(logits(model, ids)[row], mixed[row], atol=1e-5, rtol=1e-5)
            assert not torch.allclose(mixed[row], logits(tiny_model(family), ids)[row], atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "num_beams": 2}])
def test_mixed_batch_generation(options):
    model = tiny_peft()
    perturb(model, spread=0.9)
    ids = tiny_ids(batch=2)
    options = {"max_new_tokens": 6, "do_sample": False, **options}
    mixed = model.generate(input_ids=ids, adapter_names=["__base__", "default"], **options)
    edited = model.generate(input_ids=ids, **options)
    with model.disable_adapter():
        base = model.generate(input_ids=ids, **options)
    half = len(mixed) // 2
    assert not torch.equal(base[:half], edited[:half])
    assert torch.equal(mixed[:half], base[:half])
    assert torch.equal(mixed[half:], edited[half:])


def test_mixed_batch_refusals():
    model = tiny_peft()
    with pytest.raises(AdapterError, match="2 names for a batch of 3 rows"):
        logits(model, tiny_ids(batch=3), adapter_names=["default", "__base__"])
    with pytest.raises(AdapterError, match="no adapter named 'x'"):
        logits(model, adapter_names=["x", "default"])
    model.train()
    with pytest.raises(AdapterError, match="eval mode only"):
        logits(model, adapter_names=["default", "default"])
    model.eval()
    model.merge_adapter()
    with pytest.raises(AdapterError, match="not merged"):
        logits(model, adapter_names=["default", "default"])


def test_each_row_meets_the_modules_that_its_own_adapter_saves():
    model = tiny_peft(modules_to_save=["lm_head"])
    add(model, "other", modules_to_save=["lm_head"])
    add(model, "none saved")
    head = model.base_model.model.lm_head.modules_to_save
    head["default"].weight.data.mul_(1.5)
    head["other"].weight.data.mul_(-3)
    names, ids = ["default", "other", "__base__", "none saved"], tiny_ids(batch=4)
    for active in ("default", "other", "none saved"):
        model.set_adapter(active)
        mixed = logits(model, ids, adapter_names=names)
        said = [logits(tiny_model("llama"), ids)]
        for name in ("default", "other", "none saved"):
            model.set_adapter(name)
            said.append(logits(model, ids))
        for one, other in combinations(said, 2):
            assert (one - other).abs().flatten(1).amax(1).min() > 1e-2
        expected = torch.stack([said[which][row] for row, which in enumerate((1, 2, 0, 3))])
        torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-5)
    assert len(model.generate(input_ids=ids, adapter_names=names, num_beams=3, max_new_tokens=2, do_sample=False)) == 4


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_names_are_counted_against_the_input_and_no_other_tensor(task_type):
    model = tiny_peft(task_type=task_type)
    add(model, "other")
    with pytest.raises(AdapterError, match="2 names for a batch of 4 rows"):
        logits(model, tiny_ids(batch=4), adapter_names=["default", "other"])
    with pytest.raises(AdapterError, match="2 names for a batch of 4 rows"):
        model.generate(input_ids=tiny_ids(batch=4), adapter_names=["default", "other"])
    with pytest.raises(AdapterError, match="adapter_names is empty"):
        logits(model, adapter_names=[])
    ids, names = tiny_ids(batch=3), ["default", "__base__", "other"]
    positions = torch.arange(ids.shape[1])[None]
    expected = logits(model, ids, adapter_names=names)
    with torch.no_grad():
        found = model(position_ids=positions, input_ids=ids, adapter_names=names).logits
    assert torch.equal(found, expected)
    model.generate(eos_token_id=torch.tensor(5), input_ids=ids, adapter_names=names, max_new_tokens=1)


def test_of_what_is_given_by_place_only_the_first_is_the_input():
    given = [None, torch.zeros(1, 5)], {"inputs_embeds": torch.zeros(2, 5, 4)}
    check_rows(["a", "b"], None, *given)
    with pytest.raises(AdapterError, match="3 names for a batch of 2 rows"):
        check_rows(["a", "b", "c"], None, *given)


def test_a_vector_has_no_rows():
    batch = _Batch(["a", "b"])
    batch.rows, batch.tokens = 2, 3
    assert batch.spread(["a", "b"], "x", [torch.zeros(2, 3, 4)]) == ["a", "b"]
    with pytest.raises(AdapterError, match="cannot be told apart in x, so they"):
        batch.spread(["a", "b"], "x", [torch.zeros(4)])


def test_modules_saved_whole_whose_rows_cannot_be_told_apart():
    model = tiny_peft(modules_to_save=["self_attn"], components=["L1.mlp"])
    add(model, "other", components=["L1.mlp"])
    expected = logits(model)
    assert torch.equal(logits(model, adapter_names=["default", "default"]), expected)
    with pytest.raises(AdapterError, match=r"the rows of a batch cannot be told apart in .*self_attn, so they"):
        logits(model, adapter_names=["default", "other"])


def _mixed(model, ids, **inputs):
    with torch.no_grad():
        return model(ids, adapter_names=["default", "__base__"], **inputs)


def test_tokens_that_a_router_sorts_cannot_each_have_an_adapter():
    shape = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_experts": 2}
    layers = {"num_layers": 2, "num_decoder_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    # By other weights the router may send this expert no token.
    torch.manual_seed(0)
    model = SwitchTransformersModel(SwitchTransformersConfig(**shape, **layers)).eval()
    names = [name for name, _ in model.named_modules() if name.endswith(".experts.expert_0.wo")]
    config = SurgicalIA3Config(selections={names[0]: {"side": "input", "ranges": [[0, 24]]}})
    model, ids = get_peft_model(model, config).eval(), tiny_ids() % 64
    with pytest.raises(AdapterError, match=r"cannot be told apart in .*expert_0\.wo, so they cannot each have"):
        _mixed(model, ids, decoder_input_ids=ids)


@pytest.mark.parametrize("length", [2, 4, 9])
def test_a_model_that_counts_tokens_before_rows_has_no_mixed_batches(length):
    model = XLNetModel(XLNetConfig(vocab_size=64, d_model=16, n_layer=1, n_head=2, d_inner=24)).eval()
    selections = {"layer.0.ff.layer_2": {"side": "input", "ranges": [[0, 24]]}}
    model = get_peft_model(model, SurgicalIA3Config(selections=selections)).eval()
    with pytest.raises(AdapterError, match=r"cannot be told apart in layer\.0\.ff\.layer_2"):
        _mixed(model, tiny_ids(length=length) % 64)


def _with_weights_that_matter(model):
    """Gives a new model weights so large that a scale changes what it says."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, 0, 0.3)
    return model.eval()


def test_choices_and_windows_stay_with_their_row():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    choices = torch.stack([tiny_ids(batch=3, length=5, seed=seed) % 64 for seed in (0, 1)])
    windows = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 4}
    picture = torch.randn(2, 3, 16, 16)
    for model, module, width, inputs in (
        (BertForMultipleChoice(BertConfig(vocab_size=64, **sizes)), "bert.encoder.layer.0.output.dense", 24, choices),
        (SwinModel(SwinConfig(**windows)), "encoder.layers.0.blocks.0.attention.o_proj", 8, picture),
    ):
        config = SurgicalIA3Config(selections={module: {"side": "input", "ranges": [[0, width]]}})
        adapted = get_peft_model(_with_weights_that_matter(model), config).eval()
        perturb(adapted, spread=0.9)
        with torch.no_grad():
            mixed, edited = adapted(inputs, adapter_names=["default", "__base__"])[0], adapted(inputs)[0]
            with adapted.disable_adapter():
                plain = adapted(inputs)[0]
        # Of each choice, and of each patch.
        assert (edited - plain).abs().reshape(*plain.shape[:2], -1).amax(2).min() > 1e-3
        torch.testing.assert_close(mixed[0], edited[0])
        torch.testing.assert_close(mixed[1], plain[1])


class Seeing(nn.Module):
    """Says words by what it sees, in any number of pictures beside each prompt."""

    def __init__(self):
        super().__init__()
        self.eye, self.words, self.out = nn.Linear(4, 8), nn.Embedding(64, 8), nn.Linear(8, 64)

    def forward(self, input_ids, pixel_values):
        seen = self.eye(pixel_values).mean(1).unflatten(0, (len(input_ids), -1)).sum(1)
        return self.out(self.words(input_ids) + seen[:, None])


@torch.no_grad()
def _seen(module, pictures):
    torch.manual_seed(0)
    side = {"side": "input", "ranges": [[0, getattr(Seeing(), module).in_features]]}
    model = get_peft_model(_with_weights_that_matter(Seeing()), SurgicalIA3Config(selections={module: side})).eval()
    perturb(model, spread=0.9)
    inputs = {"input_ids": tiny_ids() % 64, "pixel_values": torch.randn(pictures, 3, 4)}
    mixed, edited = model(**inputs, adapter_names=["default", "__base__"]), model(**inputs)
    with model.disable_adapter():
        return mixed, edited, model(**inputs)


@pytest.mark.parametrize(("module", "pictures"), [("eye", 2), ("out", 2), ("out", 4)])
def test_pictures_stay_with_their_prompt(module, pictures):
    mixed, edited, plain = _seen(module, pictures)
    assert (edited - plain).abs().flatten(1).amax(1).min() > 1e-2
    torch.testing.assert_close(mixed[0], edited[0])
    torch.testing.assert_close(mixed[1], plain[1])


def test_any_number_of_pictures_cannot_each_have_an_adapter():
    with pytest.raises(AdapterError, match="cannot be told apart in eye, so they"):
        _seen("eye", 4)


@pytest.mark.parametrize(
    ("module", "pictures"),
    [
        ("vision_tower.encoder.layers.0.mlp.fc2", (1, 1)),
        ("language_model.layers.1.mlp.down_proj", (1, 1)),
        ("language_model.layers.1.mlp.down_proj", (2, 0)),
        ("vision_tower.encoder.layers.0.mlp.fc2", (2, 0)),
    ],
)
def test_as_many_pictures_as_prompts_need_not_be_one_each(module, pictures):
    model = _with_weights_that_matter(tiny_sighted())
    whole = {"side": "input", "ranges": [[0, model.get_submodule(f"model.{module}").in_features]]}
    adapted = get_peft_model(model, SurgicalIA3Config(selections={f"model.{module}": whole})).eval()
    perturb(adapted, spread=0.9)
    ids = tiny_ids(length=12)
    for row, count in enumerate(pictures):
        ids[row, : 4 * count] = model.config.image_token_id
    inputs = {"pixel_values": torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))}
    edited = logits(adapted, ids, **inputs)
    with adapted.disable_adapter():
        plain = logits(adapted, ids, **inputs)
    assert (edited - plain)[0].abs().max() > 1e-3
    if "vision" in module and pictures != (1, 1):
        with pytest.raises(AdapterError, match=r"cannot be told apart in .*fc2, so they"):
            _mixed(adapted, ids, **inputs)
        return
    mixed = _mixed(adapted, ids, **inputs).logits
    torch.testing.assert_close(mixed[0], edited[0])
    torch.testing.assert_close(mixed[1], plain[1])


def test_an_encoder_and_a_decoder_that_reads_it_in_beams():
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2}
    config = T5Config(**sizes, num_layers=1, num_decoder_layers=1, decoder_start_token_id=0)
    whole = {"side": "input", "ranges": [[0, 24]]}
    wo = {"encoder.block.0.layer.1.DenseReluDense.wo": whole, "decoder.block.0.layer.2.DenseReluDense.wo": whole}
    torch.manual_seed(0)
    model = get_peft_model(T5ForConditionalGeneration(config), SurgicalIA3Config(selections=wo)).eval()
    perturb(model, spread=0.9)
    ids, decoder = tiny_ids() % 64, tiny_ids(length=4, seed=1) % 64
    mixed = _mixed(model, ids, decoder_input_ids=decoder).logits
    torch.testing.assert_close(mixed[0], logits(model, ids, decoder_input_ids=decoder)[0])
    with model.disable_adapter():
        torch.testing.assert_close(mixed[1], logits(model, ids, decoder_input_ids=decoder)[1])
    options = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False}
    said = model.generate(input_ids=ids, adapter_names=["default", "__base__"], **options)
    edited = model.generate(input_ids=ids, **options)
    with model.disable_adapter():
        plain = model.generate(input_ids=ids, **options)
    assert not torch.equal(edited, plain)
    assert torch.equal(said[0], edited[0])
    assert torch.equal(said[1], plain[1])


def test_names_that_are_one_text_are_refused():
    with pytest.raises(AdapterError, match="a list with one name for each row of the batch, got 'default'"):
        logits(tiny_peft(), adapter_names="default")


def test_a_mixed_batch_may_be_given_as_embeddings():
    # OPT lays the tokens of all rows behind one another, of which embeddings have as many as ids.
    model = tiny_peft("opt")
    ids, names = tiny_ids(batch=2), ["default", "__base__"]
    embedded = model.get_input_embeddings()(ids)
    with torch.no_grad():
        mixed = model(inputs_embeds=embedded, adapter_names=names).logits
    torch.testing.assert_close(mixed, logits(model, ids, adapter_names=names))


@pytest.mark.parametrize(
    ("rows", "shape"),
    [
        # Tokens before rows: four tokens of two rows.
        (2, (4, 2, 8)),
        # Of three rows none is known to be whose.
        (3, (3, 5, 8)),
    ],
)
def test_rows_that_are_not_the_batchs_have_no_mix(rows, shape):
    batch = _Batch(["a", "b"])
    batch.seen(nn.Linear(1, 1), (torch.zeros(rows, 4, dtype=torch.long),), {})
    with pytest.raises(AdapterError, match="cannot be told apart in layer"):
        batch.spread(["a", "b"], "layer", (torch.zeros(shape),))
