"""Two processes on one machine, gloo: an edit that they share is the edit that one makes."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

import peft_surgical as ps
from peft_surgical.errors import ModelError
from peft_surgical.models import load_model
from peft_surgical.report import Report
from peft_surgical.running import workers
from peft_surgical.running.sharing import shard, shared_work
from peft_surgical.running.suffix import SuffixRunner
from peft_surgical.staging import retain

from . import test_editing
from .launching import launch, launch_forked
from .threads import threads

# Gradients of one step are summed in another order, in float32.
TOLERANCE = {"rtol": 1e-3, "atol": 1e-5}

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


@pytest.fixture(scope="module")
def alone(model_folder, tmp_path_factory):
    """The folder of an edit by this process, and the rows of its passes."""
    out = tmp_path_factory.mktemp("alone") / "out"
    return out, edit(model_folder, out)


@pytest.mark.parametrize("how", ["copies", "sharded"])
def test_two_processes_make_the_edit_of_one(how, tmp_path, model_folder, alone):
    script = tmp_path / "edit.py"
    script.write_text(EDIT)
    result = launch_forked(script, model_folder, tmp_path / "out", tmp_path, how)
    assert result.returncodes == [0, 0], result.stderr[-3000:]
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
    result = launch_forked(script, model_folder, tmp_path / "out", tmp_path, "keyed")
    assert result.returncodes == [0, 0], result.stderr[-3000:]
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
    command += ["--device", "cpu"]
    # What `accelerate launch --use_fsdp` sets.
    environment = {"ACCELERATE_USE_FSDP": fsdp}
    command += ["--scorer", "random", "--retention-tokens", 48, "--out", tmp_path / "out"]
    # Whole from the launcher on once: it starts both alike.
    result = (launch if fsdp == "false" else launch_forked)(*command, **environment)
    assert not any(result.returncodes), result.stderr[-3000:]
    # Said once, by the process that writes.
    assert result.stdout.count("report.json, report.html") == 1
    # That is for a terminal.
    assert "Loading" not in result.stderr
    assert Report.load(tmp_path / "out" / "report.json").stages["edited"]["kl_per_token"].n > 0
    assert (tmp_path / "out" / "edit" / "adapter_model.safetensors").is_file()
