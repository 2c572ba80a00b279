import re
import warnings

import pytest
from peft import PeftModel

from peft_surgical.adapters.lineage import Lineage
from peft_surgical.adapters.scale_files import read_tensors
from peft_surgical.merge import merge
from peft_surgical.stack import stack
from tests.command_line import run
from tests.staged import first_stage, second_stage
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("edit")
    first = first_stage()
    first.save(path / "unlearn")
    second_stage(first).save(path / "learn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stack([path / "unlearn", path / "learn"], path / "edit")
    return path


def test_what_a_stage_and_its_product_say_of_themselves(folder):
    first, second, both = (Lineage.of(folder / name) for name in ("unlearn", "learn", "edit"))
    assert (first.after, second.after, both.after) == ((), ("unlearn",), ())
    assert both.parts == (first.digest, second.digest)
    assert None not in both.parts
    assert Lineage.of(folder / "none") == Lineage()
    # Whoever else reads the file finds the scales.
    assert read_tensors(folder / "edit" / "adapter_model.safetensors")
    PeftModel.from_pretrained(tiny_model("llama"), folder / "edit")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["learn"], "learn was trained on top of unlearn; give that before it"),
        (["learn", "unlearn"], "learn was trained on top of unlearn; give that before it"),
        (["unlearn", "learn", "edit"], r"edit holds .*unlearn already, which then acts twice"),
        (["edit", "learn"], r"edit holds .*learn already, which then acts twice"),
        (["edit", "edit"], r"edit is given twice, and then acts twice"),
        (["unlearn", "learn"], None),
        (["unlearn"], None),
        (["edit"], None),
    ],
)
def test_half_an_edit_and_one_that_acts_twice_are_told_of(names, message, folder, tmp_path):
    given = [folder / name for name in names]
    for make in (
        lambda: stack(given, tmp_path / "stacked"),
        lambda: merge(tiny_model("llama"), given, tmp_path / "merged"),
    ):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            make()
        said = [str(one.message) for one in told if "on top of" in str(one.message) or "twice" in str(one.message)]
        assert bool(said) == (message is not None)
        assert message is None or re.search(message, said[0])


def test_what_a_product_of_a_product_holds_is_told_of_too(folder, tmp_path):
    stack([folder / "edit"], tmp_path / "again")
    with pytest.warns(UserWarning, match=r"again holds .*learn already"):
        stack([tmp_path / "again", folder / "learn"], tmp_path / "both")


def test_the_commands_tell_it_once(folder, model_folder):
    options = [option for name in ("edit", "learn") for option in ("--adapter", folder / name)]
    result = run("ask", "who ?", "--model", model_folder, *options)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("holds") == result.stderr.count("acts twice") == 1
