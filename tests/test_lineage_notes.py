"""What adapters in memory say of where they come from, and what files and folders may say."""

import pytest
import torch

from peft_surgical.adapters.adapter_files import WEIGHTS
from peft_surgical.adapters.algebra import power, product
from peft_surgical.adapters.edits import Edit, ModuleScale
from peft_surgical.adapters.lineage import AFTER, ALTERED, BELOW, MADE, PARTS, Lineage, check_once, faults_of_lineage
from peft_surgical.adapters.low_rank import LowRank
from peft_surgical.adapters.scale_files import digest_of, write_tensors
from peft_surgical.errors import AdapterError
from peft_surgical.tuner.coordinates import Coordinates


def one_scale(scales, name="the edit", **fields):
    coordinates = Coordinates("input", ((0, len(scales)),))
    return Edit({"m": ModuleScale(coordinates, torch.tensor(scales), 4)}, name=name, **fields)


def test_a_part_of_what_is_in_memory_holds_it_too():
    edit, added = one_scale([2.0, 3.0]), LowRank({"m": (torch.ones(1, 4), torch.ones(3, 1))})
    for whole in (edit, added):
        assert power(whole, 0.5).lineage.parts == power(whole, 0.5).lineage.altered == (whole.origin().digest,)
        [fault] = faults_of_lineage([whole, whole])
        assert str(fault) == f"{whole.name} is given twice, and then acts twice."


def test_what_acts_at_two_strengths_acts_at_its_own_too():
    edit, other = one_scale([2.0, 3.0]), one_scale([3.0, 5.0])
    digest = edit.origin().digest
    assert product([power(edit, 0.5), other]).lineage.altered == (digest,)
    assert product([power(edit, 0.5), edit]).lineage.altered == ()


def test_an_edit_whose_square_is_itself_acts_as_it_is_when_squared():
    edit = one_scale([0.0, 1.0])
    assert power(edit, 2) == edit
    on = Lineage(None, ("edit",), (), (edit.origin().digest,))
    assert on.lacks([power(edit, 2).origin()]) == []


def test_of_folders_that_cannot_be_read_nothing_is_told(tmp_path):
    assert faults_of_lineage([tmp_path / "a", tmp_path / "b"], [Lineage()]) == []


@pytest.mark.parametrize("note", ["3", "null", "{", '{"a": 1}'])
def test_notes_that_are_no_lists_say_nothing(note, tmp_path):
    tensors = {"a": torch.ones(2)}
    write_tensors(tmp_path / WEIGHTS, tensors, dict.fromkeys((AFTER, BELOW, PARTS, MADE, ALTERED), note))
    assert Lineage.of(tmp_path) == Lineage(digest_of(tensors))


def test_one_folder_by_two_paths_is_given_twice(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").symlink_to(tmp_path / "one")
    check_once([tmp_path / "one", tmp_path])
    with pytest.raises(AdapterError, match="two is given twice; it would act twice"):
        check_once([tmp_path / "one", tmp_path / "two"])
