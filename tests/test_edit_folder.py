import os

import pytest

from peft_surgical.edit_folder import EVALUATION, WRITTEN, claimed_for_edit, replacing, tell_on_card
from peft_surgical.errors import OutputError

from .command_line import written
from .localizing import localized, planted, word_tokenizer
from .outputs import contents
from .reports import report


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "adapter_config.json").write_text("{}")
    (tmp_path / "learn").symlink_to(tmp_path / "elsewhere")
    with replacing(tmp_path, True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    assert (tmp_path / "elsewhere" / "adapter_config.json").exists()


@pytest.mark.parametrize("name", ["unlearn", "learn", "edit"])
def test_a_folder_of_somebody_s_is_neither_claimed_nor_removed(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("mine")
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(OutputError, match=f"{name} holds no adapter"), claimed_for_edit(tmp_path, True):
        pytest.fail("the block ran")
    with pytest.raises(OutputError, match=f"{name} holds no adapter"), replacing(tmp_path, True):
        pass
    assert (tmp_path / name / "thesis.tex").read_text() == "mine"
    assert (tmp_path / "report.json").exists()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        *((name, "my notes", f"{name} is a file and no adapter") for name in ("unlearn", "learn", "edit")),
        ("report.json", '{"mine": 1}', "report.json is no report of an edit"),
        ("report.json", '{"fact": 1, "stages": 2}', "report.json is no report of an edit"),
        ("report.json", "not JSON", "report.json is no report of an edit"),
        ("localization.json", '{"format": 1, "scores": {}}', "localization.json is no localization of an edit"),
        ("localization.json", "[1, 2]", "localization.json is no localization of an edit"),
    ],
)
def test_a_file_of_somebody_s_is_neither_claimed_nor_removed(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    (tmp_path / "report.html").write_text("beside it")
    with pytest.raises(OutputError, match=words), claimed_for_edit(tmp_path, True):
        pytest.fail("the block ran")
    with pytest.raises(OutputError, match=words), replacing(tmp_path, True):
        pass
    assert (tmp_path / name).read_text() == text
    assert (tmp_path / "report.html").exists()


def test_the_adapter_of_several_edits_is_neither_replaced_nor_removed_by_one(tmp_path):
    (tmp_path / "edit").mkdir()
    (tmp_path / "edit" / "adapter_config.json").write_text("{}")
    (tmp_path / "together.json").write_text('{"facts": [], "pooled": {}}')
    before = contents(tmp_path)
    for names in (WRITTEN, ("edit",)):
        with pytest.raises(OutputError, match="is the folder of several edits"), replacing(tmp_path, True, names):
            pass
    with pytest.raises(OutputError, match="several edits; name another"), claimed_for_edit(tmp_path, True):
        pytest.fail("the block ran")
    # What was evaluated stands beside it, and both are replaced together.
    with replacing(tmp_path, True, EVALUATION) as folder:
        (folder / "report.html").write_text("new")
    assert contents(tmp_path) == before | {"report.html": b"new"}
    with replacing(tmp_path, True, ("edit", "together.json")):
        pass
    assert written(tmp_path) == ["report.html"]
    # Somebody's file by that name is in nobody's way.
    (tmp_path / "together.json").write_text('{"mine": 1}')
    with replacing(tmp_path, True):
        pass
    assert written(tmp_path) == ["together.json"]


def test_what_an_edit_wrote_is_removed(tmp_path):
    report("base", "edited").save(tmp_path / "report.json")
    localized(planted(), word_tokenizer(), "random").save(tmp_path / "localization.json")
    (tmp_path / "mine.txt").write_text("mine")
    with replacing(tmp_path, True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("link", [False, True])
def test_an_empty_folder_and_a_link_to_nothing_are_in_nobodys_way(tmp_path, link):
    place = tmp_path / "learn"
    place.symlink_to(tmp_path / "gone") if link else place.mkdir()
    with replacing(tmp_path, True) as folder:
        fill(folder)
    assert contents(place) == {"adapter_config.json": b"new"}
    assert not place.is_symlink()


def test_no_folder_is_replaced_by_a_page(tmp_path):
    (tmp_path / "report.html").mkdir()
    (tmp_path / "report.html" / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"report\.html is no report of an edit"), replacing(tmp_path, True):
        pass
    assert (tmp_path / "report.html" / "thesis.tex").read_text() == "mine"
    assert written(tmp_path) == ["report.html"]


# Replacing


@pytest.fixture
def earlier(tmp_path):
    """A folder with an earlier edit and a file of somebody's, and what is in them."""
    out = tmp_path / "out"
    (out / "learn").mkdir(parents=True)
    (out / "learn" / "adapter_config.json").write_text("earlier")
    report("base", "edited").save(out / "report.json")
    for name in ("report.html", "mine.txt"):
        (out / name).write_text("earlier")
    return out


FILLED = ("learn/adapter_config.json", "localization.png", "report.json")
REPLACED = {"mine.txt": b"earlier", **dict.fromkeys(FILLED, b"new")}


def fill(folder):
    (folder / "learn").mkdir()
    for name in FILLED:
        (folder / name).write_text("new")


def test_an_earlier_edit_stays_until_all_of_the_new_one_is_written(earlier):
    before = contents(earlier)
    with replacing(earlier, True) as folder:
        fill(folder)
        assert contents(earlier).items() >= before.items()
    assert contents(earlier) == REPLACED


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_failure_leaves(overwrite, earlier):
    before = contents(earlier)

    def fail():
        with replacing(earlier, overwrite, ("learn", "localization.png")) as folder:
            (folder / "localization.png").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert contents(earlier) == (before if overwrite else before | {"localization.png": b"new"})


def test_an_interrupt_while_pieces_are_moved_leaves_the_earlier_edit_whole(earlier, monkeypatch):
    before, rename, left = contents(earlier), os.rename, [0]

    def interrupted(*paths):
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt
        rename(*paths)

    def replace():
        with replacing(earlier, True) as folder:
            fill(folder)

    monkeypatch.setattr(os, "rename", interrupted)
    # Three pieces go and three come.
    for moved in range(6):
        left[0] = moved
        with pytest.raises(KeyboardInterrupt):
            replace()
        assert contents(earlier) == before
        assert not [*earlier.glob(".*")]
    replace()
    assert contents(earlier) == REPLACED


@pytest.mark.parametrize("again", [KeyboardInterrupt, PermissionError(13, "Permission denied")])
def test_what_cannot_be_put_back_stays_until_there_is_another_result(again, earlier, monkeypatch):
    before, rename, moved = contents(earlier), os.rename, []

    def failing(*paths):
        moved.append(paths)
        if len(moved) == 3:
            raise KeyboardInterrupt
        if len(moved) > 3:
            raise again
        rename(*paths)

    def replace():
        with claimed_for_edit(earlier, True) as out, replacing(out, True) as folder:
            fill(folder)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(KeyboardInterrupt if again is KeyboardInterrupt else OutputError) as told:
        replace()
    monkeypatch.setattr(os, "rename", rename)
    [kept] = earlier.glob(".replaced.*")
    assert again is KeyboardInterrupt or f"Permission denied; what it held is in {kept}" in str(told.value)
    assert before.items() <= {**contents(earlier), **contents(kept)}.items()
    # A run that fails takes nothing of it, and one that does not needs it no more.
    with pytest.raises(ZeroDivisionError), claimed_for_edit(earlier, True) as out, replacing(out, True):
        raise ZeroDivisionError
    assert before.items() <= {**contents(earlier), **contents(kept)}.items()
    replace()
    assert contents(earlier) == REPLACED


def test_a_report_that_was_made_private_is_written_anew_as_private(earlier):
    (earlier / "report.json").chmod(0o600)
    with claimed_for_edit(earlier, True) as out:
        with replacing(out, True) as folder:
            fill(folder)
        for name in EVALUATION:
            (out / name).unlink(missing_ok=True)
            (out / name).write_text("new")
    assert (earlier / "report.json").stat().st_mode & 0o777 == 0o600
    assert (earlier / "report.html").stat().st_mode & 0o777 == (earlier / "mine.txt").stat().st_mode & 0o777


def test_a_report_that_was_made_private_stays_so(earlier):
    (earlier / "report.json").chmod(0o600)
    with replacing(earlier, True, EVALUATION) as folder:
        for name in EVALUATION:
            (folder / name).write_text("new")
    assert (earlier / "report.json").stat().st_mode & 0o777 == 0o600
    assert (earlier / "report.html").stat().st_mode & 0o777 == (earlier / "mine.txt").stat().st_mode & 0o777
    assert contents(earlier)["learn/adapter_config.json"] == b"earlier"


def test_a_link_in_the_place_of_a_report_is_replaced_and_not_what_it_leads_to(earlier):
    (earlier / "report.html").rename(earlier / "kept.html")
    (earlier / "report.html").symlink_to("kept.html")
    (earlier / "kept.html").chmod(0o600)
    with replacing(earlier, True, EVALUATION) as folder:
        (folder / "report.html").write_text("new")
    assert not (earlier / "report.html").is_symlink()
    assert (earlier / "kept.html").read_text() == "earlier"
    # Nor has it the permissions of that.
    assert (earlier / "report.html").stat().st_mode == (earlier / "mine.txt").stat().st_mode


def test_what_somebody_wrote_on_the_card_meanwhile_stays_and_a_card_that_is_gone_is_told_of(earlier):
    made = report()
    with pytest.raises(OutputError, match=r"cannot write .*edit.README\.md: No such file"):
        tell_on_card(made, earlier)
    (earlier / "edit").mkdir()
    card = earlier / "edit" / "README.md"
    card.write_text("---\nlicense: mit\n---\n\n# My edit\n\nMine.\n")
    card.chmod(0o600)
    tell_on_card(made, earlier)
    text = card.read_text()
    assert text.startswith("---\nlicense: mit\n---\n\n# My edit\n\n## What was measured\n\n**France")
    assert text.endswith("\n\n## The adapter\n\nMine.\n")
    assert "unlearned" not in text
    assert card.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in card.parent.iterdir()] == ["README.md"]
    # The folder says what may be replaced in it, and a card that nobody may write is so again.
    card.chmod(0o444)
    tell_on_card(made, earlier)
    assert (card.read_text().count("## What was measured"), card.stat().st_mode & 0o777) == (2, 0o444)
    card.unlink(), card.mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*edit.README\.md: Is a directory"):
        tell_on_card(made, earlier)
