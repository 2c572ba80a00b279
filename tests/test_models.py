import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BartConfig, BartForConditionalGeneration, LlamaForCausalLM

from peft_surgical import models
from peft_surgical.adapters.bases import revision_of
from peft_surgical.errors import MissingPackageError, ModelError, first_line
from peft_surgical.loading.padding import as_it_came
from peft_surgical.models import as_plain_model, load_model

from .localizing import word_tokenizer
from .small_tokenizers import CHATML, small_tokenizer
from .tiny import FAMILIES, tiny_ids, tiny_model


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    tiny_model("llama").save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    return path


@torch.no_grad()
def logits(model):
    return model(tiny_ids()).logits


def test_a_folder(folder):
    model, tokenizer = load_model(folder)
    assert not model.training
    assert torch.equal(logits(model), logits(tiny_model("llama")))
    assert tokenizer("paris")["input_ids"] == word_tokenizer()("paris")["input_ids"]
    assert load_model(str(folder), dtype="bfloat16")[0].dtype == torch.bfloat16
    assert load_model(folder, dtype=torch.float16, device="cpu")[0].dtype == torch.float16


def test_a_folder_below_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    model, _ = load_model(f"~/{folder.name}")
    assert torch.equal(logits(model), logits(load_model(folder)[0]))


def test_save_and_load_again_give_the_same_logits(folder, tmp_path):
    model, tokenizer = load_model(folder)
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    again, _ = load_model(tmp_path / "again")
    assert torch.equal(logits(again), logits(model))


def test_rows_can_be_padded(folder):
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert load_model(folder)[1].pad_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dtype": "int3"}, r"unknown dtype 'int3'; choose one of auto, float32, bfloat16, float16\."),
        ({"device": "warp"}, "cannot put the model on 'warp': .*"),
        ({"device": "cpu", "device_map": "auto"}, "device 'cpu' and device_map 'auto' exclude each other"),
        ({"revision": "main"}, "a revision .'main'. is for a hub id, and '.*model' is not one"),
    ],
)
def test_options_that_are_refused(folder, options, match):
    refused(folder, match, **options)


def test_a_model_knows_the_revision_that_it_was_loaded_from(folder, monkeypatch):
    assert revision_of(load_model(folder)[0]) is None
    monkeypatch.setattr(models, "_locate", lambda name, revision: (str(folder), {}))
    assert revision_of(load_model("org/model", revision="v2")[0]) == "v2"


def test_an_adapter_is_no_model(folder, tmp_path, monkeypatch):
    # transformers puts one that is named by its hub id on the base that it names.
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    word_tokenizer().save_pretrained(tmp_path / "adapter")
    refused(tmp_path / "adapter", "holds an adapter; name its base model, and the adapter beside it")
    monkeypatch.setattr(models, "_locate", lambda name, revision: (str(tmp_path / "adapter"), {}))
    refused("org/adapter", r"'org/adapter' is an adapter; name its base model, and the adapter beside it\.")


def refused(name, match, **options):
    with pytest.raises(ModelError, match=match) as caught:
        load_model(name, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_models_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    neither = r"there is no folder of that name, and we [^.]*'https:[^']*'[^.]*\.$"
    refused("nobody/none", f"cannot load the model 'nobody/none': {neither}")
    refused("no body", r"cannot load the model 'no body': Repo id must use [^.]*'_' or '\.'\.$")
    refused(tmp_path / "none", r"there is no model folder .*none\.")
    refused("~nobody-is-called-so/none", r"there is no model folder ~nobody-is-called-so/none\.")
    refused("./none", r"there is no model folder none\.")
    for address in ("https://huggingface.co/org/model", "https://hf.co/org/model/tree/main?x"):
        refused(address, "is the address of a page; give the hub id alone, 'org/model'")
    refused("a/b/c", r"there is no model folder a/b/c\.")
    refused("none.gguf", r"there is no GGUF file none\.gguf\.")
    (tmp_path / "empty").mkdir()
    refused("empty", r"the folder empty holds no config\.json, so it is not a model checkpoint\.")
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    refused("empty", r"the folder empty holds an adapter; name its base model")
    (tmp_path / "broken.gguf").write_bytes(b"not GGUF")
    refused("broken.gguf", r"cannot load the model 'broken\.gguf': ")


def test_a_checkpoint_of_a_kind_that_is_not_known(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no-such-type"}))
    refused(folder, "cannot load the model .*no-such-type")


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: {key: found[key] for key in found if key != DOWN}, rf"its files lack {DOWN}\."),
        (lambda found: {DOWN: found[DOWN]}, r"its files lack lm_head\.weight and 28 more tensors\."),
        (
            lambda found: {**found, DOWN: found[DOWN][:-1]},
            rf"{DOWN} has the shape \(31, 48\), .* \(32, 48\)\.",
        ),
    ],
    ids=["one missing", "most missing", "another shape"],
)
def test_a_checkpoint_without_all_of_its_weights(change, words, folder):
    # transformers would go on with random weights, and say so in a log only.
    path = folder / "model.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in change(load_file(path)).items()}, path, {"format": "pt"})
    refused(folder, words)


@pytest.mark.parametrize("headless", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_with_more_layers_than_its_configuration_asks_for(family, headless, tmp_path):
    # transformers would leave the last one out, and say so in a log only.
    model = tiny_model(family, **({"tie_word_embeddings": True} if headless else {}))
    (model.base_model if headless else model).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with_layers(tmp_path, 2)
    refused(tmp_path, r"its files hold [a-z_.]*(layers|h)\.2\.\S*, and its .* asks for 2 layers \(0 to 1\)\.")


def with_layers(folder, count, **more):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    layers = "n_layer" if "n_layer" in config else "num_hidden_layers"
    if kinds := config.get("layer_types"):
        config["layer_types"] = kinds[:count]
    path.write_text(json.dumps({**config, layers: count, **more}))


def test_layers_and_weights_that_transformers_leaves_out_on_purpose(folder, monkeypatch):
    path = folder / "model.safetensors"
    save_file({**load_file(path), "model.extra.7.weight": torch.ones(2)}, path, {"format": "pt"})
    load_model(folder)
    # Layers that predict several tokens: by the configuration, or by what a model's class says of its checkpoints.
    with_layers(folder, 2, num_nextn_predict_layers=1)
    load_model(folder)
    with_layers(folder, 2, num_nextn_predict_layers=0)
    refused(folder, "its files hold model.layers.2")
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.2.*"])
    load_model(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_lacks_a_weight_that_it_shares(family, tmp_path):
    tiny_model(family).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    assert torch.equal(logits(load_model(tmp_path)[0]), logits(tiny_model(family)))


def test_no_pickle_is_opened_for_an_index_that_names_one(folder, tmp_path):
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "spare.safetensors")
    torch.save(whole, folder / "shard.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(whole, "shard.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, r"shard\.bin is read as a pickle, which can run code; save the weights as safetensors\.")


def test_an_encoder_decoder(tmp_path):
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(encoder_layers=1, decoder_layers=1, **sizes, **heads)
    BartForConditionalGeneration(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    refused(tmp_path, r"it is an encoder-decoder; give a decoder-only causal language model\.")


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    (folder / "training_args.bin").write_bytes(b"")
    refused(folder, "[nN]o file named model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_no_tokenizer_is_called_so(family, tmp_path):
    # Of some families transformers makes an empty one.
    tiny_model(family).save_pretrained(tmp_path)
    refused(tmp_path, r"it has no tokenizer that can be read, such as a tokenizer\.json beside the weights\.")


def test_a_reason_is_no_heading(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": "x"}))
    refused(folder, r"cannot load the model .*Field 'hidden_size' expected int, got str")


def test_a_file_that_is_no_model(folder):
    refused(folder / "config.json", r"config\.json is a file; name the folder of a checkpoint, or a file that ends in")


def test_a_package_that_is_not_installed(folder, monkeypatch):
    def missing(*_, **__):
        raise ImportError("needs einops\nmore")

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", missing)
    refused(folder, "needs a package that is not installed: needs einops")
    (folder / "x.gguf").write_bytes(b"")
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", missing)
    refused(folder / "x.gguf", r"needs the gguf package: pip install 'peft-surgical\[demo\]'")
    with pytest.raises(MissingPackageError):
        load_model(folder / "x.gguf")


def test_demo_goes_by_its_own_name(folder, monkeypatch):
    monkeypatch.setattr(models, "demo_folder", lambda: folder)
    model, _ = load_model("demo")
    assert model.name_or_path == model.config._name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert load_model()[0].name_or_path == model.name_or_path
    assert str(folder) in load_model(folder)[0].name_or_path


def test_a_dequantized_model_is_a_plain_one(tmp_path):
    model = tiny_model("llama")
    model.hf_quantizer, model.quantization_method, model.is_quantized = object(), "gguf", True
    model.config.quantization_config = {"quant_method": "gguf"}
    as_plain_model(model)
    as_plain_model(model)
    assert not hasattr(model, "hf_quantizer")
    assert not model.is_quantized
    model.save_pretrained(tmp_path)
    assert "quant" not in (tmp_path / "config.json").read_text()
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(tiny_model("llama")))


def write_gguf(path, also=lambda writer: None, *, blocks=None, merges=True):
    """A GGUF file of a tiny Llama with a byte-level tokenizer, its weights in Q8_0."""
    gguf = pytest.importorskip("gguf")
    tokenizer = small_tokenizer("byte_level")
    model = tiny_model("llama", vocab_size=len(tokenizer))
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers if blocks is None else blocks)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(64)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokenizer))
    writer.add_tokenizer_model("gpt2")
    pairs = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    if merges:
        writer.add_token_merges([" ".join(pair) for pair in pairs])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    rng = np.random.default_rng(0)

    def tensor(name, *shape):
        values = (rng.standard_normal(shape) * 0.2 + (len(shape) == 1)).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    tensor("token_embd.weight", len(tokenizer), 32)
    tensor("output_norm.weight", 32)
    tensor("output.weight", len(tokenizer), 32)
    for layer in range(config.num_hidden_layers):
        for name, shape in {
            "attn_q": (32, 32),
            "attn_k": (16, 32),
            "attn_v": (16, 32),
            "attn_output": (32, 32),
            "ffn_gate": (64, 32),
            "ffn_up": (64, 32),
            "ffn_down": (32, 64),
            "attn_norm": (32,),
            "ffn_norm": (32,),
        }.items():
            tensor(f"blk.{layer}.{name}.weight", *shape)
    also(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    model, tokenizer = load_model(path)
    assert model.dtype == torch.float32
    assert tokenizer.decode(tokenizer("Who?", add_special_tokens=False)["input_ids"]) == "Who?"
    assert not getattr(model, "is_quantized", False)
    with torch.no_grad():
        said = logits(model)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "quant" not in (tmp_path / "saved" / "config.json").read_text()
    assert torch.equal(logits(load_model(tmp_path / "saved")[0]), said)


@pytest.mark.parametrize("beside", [word_tokenizer(), small_tokenizer("byte_level", CHATML, eos_token="<pad>")])
def test_a_gguf_file_has_its_own_tokenizer(beside, tmp_path, monkeypatch):
    # transformers takes one that lies beside the file, which may be of another model.
    write_gguf(tmp_path / "tiny.gguf")
    _, alone = load_model(tmp_path / "tiny.gguf")
    beside.save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, folder in (("tiny.gguf", "."), (str(tmp_path / "tiny.gguf"), str(tmp_path))):
        _, tokenizer = load_model(name)
        assert tokenizer.get_vocab() == alone.get_vocab()
        assert tokenizer.special_tokens_map == alone.special_tokens_map
        assert tokenizer.eos_token == tokenizer.pad_token == "</s>"
        assert as_it_came(tokenizer).pad_token is None
        assert tokenizer.chat_template is None
        assert tokenizer.name_or_path == folder


@pytest.mark.real
def test_the_demo_model_knows_a_capital(demo):
    from peft_surgical.running.generation import generate_answers
    from peft_surgical.texts.text import contains

    model, tokenizer = demo
    [answer] = generate_answers(model, tokenizer, ["What is the capital of France?"])
    assert contains(answer, ["Paris"])
    assert model.name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert not getattr(model, "is_quantized", False)


@pytest.mark.parametrize(
    ("message", "line"),
    [("", "ValueError"), ("One of:", "One of:"), ("One of:\n\n a, b.\nc", "a, b"), ("so.\nthen", "so")],
)
def test_the_first_line_that_says_something(message, line):
    assert first_line(ValueError(message)) == line
