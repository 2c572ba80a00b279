import json
import os
from contextlib import nullcontext

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import save
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import peft_surgical as ps
from peft_surgical.measuring.states import adapter_state
from peft_surgical.report import Report
from peft_surgical.running import generation, identity
from peft_surgical.running.cache import (
    FOLDER,
    answers_kept,
    beside,
    kept_beside,
    kept_tensors,
)
from peft_surgical.running.generation import generate_ids
from peft_surgical.running.identity import weights_digest

from .adapters import tiny_peft
from .command_line import run
from .localizing import word_tokenizer
from .threads import threads
from .tiny import tiny_ids, tiny_model

TOKENIZER = word_tokenizer()
PROMPTS = [tiny_ids(1, length, seed=length)[0].tolist() for length in (3, 11, 5)]


@pytest.fixture
def computed(monkeypatch):
    """The prompts of each time that a model was asked in earnest."""
    asked, original = [], generation._generate

    def spy(model, prompts, *rest):
        asked.append(prompts)
        return original(model, prompts, *rest)

    monkeypatch.setattr(generation, "_generate", spy)
    return asked


def answer(model, folder, prompts=PROMPTS, count=5, **options):
    with answers_kept(folder):
        return generate_ids(model, TOKENIZER, prompts, max_new_tokens=count, **options)


def files(folder):
    return sorted(folder.glob("*.json"))


def test_the_second_time_is_read_and_equal(tmp_path, computed):
    expected = generate_ids(tiny_model("llama"), TOKENIZER, PROMPTS, max_new_tokens=5)
    for _ in range(3):
        assert answer(tiny_model("llama"), tmp_path / "kept") == expected
    assert len(computed) == 2
    assert len(files(tmp_path / "kept")) == 1
    # Without a folder nothing is read.
    generate_ids(tiny_model("llama"), TOKENIZER, PROMPTS, max_new_tokens=5)
    assert len(computed) == 3


def test_whatever_decides_the_answers_is_part_of_the_key(tmp_path, computed):
    moved = tiny_model("llama")
    moved.model.layers[2].mlp.down_proj.weight.data[3, 5] += 1e-3
    buffered = tiny_model("llama")
    buffered.model.rotary_emb.inv_freq[0] *= 1.001
    other_class = tiny_model("llama")
    other_class.model.layers[0].mlp.act_fn = nn.GELU()
    leaky = tiny_model("llama")
    leaky.model.layers[1].post_attention_layernorm.variance_epsilon = 1e-3
    answer(tiny_model("llama"), tmp_path)
    for number, case in enumerate(
        [
            {"model": moved},
            {"model": buffered},
            {"model": other_class},
            {"model": leaky},
            {"model": tiny_model("llama", dtype=torch.bfloat16)},
            {"model": tiny_model("llama", rms_norm_eps=1e-3)},
            {"prompts": PROMPTS[:2]},
            {"prompts": PROMPTS[::-1]},
            {"count": 4},
            {"batch_size": 1},
        ],
        start=2,
    ):
        answer(**{"model": tiny_model("llama"), "folder": tmp_path, **case})
        assert len(computed) == number
    assert len(files(tmp_path)) == len(computed)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-9],
        lambda text: "\x00" * len(text),
        lambda text: "[]",
        lambda text: json.dumps({**json.loads(text), "answers": [[5], [6], [7]]}),
        lambda text: json.dumps({**json.loads(text), "answers": 3}),
        lambda text: json.dumps({"answers": json.loads(text)["answers"]}),
    ],
)
def test_a_damaged_file_is_written_anew(tmp_path, computed, damage):
    expected = answer(tiny_model("llama"), tmp_path)
    [file] = files(tmp_path)
    whole = file.read_text()
    file.write_text(damage(whole))
    assert answer(tiny_model("llama"), tmp_path) == expected
    assert len(computed) == 2
    assert file.read_text() == whole
    assert [path.name for path in tmp_path.iterdir() if path.name != ".gitignore"] == [file.name]


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:-5],
        lambda raw: bytes(len(raw)),
        lambda raw: raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:],
        lambda raw: (2).to_bytes(8, "little") + b"{}",
        lambda raw: save({"a": torch.zeros(3)}),
        lambda raw: save({"b": torch.zeros(3)}, {"format": "pt"}),
    ],
)
def test_a_damaged_file_of_tensors_is_written_anew(tmp_path, damage):
    def ask():
        with answers_kept(tmp_path):
            return kept_tensors(
                tiny_model("llama"), "kind", {}, lambda: {"a": torch.arange(3.0)}, alone=lambda _: nullcontext()
            )

    ask()
    [file] = tmp_path.glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert torch.equal(ask()["a"], torch.arange(3.0))
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path, computed):
    (tmp_path / "file").write_text("in the way")
    expected = answer(tiny_model("llama"), tmp_path / "file")
    assert answer(tiny_model("llama"), tmp_path / "file") == expected
    assert len(computed) == 2


def loras():
    return get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()


def ia3():
    model = get_peft_model(tiny_model("llama"), IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    return model.eval()


@pytest.mark.parametrize("make", [tiny_peft, loras, ia3])
def test_the_base_below_adapters_is_the_base(tmp_path, computed, make):
    bare = answer(tiny_model("llama"), tmp_path)
    model = make()
    with adapter_state(model, [])():
        assert answer(model, tmp_path) == bare
        assert answer(model.get_base_model(), tmp_path) == bare
    assert len(computed) == 1
    assert weights_digest(model) is None
    # With an adapter acting, nothing is kept.
    answer(model, tmp_path)
    assert len(computed) == 2
    assert len(files(tmp_path)) == 1


class Steered(nn.Module):
    """An MLP that adds a vector which is neither a parameter nor a buffer."""

    def __init__(self, inner, vector):
        super().__init__()
        self.inner, self.vector = inner, vector

    def forward(self, hidden):
        return self.inner(hidden) + self.vector


def test_what_code_of_somebodys_own_says_is_not_kept(tmp_path, computed):
    def steered(seed):
        model = tiny_model("llama")
        vector = 3 * torch.randn(32, generator=torch.Generator().manual_seed(seed))
        model.model.layers[1].mlp = Steered(model.model.layers[1].mlp, vector)
        return model

    def patched(factor):
        model = tiny_model("llama")
        mlp = type(model.model.layers[0].mlp)
        other = type(mlp.__name__, (mlp,), {"forward": lambda self, x: factor * mlp.forward(self, x)})
        other.__qualname__, other.__module__ = mlp.__qualname__, mlp.__module__
        model.model.layers[0].mlp.__class__ = other
        return model

    for make in (steered, patched):
        plain = [generate_ids(make(number), TOKENIZER, PROMPTS, max_new_tokens=5) for number in (1, 9)]
        assert plain[0] != plain[1]
        assert [answer(make(number), tmp_path) for number in (1, 9)] == plain
    assert files(tmp_path) == []


def test_weights_are_read_once_and_again_where_written_to(tmp_path, monkeypatch):
    model, read = tiny_model("qwen2"), []
    own = identity.content_hash
    monkeypatch.setattr(identity, "content_hash", lambda tensor: read.append(tensor) or own(tensor))

    def ask():
        with torch.no_grad():
            return kept_tensors(model, "sum", {}, measure, alone=lambda _: nullcontext())["sum"]

    def measure():
        return {"sum": sum(parameter.double().sum() for parameter in model.parameters())[None]}

    with answers_kept(tmp_path):
        before = ask()
        # The output head is the embedding.
        assert len(read) == len({id(tensor) for tensor in (*model.parameters(), *model.buffers())})
        read.clear()
        assert torch.equal(ask(), before)
        assert read == []
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.add_(1)
        assert not torch.equal(ask(), before)
        assert [id(tensor) for tensor in read] == [id(model.model.layers[0].mlp.up_proj.weight)]
        model.model.norm.weight = nn.Parameter(model.model.norm.weight.detach() + 1)
        ask()
        assert len(read) == 2
    with answers_kept(tmp_path):
        read.clear()
        ask()
    assert len(read) > 2


def test_a_merge_that_torch_does_not_count_is_noticed(tmp_path):
    model = tiny_model("llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LoraConfig(target_modules=["down_proj"], init_lora_weights=False)
    with answers_kept(tmp_path):
        before = kept_tensors(model, "sum", {}, lambda: {"sum": torch.zeros(1)}, alone=lambda _: nullcontext())
        merged = get_peft_model(model, config).merge_and_unload()
        after = kept_tensors(merged, "sum", {}, lambda: {"sum": torch.ones(1)}, alone=lambda _: nullcontext())
    assert (before["sum"], after["sum"]) == (0, 1)


def test_files_of_tensors_stay_few_and_those_last_used_stay(tmp_path):
    model, measured = tiny_model("llama"), []

    def ask(number):
        def measure():
            measured.append(number)
            return {"a": torch.tensor([float(number)])}

        # A file system need not tell times apart that are close together.
        for path in tmp_path.iterdir():
            used = path.stat().st_mtime_ns - 10**9
            os.utime(path, ns=(used, used))
        with answers_kept(tmp_path):
            return kept_tensors(model, "kind", {"number": number}, measure, alone=lambda _: nullcontext())

    for number in (0, 1, 2, 3, 0, 4):
        assert torch.equal(ask(number)["a"], torch.tensor([float(number)]))
    assert measured == [0, 1, 2, 3, 4]
    assert len(list(tmp_path.glob("kind-*.safetensors"))) == 4
    ask(0)
    assert measured == [0, 1, 2, 3, 4]
    ask(1)
    assert measured == [0, 1, 2, 3, 4, 1]


def test_what_killed_runs_left_half_written_goes_and_what_is_being_written_stays(tmp_path):
    left, written = (f".kind-5a.safetensors.{drawn}.partial" for drawn in ("abcd_123", "0123abcd"))
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in (left, written):
        (kept / name).write_bytes(b"half")
    os.utime(kept / left, (0, 0))
    with answers_kept(kept):
        kept_tensors(tiny_model("llama"), "kind", {}, lambda: {"a": torch.zeros(1)}, alone=lambda _: nullcontext())
    assert [path.name for path in kept.glob(".*.partial")] == [written]


def test_the_folder_stands_beside_whatever_the_output_is_called(tmp_path, monkeypatch):
    (tmp_path / "out" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out")
    assert {beside(name) for name in (".", "x/..", "../out", tmp_path / "out")} == {tmp_path / FOLDER}


def test_edit_asks_the_base_once(tmp_path, model_folder, fact_file, computed):
    def edit(out, *options):
        options = ("--model", model_folder, "--steps", 2, "--retention-tokens", 0, "--quiet", *options)
        result = run("edit", fact_file, "--out", out, *options)
        assert result.exit_code == 0, result.output
        return Report.load(out / "report.json")

    first = edit(tmp_path / "one")
    asked = len(computed)
    second = edit(tmp_path / "two", "--steps", 1)
    # What is kept for this fact and for any, and the base's answers to the evaluation, are read; the two edited states
    # are not.
    evaluation = computed[asked - 1]
    assert computed[asked:] == [evaluation] * 2
    assert computed[:asked].count(evaluation) == len(first.stages) == 3
    assert asked > 3
    assert second.answers["base"] == first.answers["base"]
    assert len(files(tmp_path / FOLDER)) == 3
    assert (tmp_path / FOLDER / ".gitignore").read_text() == "*\n"


def test_what_python_and_evaluate_ask_of_the_base_is_kept_too(tmp_path, model_folder, fact_file, computed):
    model, tokenizer = ps.load_model(str(model_folder))
    recipe, fact = ps.Recipe(steps=1), ps.Fact.from_file(fact_file)
    ps.edit(model, tokenizer, fact, out=tmp_path / "one", recipe=recipe, retention_tokens=0, progress=False)
    asked = len(computed)
    common = ("--model", model_folder, "--retention-tokens", 0, "--quiet")
    result = run("evaluate", fact_file, "--adapter", tmp_path / "one/edit", "--out", tmp_path / "two", *common)
    assert result.exit_code == 0, result.output
    # The edited model alone.
    assert computed[asked:] == [computed[asked - 1]]
    result = run("evaluate", fact_file, "--out", tmp_path / "three", *common)
    assert result.exit_code == 0, result.output
    assert len(computed) - asked == 1
    assert {path.name for path in tmp_path.iterdir()} >= {FOLDER, "one", "two", "three"}


def test_where_answers_are_kept_already_stays(tmp_path):
    with answers_kept(tmp_path / "given"), kept_beside(tmp_path / "out"):
        answered = generate_ids(tiny_model("llama"), TOKENIZER, PROMPTS, max_new_tokens=5)
    assert files(tmp_path / "given")
    with kept_beside(tmp_path / "out"):
        assert generate_ids(tiny_model("llama"), TOKENIZER, PROMPTS, max_new_tokens=5) == answered
    assert files(tmp_path / FOLDER)


def test_edit_says_where_the_time_went(tmp_path, model_folder, fact_file):
    arguments = ("edit", fact_file, "--model", model_folder, "--steps", 1, "--out", tmp_path / "out")
    plain = run(*arguments, "--retention-tokens", 32)
    told = run(*arguments, "--retention-tokens", 32, "--overwrite", "--profile")
    assert plain.exit_code == told.exit_code == 0, told.output
    assert "everything else" not in plain.stdout
    lines = told.stdout.splitlines()
    for name in ("answers base", "answers unlearned", "answers edited", "unrelated text", "everything else"):
        assert any(line.strip().startswith(name) for line in lines), name
    assert lines[-1].split()[0] == "total"
    assert lines[-1].endswith("100.0%")


def test_nothing_is_kept_in_modes_that_round_otherwise(tmp_path, computed):
    answer(tiny_model("llama"), tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        answer(tiny_model("llama"), tmp_path)
        answer(tiny_model("llama"), tmp_path, PROMPTS[:2])
    assert len(computed) == 3
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("backend", [torch.backends.mkldnn.matmul, torch.backends.cuda.matmul, torch.backends])
def test_torchs_newer_setting_of_precision_is_part_of_the_key_and_no_error(tmp_path, computed, backend):
    model, own = tiny_model("llama"), torch.backends.mkldnn.matmul
    before, left = backend.fp32_precision, own.fp32_precision
    try:
        # Whoever used the older setting in this process has left one here that the global one does not reach.
        own.fp32_precision = "none"
        answer(model, tmp_path)
        backend.fp32_precision = "tf32"
        answer(model, tmp_path)
    finally:
        backend.fp32_precision = before
        own.fp32_precision = left
    # What a GPU does changes nothing on the processor.
    assert len(computed) == (1 if backend is torch.backends.cuda.matmul else 2)


def test_where_there_is_no_room_no_folder_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("peft_surgical.running.cache.write_bytes", lambda *_: os.stat(tmp_path / "nothing"))
    assert answer(tiny_model("llama"), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_what_operations_run_on_is_part_of_the_key(tmp_path, computed):
    # Which kernel of attention, in how many replicas and threads, and by which library.
    kernels = (sdpa_kernel(own) for own in ([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], SDPBackend.MATH))
    shared = (ps.without_replicas(), threads(torch.get_num_threads() + 1))
    for block in (*kernels, *shared, torch.backends.mkldnn.flags(enabled=False)):
        with block:
            answer(tiny_model("llama"), tmp_path)
    assert len(computed) == len(files(tmp_path)) == 5
