import pytest

from peft_surgical.edit_folder import claimed_for_edit, remove_edit
from peft_surgical.errors import OutputError


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "adapter_config.json").write_text("{}")
    (tmp_path / "learn").symlink_to(tmp_path / "elsewhere")
    remove_edit(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    assert (tmp_path / "elsewhere" / "adapter_config.json").exists()


@pytest.mark.parametrize("name", ["unlearn", "learn", "edit"])
def test_a_folder_of_somebody_s_is_neither_claimed_nor_removed(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("mine")
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(OutputError, match=f"{name} holds no adapter"), claimed_for_edit(tmp_path, True):
        pytest.fail("the block ran")
    with pytest.raises(OutputError, match=f"{name} holds no adapter"):
        remove_edit(tmp_path)
    assert (tmp_path / name / "thesis.tex").read_text() == "mine"
    assert (tmp_path / "report.json").exists()
