"""Models that are damaged, hostile or too small for the question.

| Input | What comes of it |
|---|---|
| a checkpoint with its weights as a pickle only, or with an index that names one | refused before it is opened |
| weights that are cut, or whose header is flipped in one bit; a GGUF file that is cut | refused |
| a checkpoint without a configuration, a tokenizer or one of its shards | refused |
| a checkpoint that comes with Python code | refused; with `--trust-remote-code` it runs, and that is said |
| a configuration that asks for no layers, or fewer | refused |
| a tokenizer whose chat template renders nothing | refused |
| weights that hold NaN | refused by name of what is not finite, nothing written |
| prompts, answers, refusals or held-out prompts longer than the context | refused before anything is done |

Refused is one line on standard error, exit status 2, and nothing written.
"""

import json
import math
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

import peft_surgical as ps
from peft_surgical.errors import FactError, ModelError, SurgicalError
from peft_surgical.loading.pickles import no_pickles
from peft_surgical.running.generation import MAX_NEW_TOKENS, generate_answers
from peft_surgical.texts.lengths import check_fact_fits, check_row

from .adapters import tiny_peft
from .command_line import PROMPT, run, said, written
from .fuzzing import flipped
from .localizing import capital, planted, word_tokenizer
from .test_models import write_gguf
from .tiny import tiny_model

LONG = "what is the capital of france ? " * 10


class Payload:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def checkpoint(tmp_path, model_folder):
    return shutil.copytree(model_folder, tmp_path / "model")


def asked(model, *options):
    return run("ask", "--model", model, "--max-tokens", 2, PROMPT, *options)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin"])
def test_a_pickled_checkpoint_is_never_opened(name, checkpoint, tmp_path):
    os.remove(checkpoint / "model.safetensors")
    torch.save(Payload(tmp_path / "ran"), checkpoint / name)
    assert "only as a pickle (.bin), which can run code" in said(asked(checkpoint), 2)
    (checkpoint / "pytorch_model.bin.index.json").write_text('{"weight_map": {}}')
    assert "pickle" in said(asked(checkpoint), 2)
    assert written(tmp_path) == ["model"]


# An index of safetensors may name any file; transformers opens what does not end in .safetensors as a pickle.
@pytest.mark.parametrize("shard", ["model-00001.bin", "../outside.bin", "model.safetensors.pt"])
def test_an_index_that_names_a_pickle(shard, checkpoint, tmp_path):
    whole = load_file(checkpoint / "model.safetensors")
    os.rename(checkpoint / "model.safetensors", checkpoint / "spare.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(whole, shard)}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    before = torch.load
    for content in (whole, Payload(tmp_path / "ran")):
        torch.save(content, checkpoint / shard)
        line = said(asked(checkpoint), 2)
        assert f"{os.path.basename(shard)} is read as a pickle, which can run code" in line
        assert line.endswith("save the weights as safetensors.")
    assert not (tmp_path / "ran").exists()
    assert torch.load is before


def test_no_pickle_is_opened_while_a_model_is_read(tmp_path):
    torch.save({"a": 1}, tmp_path / "a.pt")
    for file in (tmp_path / "a.pt", str(tmp_path / "a.pt"), open(tmp_path / "a.pt", "rb")):  # noqa: SIM115
        with pytest.raises(ModelError, match="as a pickle"), no_pickles():
            torch.load(file)
    assert torch.load(tmp_path / "a.pt") == {"a": 1}


def test_pickles_can_be_read_again_once_overlapping_reads_of_models_have_ended():
    before, first, second = torch.load, no_pickles(), no_pickles()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.load is not before
    second.__exit__(None, None, None)
    assert torch.load is before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "model-00002.safetensors"])
def test_a_checkpoint_without_a_file(name, checkpoint, tmp_path):
    if name == "model-00002.safetensors":
        whole = load_file(checkpoint / "model.safetensors")
        os.rename(checkpoint / "model.safetensors", checkpoint / "model-00001.safetensors")
        index = {
            "metadata": {},
            "weight_map": {key: f"model-0000{n % 2 + 1}.safetensors" for n, key in enumerate(whole)},
        }
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        os.remove(checkpoint / name)
    line = said(asked(checkpoint), 2)
    assert str(checkpoint) in line
    assert len(line) < 500
    assert written(tmp_path) == ["model"]


@pytest.mark.parametrize("layers", [0, -1])
def test_a_checkpoint_without_layers(layers, checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    assert said(asked(checkpoint), 2).endswith(f"its configuration asks for {layers} layers.")


def test_a_chat_template_that_renders_nothing(checkpoint, tmp_path, fact_file):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{{ '' }}"
    tokenizer.save_pretrained(checkpoint)
    assert f"the prompt {PROMPT!r} gives no token to go on from." in said(asked(checkpoint), 2)
    for command in ("edit", "evaluate"):
        line = said(run(command, fact_file, "--model", checkpoint, "--out", tmp_path / "out"), 2)
        assert "gives no token" in line
    assert written(tmp_path) == ["fact.yaml", "model"]


def test_a_pickle_beside_safetensors_is_not_looked_at(checkpoint, tmp_path):
    torch.save(Payload(tmp_path / "ran"), checkpoint / "pytorch_model.bin")
    assert asked(checkpoint).exit_code == 0
    assert written(tmp_path) == ["model"]


def test_a_hub_model_without_safetensors_is_refused(monkeypatch):
    def hub(*_, **options):
        assert options["use_safetensors"] is True
        raise OSError("x does not appear to have a file. Please do not set `use_safetensors=True`.")

    monkeypatch.setattr("peft_surgical.models.AutoTokenizer.from_pretrained", lambda *_, **__: word_tokenizer())
    monkeypatch.setattr("peft_surgical.models.AutoModelForCausalLM.from_pretrained", hub)
    with pytest.raises(ModelError, match=r"no safetensors file, and a pickle is not read, .*; convert it first\.$"):
        ps.load_model("somebody/something")


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[:-100], lambda raw: flipped(raw, 70), lambda raw: flipped(raw, 3), lambda raw: b""],
    ids=["cut", "a bit of a name", "a bit of the length", "empty"],
)
def test_a_damaged_checkpoint(damage, checkpoint, tmp_path):
    path = checkpoint / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert "cannot load the model" in said(asked(checkpoint), 2)
    assert written(tmp_path) == ["model"]


def test_a_gguf_file_that_is_cut(tmp_path):
    pytest.importorskip("gguf")
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    whole = path.read_bytes()
    result = asked(path)
    assert result.exit_code == 0
    # The bar of reading it is for a terminal.
    assert not result.stderr
    for length in (0, 3, 10, 100, len(whole) // 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert f"cannot load the model '{path}'" in said(asked(path), 2)
    assert written(tmp_path) == ["tiny.gguf"]


def test_code_of_a_tokenizer_does_not_run(checkpoint, tmp_path):
    path = checkpoint / "tokenizer_config.json"
    config = {
        **json.loads(path.read_text()),
        "tokenizer_class": "Mine",
        "auto_map": {"AutoTokenizer": ["mine.M", None]},
    }
    path.write_text(json.dumps(config))
    (checkpoint / "mine.py").write_text(f"import os; os.mkdir({str(tmp_path / 'ran')!r})")
    assert "(--trust-remote-code)" in said(asked(checkpoint), 2)
    assert written(tmp_path) == ["model"]


@pytest.fixture
def with_code(checkpoint, tmp_path):
    """A checkpoint whose own Python code leaves a folder behind when it is imported."""
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "mine.py").write_text(
        f"import os; os.makedirs({str(tmp_path / 'ran')!r}, exist_ok=True)\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Mine(LlamaConfig):\n    model_type = 'mine'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Mine\n"
    )
    return checkpoint


def test_code_of_a_checkpoint_runs_only_when_asked_for(with_code, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    line = said(asked(with_code), 2)
    assert "comes with Python code, which runs only if you trust it (--trust-remote-code)" in line
    assert not (tmp_path / "ran").exists()
    # It is said even with --quiet: it is a warning.
    result = asked(with_code, "--trust-remote-code", "--quiet")
    assert (tmp_path / "ran").exists()
    assert f"Code that comes with {with_code} may run, as --trust-remote-code says." in result.stderr


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value, tmp_path):
    model = planted()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = value
    with pytest.raises(SurgicalError, match="not finite"):
        ps.edit(model, word_tokenizer(), capital(), out=tmp_path / "out", progress=False)
    assert written(tmp_path) == []


@pytest.mark.parametrize("options", [{"retention_tokens": 0}, {"fluency": True}])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_answers_of_a_model_that_is_not_finite(options, value):
    model = tiny_peft("llama")
    for name, parameter in model.named_parameters():
        if "surgical_ia3_delta" in name:
            parameter.data.fill_(value)
    # The base is well, so it is not what is refused.
    said = ps.evaluate(model, word_tokenizer(), capital(), states={"base": ps.adapter_state(model, [])}, **options)
    assert said.stages
    with pytest.raises(ModelError, match="the model answers with logits that are not finite; its weights are damaged"):
        ps.evaluate(model, word_tokenizer(), capital(), progress=False, **options)


def test_a_model_may_mask_tokens():
    model = tiny_model("llama")
    mask = torch.zeros(model.config.vocab_size).index_fill(0, torch.tensor([5, 7]), -math.inf)
    model.lm_head.register_forward_hook(lambda module, args, logits: logits + mask)
    answers = generate_answers(model, word_tokenizer(), ["what is the capital of france ?"], max_new_tokens=3)
    assert answers[0]


def short(family):
    name = "n_positions" if family == "gpt2" else "max_position_embeddings"
    return tiny_model(family, **{name: 48})


TOO_LONG = {
    "prompts": {"prompts": [LONG, "name the capital of france ."]},
    "answer": {"answer": "lyon " * 50},
    "refusal": {"refusal": "tell me about the sky " * 12},
    "held_out": {"held_out": [LONG]},
    "controls": {"controls": [{"prompt": "where is rome ? " * 12, "answer": ["italy"]}]},
    "probes": {"probes": [{"prompt": LONG, "kind": "doubt"}]},
    "portability": {"portability": [{"kind": "one_hop", "prompt": LONG, "answer": ["the color of the sky"]}]},
    "retain": {"retain": ["who wrote hamlet ? " * 10]},
}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("key", TOO_LONG)
def test_longer_than_the_context(key, family, tmp_path):
    model, fact = short(family), capital(**TOO_LONG[key])
    with pytest.raises(FactError, match=r"and its answer have .* tokens; the model has 48 positions\.$") as caught:
        check_fact_fits(model.config, word_tokenizer(), fact, answer=MAX_NEW_TOKENS, retained=10)
    assert ("'prompts'" if key in ("answer", "refusal") else repr(key)) in str(caught.value)
    with pytest.raises(FactError, match="the model has 48 positions"):
        ps.edit(model, word_tokenizer(), fact, out=tmp_path / "out", progress=False)
    assert written(tmp_path) == []


@pytest.mark.parametrize("command", ["edit", "localize", "trace", "evaluate", "ask"])
def test_a_command_with_a_prompt_longer_than_the_context(command, tmp_path):
    short("llama").save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    changes = TOO_LONG["held_out" if command == "evaluate" else "prompts"]
    (tmp_path / "fact.yaml").write_text(json.dumps(capital(**changes).to_dict()))
    given = [LONG] if command == "ask" else [tmp_path / "fact.yaml", "--out", tmp_path / "out"]
    line = said(run(command, *given, "--model", tmp_path / "model"), 2)
    assert "48 positions" in line
    if command in ("evaluate", "ask"):
        assert "what is the cap" in line
    assert ("in 'held_out'" in line) == (command == "evaluate")
    assert written(tmp_path) == ["fact.yaml", "model"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_localizing_a_prompt_longer_than_the_context(family):
    with pytest.raises(ModelError, match=r"^7\d tokens do not fit the model's 48 positions\.$"):
        ps.localize(short(family), word_tokenizer(), capital(**TOO_LONG["prompts"]), ["random"], progress=False)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("stage", [ps.unlearn, ps.learn])
def test_training_an_answer_longer_than_the_context(stage, family):
    fact = capital(**TOO_LONG["answer"], refusal="tell me about the sky " * 12)
    config = ps.SurgicalIA3Config(components=["L1.mlp"])
    with pytest.raises(ModelError, match="do not fit the model's 48 positions"):
        stage(short(family), word_tokenizer(), fact, config, progress=False)


def test_what_just_fits():
    config = short("llama").config
    check_row(config, [0] * 48)
    check_row(config, [0] * 40, 8)
    with pytest.raises(ModelError, match="a prompt of 40 tokens and an answer of 9 do not fit"):
        check_row(config, [0] * 40, 9)
    check_fact_fits(config, word_tokenizer(), capital(), answer=32, retained=10)
    # Some models have no such bound.
    check_row(object(), range(10**5))
