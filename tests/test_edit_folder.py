import pytest

from peft_surgical.edit_folder import claimed_for_edit, remove_edit
from peft_surgical.errors import OutputError

from .localizing import localized, planted, word_tokenizer
from .reports import report


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


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        *((name, "my notes", f"{name} is a file and no adapter") for name in ("unlearn", "learn", "edit")),
        ("report.json", '{"mine": 1}', "report.json is no report of an edit"),
        ("report.json", "not JSON", "report.json is no report of an edit"),
        ("localization.json", "[1, 2]", "localization.json is no localization of an edit"),
    ],
)
def test_a_file_of_somebody_s_is_neither_claimed_nor_removed(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    (tmp_path / "report.html").write_text("beside it")
    with pytest.raises(OutputError, match=words), claimed_for_edit(tmp_path, True):
        pytest.fail("the block ran")
    with pytest.raises(OutputError, match=words):
        remove_edit(tmp_path)
    assert (tmp_path / name).read_text() == text
    assert (tmp_path / "report.html").exists()


def test_what_an_edit_wrote_is_removed(tmp_path):
    report("base", "edited").save(tmp_path / "report.json")
    localized(planted(), word_tokenizer(), "random").save(tmp_path / "localization.json")
    (tmp_path / "mine.txt").write_text("mine")
    remove_edit(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
