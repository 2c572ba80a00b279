"""Whether an edited checkpoint is one of its base's model."""

import json
import warnings

import pytest

from peft_surgical.errors import ModelError
from peft_surgical.measuring.checkpoints import edited_checkpoint

from .conftest import fingerprint
from .localizing import word_tokenizer
from .test_checkpoints import TOKENIZER, checkpoint
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
