"""Two processes on one machine, gloo: an edit that they share is the edit that one makes."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

import peft_surgical as ps
from peft_surgical.errors import AdapterError, ArchitectureError, ModelError, OutputError
from peft_surgical.measuring.relearning import relearned_state
from peft_surgical.measuring.rounding import rounded_state
from peft_surgical.models import load_model
from peft_surgical.report import Report
from peft_surgical.running import workers
from peft_surgical.running.sharing import add_up, by_main, is_main, merged, processes, shard, share, shared_work
from peft_surgical.running.suffix import SuffixRunner
from peft_surgical.staging import retain

from . import test_editing
from .adapters import tiny_peft
from .localizing import capital, word_tokenizer
from .threads import threads
from .tiny import tiny_experts, tiny_model

ROOT = Path(__file__).parent.parent
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# Gradients of one step are summed in another order, in float32.
TOLERANCE = {"rtol": 1e-3, "atol": 1e-5}

PRIMITIVES = """
import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from peft_surgical.errors import ModelError, OutputError
from peft_surgical.running.sharing import add_up, by_main, check_alike, is_main, merged, processes, share, shared_work
from peft_surgical.tuner import SurgicalIA3Config

state = PartialState(cpu=True)
rank = state.process_index
assert (processes(), is_main(), share("abc")) == (1, True, list("abc")), "nothing is shared unless it is asked for"
with shared_work():
    assert (processes(), is_main()) == (2, rank == 0)
    assert share("abcde") == (list("ace"), list("bd"))[rank]
    tensors = [torch.full((2,), float(rank + 1)), torch.tensor(10.0 * rank)]
    add_up(tensors)
    assert [tensor.tolist() for tensor in tensors] == [[3, 3], 10]
    assert merged(lambda: {rank: "own", "last": rank}) == {0: "own", 1: "own", "last": 1}
    called = []
    assert by_main(lambda: called.append(1) or "told") == "told"
    assert len(called) == (1, 0)[rank]

    def refuse():
        raise OutputError("the disk is full.")

    try:
        by_main(refuse)
        raise AssertionError
    except OutputError as error:
        assert str(error) == "the disk is full."
    check_alike(seed=0, config=SurgicalIA3Config(components=["L0.mlp"], modules_to_save=set("abcdefgh")))
    torch.manual_seed(0)
    alike, wide, other = (torch.nn.Linear(3, 2) for _ in range(3))
    adapted = get_peft_model(torch.nn.Sequential(alike), LoraConfig(target_modules=["0"]))
    torch.manual_seed(rank)
    torch.nn.init.normal_(adapted.base_model.model[0].lora_B["default"].weight)
    check_alike(model=adapted)
    check_alike(model=torch.nn.Linear(3, 2, device="meta" if rank else "cpu"))
    wide.to(torch.float64 if rank else torch.float32)
    other.weight.data[1, 2] += 1e-6 * rank
    # Reordered rows, of more words than are summed apart, and of fewer.
    long, short = torch.nn.Embedding(1024, 64), torch.nn.Linear(3, 2)
    for weight in (long.weight, short.weight):
        torch.nn.init.uniform_(weight, generator=torch.Generator().manual_seed(0))
        weight.data[:] = weight.data.flip(0) if rank else weight.data
    torch.nn.init.zeros_(short.bias)
    # What a checkpoint holds beside parameters, and what is worked out anew.
    saved, made = torch.nn.Identity(), torch.nn.Identity()
    saved.register_buffer("mean", torch.full((2,), float(rank)))
    made.register_buffer("angles", torch.full((2,), float(rank)), persistent=False)
    check_alike(model=made)
    within = get_peft_model(torch.nn.Sequential(other), LoraConfig(target_modules=["0"]))
    # An adapter that one process alone has, and one that acts in one process alone.
    lora = LoraConfig(target_modules=["0"])
    more, acting = (get_peft_model(torch.nn.Sequential(torch.nn.Linear(3, 2)), lora) for _ in range(2))
    for adapted in (more, acting):
        torch.nn.init.ones_(adapted.base_model.model[0].weight)
        torch.nn.init.ones_(adapted.base_model.model[0].bias)
        check_alike(model=adapted)
    if rank:
        more.add_adapter("more", LoraConfig(target_modules=["0"]))
    acting.add_adapter("more", LoraConfig(target_modules=["0"]))
    check_alike(model=acting)
    acting.set_adapter("more" if rank else "default")
    for model in (wide, other, long, short, saved, within, more, acting):
        try:
            check_alike(model=model)
            raise AssertionError
        except ModelError as error:
            assert str(error).endswith("differ in: model.")
    for given in ({"seed": rank}, {"seed": 0, "recipe": [{rank}]}):
        try:
            check_alike(**given)
            raise AssertionError
        except ModelError as error:
            assert str(error).endswith(("differ in: seed.", "differ in: recipe."))
check_alike(seed=rank)
assert processes() == 1
print("done")
"""

FAILING = """
import os
from datetime import timedelta
import torch
from torch import distributed
import peft_surgical as ps
from peft_surgical.errors import ModelError, told_by_first
from peft_surgical.measuring import retention
from peft_surgical.measuring.retention import measure_retention
from peft_surgical.measuring.states import adapter_state
from peft_surgical.running.sharing import by_each, merged, shared_work
from peft_surgical.staging import training
from tests.localizing import capital, word_tokenizer
from tests.tiny import tiny_model

distributed.init_process_group("gloo", timeout=timedelta(seconds=30))
rank = distributed.get_rank()
tokenizer, good = word_tokenizer(), tiny_model("llama")


class Strange(Exception):
    def __init__(self, one, two):
        super().__init__("strange")
        self.held = lambda: (one, two)


def raises(kind, message, function):
    try:
        function()
    except kind as error:
        assert message in str(error), error
        # The first tells of it, whoever met it.
        assert told_by_first(error) is (rank != 0)
    else:
        raise AssertionError(f"nothing was raised where {message!r} was to be")


def fails_in(failing, error):
    def run():
        if rank in failing:
            raise error
        return {rank: "own"}

    return run


def damaged(word):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer(word)["input_ids"][-1]] = float("nan")
    return model


prompts = ["what is the capital of france ?", "who wrote hamlet ?"]
more = ["name the capital of italy .", "tell me about the sky", "where is rome ?"]
expected = ps.generate_answers(good, tokenizer, more, max_new_tokens=4, batch_size=1)
with shared_work():
    for failing in ({0}, {1}, {0, 1}):
        first = min(failing)
        raises(ModelError, f"damaged in {first}", lambda: merged(fails_in(failing, ModelError(f"damaged in {rank}."))))
    raises(RuntimeError, "strange", lambda: by_each(fails_in({1}, RuntimeError("strange"))))
    raises((Strange, RuntimeError), "strange", lambda: by_each(fails_in({1}, Strange(1, 2))))
    assert by_each(fails_in(set(), None)) == [{0: "own"}, {1: "own"}]
    # Of two batches one is either process's.
    for word in ("hamlet", "france"):
        model = damaged(word)
        raises(
            ModelError,
            "logits that are not finite",
            lambda: ps.generate_answers(model, tokenizer, prompts, max_new_tokens=4, batch_size=1),
        )
        assert ps.generate_answers(good, tokenizer, more, max_new_tokens=4, batch_size=1) == expected
    states = {"base": adapter_state(good, [])}
    look = retention._look

    def alone(*given, **options):
        if rank == 1:
            raise ModelError("no window is read.")
        return look(*given, **options)

    read = lambda: measure_retention(good, tokenizer, states, tokens=48, window=8, progress=False)
    retention._look = alone
    raises(ModelError, "no window is read", read)
    retention._look = look
    read()
    in_passes = training.in_passes

    def in_none(*given, **options):
        if rank == 1:
            raise ModelError("no pass is run.")
        return in_passes(*given, **options)

    def learn():
        model = tiny_model("llama")
        recipe = ps.Recipe(steps=2, general=3, everyday=2, compute_dtype="float32")
        config = ps.SurgicalIA3Config(components=["L0.mlp", "L1.head.1"])
        return ps.unlearn(model, tokenizer, capital(), config, recipe=recipe, progress=False)

    training.in_passes = in_none
    raises(ModelError, "no pass is run", learn)
    training.in_passes = in_passes
    learn()
print("done")
"""

HOOKED = """
import sys
from contextlib import nullcontext
from datetime import timedelta
import torch
from torch import distributed
from torch.utils.flop_counter import FlopCounterMode
import peft_surgical as ps
from peft_surgical.running.cache import answers_kept, kept_tensors
from peft_surgical.running.sharing import shared_work
from tests.localizing import word_tokenizer
from tests.tiny import tiny_model

# Who waits for one that has gone another way ends.
distributed.init_process_group("gloo", timeout=timedelta(seconds=20))
rank = distributed.get_rank()
prompts = ["what is the capital of france ?", "who wrote hamlet ?", "where is rome ?"]
plain = ps.generate_answers(tiny_model("llama"), word_tokenizer(), prompts, max_new_tokens=5)
for number, (hooked, counted) in enumerate([(0, None), (1, None), (None, 0), (None, 1)]):
    model = tiny_model("llama")
    if rank == hooked:
        model.model.layers[0].register_forward_hook(lambda *_: None)
    mode = FlopCounterMode(display=False) if rank == counted else nullcontext()
    with mode, answers_kept(f"{sys.argv[1]}/{number}"), shared_work():
        for _ in range(2):
            assert ps.generate_answers(model, word_tokenizer(), prompts, max_new_tokens=5) == plain
        measured = kept_tensors(
            model, "some", {}, lambda: {"one": torch.ones(1)}, alone=lambda _: nullcontext()
        )
        assert measured["one"] == 1
print("done")
"""

EDIT = """
import json
import sys
from pathlib import Path
from accelerate import PartialState
from tests import test_sharing

state = PartialState(cpu=True)
model, out, rows, how = sys.argv[1:]
found = test_sharing.edit(model, out, sharded=how == "sharded", keyed=how == "keyed")
Path(rows, f"{state.process_index}.json").write_text(json.dumps(found))
"""


def launch(*arguments, **environment):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [*LAUNCH, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


def edit(model_folder, out, *, sharded=False, keyed=False):
    """Edits, and returns how many rows this process ran in each pass of training."""
    rows = []
    plain = SuffixRunner.read

    def counted(self, indices, spans):
        rows.append(len(indices))
        return plain(self, indices, spans)

    everyday = retain.everyday_prompts()[:3]
    model, tokenizer = load_model(model_folder, dtype="float32")
    localization = None
    if sharded:
        localization = ps.localize(model, tokenizer, test_editing.FACT, test_editing.EDIT_SCORERS, progress=False)
        shard(model)
        with pytest.raises(ModelError, match="localize before sharding it"):
            ps.localize(model, tokenizer, test_editing.FACT, progress=False)
        with shared_work(), pytest.raises(ModelError, match="so they must run the same rows"):
            ps.learn(model, tokenizer, test_editing.FACT, recipe=test_editing.RECIPE)
    with pytest.MonkeyPatch.context() as patch, threads(1), shared_work(rows=not sharded):
        # A launched process has one thread, and sums of two round otherwise: long steps on a tiny model amplify that.
        patch.setattr(retain, "everyday_prompts", lambda: everyday)
        patch.setattr(SuffixRunner, "read", counted)
        # So few rows would be one batch, and one batch is one process's.
        patch.setattr(workers, "_OWN_IN_FLOAT32", 1)
        options = {"retention_tokens": 48, "progress": False}
        if keyed:
            fact = replace(test_editing.FACT, subject="france")
            ps.edit_keyed(
                model, tokenizer, fact, out=out, recipe=ps.KeyedRecipe(**asdict(test_editing.RECIPE)), **options
            )
        else:
            options |= {"recipe": test_editing.RECIPE, "localization": localization}
            ps.edit(model, tokenizer, test_editing.FACT, out=out, **options)
    return rows


def test_alone_there_is_nothing_to_share():
    with shared_work():
        assert (processes(), is_main(), share([1, 2, 3])) == (1, True, [1, 2, 3])
        tensor = torch.ones(2)
        add_up([tensor])
        assert tensor.tolist() == [1, 1]
        assert merged(lambda: {1: 2}) == {1: 2}
        assert by_main(lambda: 3) == 3
        with pytest.raises(OutputError):
            by_main(_refused)


def _refused():
    raise OutputError("the disk is full.")


def test_what_processes_tell_each_other(tmp_path):
    script = tmp_path / "primitives.py"
    script.write_text(PRIMITIVES)
    result = launch(script, PYTHONHASHSEED="random")
    assert result.stdout.count("done") == 2, result.stderr[-3000:]


def test_an_error_of_one_process_is_one_of_all(tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    result = launch(script)
    assert result.stdout.count("done") == 2, result.stderr[-3000:]


def test_what_one_process_alone_watches_holds_none_up(tmp_path):
    script = tmp_path / "hooked.py"
    script.write_text(HOOKED)
    result = launch(script, tmp_path)
    assert result.stdout.count("done") == 2, result.stderr[-3000:]


@pytest.fixture(scope="module")
def alone(model_folder, tmp_path_factory):
    """The folder of an edit by this process, and the rows of its passes."""
    out = tmp_path_factory.mktemp("alone") / "out"
    return out, edit(model_folder, out)


@pytest.mark.parametrize("how", ["copies", "sharded"])
def test_two_processes_make_the_edit_of_one(how, tmp_path, model_folder, alone):
    script = tmp_path / "edit.py"
    script.write_text(EDIT)
    result = launch(script, model_folder, tmp_path / "out", tmp_path, how)
    assert result.returncode == 0, result.stderr[-3000:]
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    folder, rows = alone
    if how == "sharded":
        # Each process has a part of the weights, and runs all rows.
        assert told == [rows, rows]
    else:
        # Every row is run once, by either of them, and both have their part.
        assert sum(map(sum, told)) == sum(rows)
        assert all(0.25 * sum(rows) < sum(own) < 0.75 * sum(rows) for own in told)
    for adapter in ("unlearn", "learn", "edit"):
        one, both = (load_file(out / adapter / "adapter_model.safetensors") for out in (folder, tmp_path / "out"))
        assert one.keys() == both.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(both[name], tensor, **TOLERANCE)
    one, both = (Report.load(out / "report.json") for out in (folder, tmp_path / "out"))
    assert both.answers == one.answers
    for state, figures in one.stages.items():
        for name, figure in figures.items():
            assert both.stages[state][name].value == pytest.approx(figure.value, rel=1e-3, abs=1e-5)
            assert both.stages[state][name].n == figure.n
    assert {path.name for path in (tmp_path / "out").iterdir()} == test_editing.FILES


def test_two_processes_make_the_keyed_edit_of_one(tmp_path, model_folder):
    script = tmp_path / "edit.py"
    script.write_text(EDIT)
    rows = edit(model_folder, tmp_path / "alone", keyed=True)
    result = launch(script, model_folder, tmp_path / "out", tmp_path, "keyed")
    assert result.returncode == 0, result.stderr[-3000:]
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert sum(map(sum, told)) == sum(rows)
    assert all(0.25 * sum(rows) < sum(own) < 0.75 * sum(rows) for own in told)
    one, both = (load_file(tmp_path / out / "edit" / "adapter_model.safetensors") for out in ("alone", "out"))
    assert one.keys() == both.keys()
    for name, tensor in one.items():
        # In half precision: sums in another order may round to the next number.
        torch.testing.assert_close(both[name], tensor, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("fsdp", ["false", "true"])
def test_the_command_in_two_processes(fsdp, tmp_path, model_folder, fact_file):
    command = ["-m", "peft_surgical.cli", "edit", fact_file, "--model", model_folder, "--steps", 2]
    # What `accelerate launch --use_fsdp` sets.
    environment = {"ACCELERATE_USE_FSDP": fsdp}
    result = launch(*command, "--scorer", "random", "--retention-tokens", 48, "--out", tmp_path / "out", **environment)
    assert result.returncode == 0, result.stderr[-3000:]
    # Said once, by the process that writes.
    assert result.stdout.count("report.json, report.html") == 1
    # That is for a terminal.
    assert "Loading" not in result.stderr
    assert Report.load(tmp_path / "out" / "report.json").stages["edited"]["kl_per_token"].n > 0
    assert (tmp_path / "out" / "edit" / "adapter_model.safetensors").is_file()


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
