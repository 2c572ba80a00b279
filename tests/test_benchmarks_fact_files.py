import pytest
from click.testing import CliRunner

import peft_surgical as ps
from benchmarks import facts, keys, one_sentence, unseen
from benchmarks.fact_files import read_facts

from .localizing import capital


def test_facts_are_read_in_order(tmp_path, fact_text):
    paths = [tmp_path / "b.yaml", tmp_path / "a.yaml"]
    for path in paths:
        path.write_text(fact_text)
    assert list(read_facts(paths).items()) == [(path, capital()) for path in paths]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("main", "folder"),
    [(facts.main, "--out"), (keys.main, None), (one_sentence.main, "--out"), (unseen.main, "--edits")],
)
def test_two_files_of_one_name_are_refused_at_once(tmp_path, fact_text, main, folder):
    paths = [tmp_path / name / "fact.yaml" for name in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.write_text(fact_text)
    with pytest.raises(ps.SurgicalError, match="two facts have files of one name"):
        read_facts(paths)
    options = [] if folder is None else [folder, str(tmp_path)]
    result = CliRunner().invoke(main, [*map(str, paths), *options])
    assert result.exit_code == 1
    assert "two facts have files of one name, by which results are told apart; rename one." in result.output
