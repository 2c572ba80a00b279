"""Whether an edited checkpoint is one of its base's model."""

import json
import logging
import warnings

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from peft_surgical.errors import ModelError
from peft_surgical.measuring.checkpoints import edited_checkpoint
from peft_surgical.measuring.comparable import check_same_config, check_same_tokenizer
from peft_surgical.models import load_model

from .conftest import fingerprint
from .localizing import word_tokenizer
from .test_checkpoints import DOWN, TOKENIZER, checkpoint
from .test_models import write_gguf
from .tiny import tiny_model


def rewritten(folder, **changes):
    """The same checkpoint with other words in its configuration."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hidden_size": 64}, r"hidden_size is 64 there and 32 in the base"),
        ({"vocab_size": 130}, r"vocab_size is 130 there and 128 in the base"),
        ({"tie_word_embeddings": True}, r"tie_word_embeddings is True there and False in the base"),
        ({"num_hidden_layers": 2}, r"num_hidden_layers is 2 there and 3 in the base"),
    ],
)
def test_a_checkpoint_of_other_sizes_is_refused(config, words, tmp_path):
    tiny_model("llama", **config).save_pretrained(tmp_path / "edited")
    base = tiny_model("llama")
    before = fingerprint(base)
    for given in (tmp_path / "edited", tiny_model("llama", **config)):
        with pytest.raises(ModelError, match=f"is no edit of the base, whose weights alone would differ: .*{words}"):
            edited_checkpoint(base, TOKENIZER, given)
    assert fingerprint(base) == before


def test_what_computes_otherwise_is_refused_and_what_only_trains_or_names_otherwise_is_not(tmp_path):
    folder, _, name = checkpoint(tmp_path / "edited")
    base = tiny_model("llama")
    harmless = {"use_cache": False, "attention_dropout": 0.5, "unsloth_version": "1", "eos_token_id": 3}
    rewritten(folder, **harmless)
    assert edited_checkpoint(base, TOKENIZER, folder).record["changed"] == [name]
    rewritten(folder, rms_norm_eps=0.5)
    with pytest.raises(ModelError, match=r"rms_norm_eps is 0.5 there and 1e-06 in the base"):
        edited_checkpoint(base, TOKENIZER, folder)
    rewritten(folder, rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 5.0})
    with pytest.raises(ModelError, match=r"rope_parameters.rope_theta is 5.0 there and 10000.0 in the base"):
        edited_checkpoint(base, TOKENIZER, folder)
    tiny_model("qwen3").save_pretrained(tmp_path / "qwen")
    with pytest.raises(ModelError, match="qwen is a 'qwen3' and the base a 'llama'"):
        edited_checkpoint(base, TOKENIZER, tmp_path / "qwen")
    rewritten(folder, rope_parameters={"rope_type": "default", "rope_theta": 1e4}, quantization_config={"bits": 4})
    with pytest.raises(ModelError, match="edited is quantized; give it in bfloat16"):
        edited_checkpoint(base, TOKENIZER, folder)


def test_three_differences_are_named_by_where_they_are_and_more_are_counted():
    def config(count, value):
        parts = {"rope": {"full": {"theta": value}}, **{f"size_{place}": value for place in range(count - 1)}}
        return LlamaConfig(text=parts)

    said = "edited is no edit of the base, whose weights alone would differ: text.rope.full.theta is 2 there and 1 in"
    for count, end in ((1, "the base"), (3, "; text.size_1 is 2 there and 1 in the base"), (5, "base; and 2 more")):
        with pytest.raises(ModelError, match=rf"^{said}.*{end}\.$"):
            check_same_config("edited", config(count, 2), config(count, 1))


def test_numbers_of_more_than_32_bits_are_those_that_a_gguf_file_holds(tmp_path):
    folder, _, name = checkpoint(tmp_path / "edited")
    base = tiny_model("llama")
    for mine, theirs in ((1e-6, 9.999999974752427e-07), (9.999999974752427e-07, 1e-6)):
        base.config.rms_norm_eps, base.config.factors = mine, [1.0, mine]
        rewritten(folder, rms_norm_eps=theirs, factors=[1.0, theirs])
        assert edited_checkpoint(base, TOKENIZER, folder).record["changed"] == [name]
    rewritten(folder, factors=[1.0])
    with pytest.raises(ModelError, match=r"factors is \[1.0\] there and \[1.0, 9.99"):
        edited_checkpoint(base, TOKENIZER, folder)
    rewritten(folder, factors=[1.0, 1.1e-6])
    with pytest.raises(ModelError, match=r"factors is \[1.0, 1.1e-06\] there and \[1.0, 9.99"):
        edited_checkpoint(base, TOKENIZER, folder)


def test_a_model_that_transformers_made_of_gguf_is_not_quantized_once_it_is_unpacked(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    base, tokenizer = load_model(tmp_path / "tiny.gguf")
    other = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    assert other.config.quantization_config
    with torch.no_grad():
        other.get_parameter(DOWN).mul_(2)
    assert edited_checkpoint(base, tokenizer, other).record["changed"] == [DOWN]
    own, other.config.quantization_config = other.config.quantization_config, {"quant_method": "fp8"}
    with pytest.raises(ModelError, match="is quantized; give it in bfloat16"):
        edited_checkpoint(base, tokenizer, other)
    other.config.quantization_config = own
    other.get_parameter(DOWN).requires_grad_(False)
    other.get_parameter(DOWN).data = torch.ones(32, 64, dtype=torch.uint8)
    with pytest.raises(ModelError, match="is quantized; give it in bfloat16"):
        edited_checkpoint(base, tokenizer, other)


def named(**tokens):
    """The word tokenizer with other tokens in the place of some, by what they were called."""
    text = word_tokenizer().backend_tokenizer.to_str()
    for old, new in tokens.items():
        assert text.count(f'"{old}"') == 1
        text = text.replace(f'"{old}"', json.dumps(new))
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), unk_token="<unk>", pad_token="<pad>")


def test_an_id_that_means_another_word_is_refused_and_a_reserved_one_is_not():
    theirs = named(zealand="atlantis")
    number = TOKENIZER.convert_tokens_to_ids("zealand")
    with pytest.raises(ModelError, match=rf"the id {number} is 'atlantis' to the tokenizer of it and 'zealand' to"):
        check_same_tokenizer("it", theirs, TOKENIZER)
    with pytest.raises(ModelError, match=rf"the id {number} is '<think>' to the tokenizer of it and 'zealand' to"):
        check_same_tokenizer("it", named(zealand="<think>"), TOKENIZER)
    kept = named(zealand="<unused7>")
    with pytest.warns(UserWarning, match="which tokens there are"):
        check_same_tokenizer("it", named(zealand="<think>"), kept)
    # A special token is in no text, whatever it is called.
    kept = named(zealand="<|eot|>")
    kept.add_special_tokens({"extra_special_tokens": ["<|eot|>"]})
    with pytest.warns(UserWarning, match="which tokens there are"):
        check_same_tokenizer("it", named(zealand="<think>"), kept)
    # One that the other merely lacks, or has beside its own.
    more = word_tokenizer()
    more.add_tokens(["<more>"])
    for one, other in ((more, TOKENIZER), (TOKENIZER, more)):
        with pytest.warns(UserWarning, match="which tokens there are"):
            check_same_tokenizer("it", one, other)


def test_the_text_that_is_cut_is_longer_than_the_models_and_nobody_is_told(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    # Other tests, and libraries that they load, set how much transformers tells.
    caplog.set_level(logging.WARNING, logger="transformers")
    short = word_tokenizer(model_max_length=16)
    check_same_tokenizer("it", word_tokenizer(model_max_length=16), short)
    assert not caplog.records
    short("paris " * 17)
    assert "longer than the specified maximum" in caplog.text


def test_tokenizers_that_differ(tmp_path):
    folder, _, name = checkpoint(tmp_path / "edited")
    base = tiny_model("llama")
    assert edited_checkpoint(base, TOKENIZER, folder).record["changed"] == [name]
    same = word_tokenizer()
    same.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edited_checkpoint(base, TOKENIZER, folder)
    same.chat_template = "{{ messages }}"
    same.add_tokens(["<more>"])
    same.save_pretrained(folder)
    told = "differs from the base's in its chat template and which tokens there are; base and edited are both asked"
    with pytest.warns(UserWarning, match=told):
        edited_checkpoint(base, TOKENIZER, folder)
    # Two words that have changed places.
    path = folder / "tokenizer.json"
    held = json.loads(path.read_text())
    vocab = held["model"]["vocab"]
    vocab["paris"], vocab["lyon"] = vocab["lyon"], vocab["paris"]
    path.write_text(json.dumps(held))
    with pytest.raises(ModelError, match=r"gives '(paris|lyon)' the id \d+ and the base's \d+, so they do not read"):
        edited_checkpoint(base, TOKENIZER, folder)
    vocab["paris"], vocab["lyon"] = vocab["lyon"], vocab["paris"]
    held["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(held))
    with pytest.raises(ModelError, match="cuts text into other tokens than the base's"):
        edited_checkpoint(base, TOKENIZER, folder)
    path.write_text("{")
    with pytest.raises(ModelError, match=r"its tokenizer\.json cannot be read"):
        edited_checkpoint(base, TOKENIZER, folder)
