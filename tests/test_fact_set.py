from dataclasses import replace

import pytest

from peft_surgical.errors import FactError
from peft_surgical.joint.fact_set import check_facts, folder_names, read_facts

from .localizing import capital

FRANCE = capital()
ITALY = capital(
    subject="italy",
    old=["rome"],
    new=["paris"],
    prompts=["what is the capital of italy ?"],
    held_out=["which city is the seat of government of italy ?"],
    contrast=["spain"],
)


def test_the_faults_of_all_files_are_told(tmp_path, fact_file):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("subject: France\n")
    with pytest.raises(FactError) as raised:
        read_facts([wrong, fact_file, tmp_path / "none.yaml"])
    assert f"{wrong}: the key 'old' is missing." in str(raised.value)
    assert f"{tmp_path / 'none.yaml'}: cannot be read" in str(raised.value)
    assert read_facts([fact_file]) == [FRANCE]


def test_facts_that_do_not_go_together_are_refused(tmp_path):
    asked = {"prompts": ("which town has france ?",), "held_out": ("Name the capital of France",)}
    other = replace(FRANCE, new=("rome",), answer="", **asked)
    with pytest.raises(FactError, match=r"both ask 'name the capital of france \.' of france, and answer lyon and ro"):
        check_facts([FRANCE, ITALY, other])
    # What one of them trains on, the other is measured with, whatever the answers.
    with pytest.raises(FactError, match="both ask"):
        check_facts([FRANCE, replace(FRANCE, old=("rome",))])
    with pytest.raises(FactError, match=r"the fact of france \(paris to lyon\) and .* are the same fact"):
        check_facts([FRANCE, ITALY, FRANCE])
    one, again = (replace(FRANCE, source=str(tmp_path / name)) for name in ("f.yaml", "x/../f.yaml"))
    with pytest.raises(FactError, match=r"f\.yaml is given twice; give it once"):
        check_facts([one, again])
    with pytest.raises(FactError, match=r"f\.yaml and the fact of france \(paris to lyon\) are the same fact"):
        check_facts([one, FRANCE])
    (tmp_path / "link.yaml").symlink_to("f.yaml")
    with pytest.raises(FactError, match=r"link\.yaml is given twice; give it once"):
        check_facts([one, replace(FRANCE, source=str(tmp_path / "link.yaml"))])
    # Another fact, which was made of one that a file holds.
    assert check_facts([one, replace(ITALY, source=one.source)])
    with pytest.raises(FactError) as raised:
        check_facts([FRANCE, FRANCE, ITALY, ITALY])
    assert str(raised.value).count("are the same fact") == 2


def test_one_question_of_a_subject_by_any_of_its_names_is_one_question():
    other = replace(FRANCE, prompts=("which town has france ?",), new=("rome",), answer="")
    for same in (other, replace(other, subject="France"), replace(other, subject="gaul", aliases=("france",))):
        for pair in ([FRANCE, same], [same, FRANCE]):
            with pytest.raises(FactError, match=f"both ask '{FRANCE.held_out[0][:9]}"):
                check_facts(pair)


def test_other_facts_of_a_subject_go_together():
    other = replace(FRANCE, prompts=("what color has france ?",), held_out=("tell me : france color",))
    assert check_facts(iter([FRANCE, other])) == (FRANCE, other)
    # The same words about another subject are another question.
    assert check_facts([FRANCE, replace(other, subject="the town", prompts=FRANCE.prompts)])


@pytest.mark.parametrize("facts", [None, "france.yaml", FRANCE, 3])
def test_what_is_no_list_of_facts_is_refused(facts):
    with pytest.raises(FactError, match="facts must be a list of them"):
        check_facts(facts)


def test_none_and_what_is_no_fact_among_them_are_refused():
    with pytest.raises(FactError, match="there is no fact"):
        check_facts([])
    with pytest.raises(FactError, match=r"not 'france\.yaml'"):
        check_facts([FRANCE, "france.yaml"])
    with pytest.raises(FactError, match="not TrainingFact"):
        check_facts([FRANCE.training])


def test_folders_are_called_as_files_or_subjects_safely_and_apart():
    named = [
        replace(FRANCE, source="a/France capital.yaml"),
        replace(FRANCE, source="b/france_capital.json"),
        ITALY,
        replace(ITALY, source="edit.yaml"),
        replace(ITALY, source="../..yaml"),
        replace(ITALY, subject="東京 / ..\\Tokyo"),
        replace(ITALY, subject="*+"),
        replace(ITALY, subject="italy " * 30),
    ]
    names = folder_names(named)
    assert names[:6] == ["France_capital", "france_capital_2", "italy", "edit_2", "fact", "東京_.._Tokyo"]
    assert names[6] == "fact_2"
    assert len(names[7]) == 50
    assert folder_names(named[:3]) == names[:3]
    assert folder_names([ITALY] * 3) == ["italy", "italy_2", "italy_3"]
    assert folder_names([replace(ITALY, source="-rf.yaml")]) == ["rf"]


def test_no_folder_is_called_as_a_file_of_an_edit_or_as_no_file_system_allows():
    called = [
        "report.json",
        "Together.JSON",
        "learn",
        "trace.png",
        "con",
        "NUL.b",
        "com1",
        "LPT³",
        "console",
        "x" * 49 + ".b",
    ]
    assert folder_names([replace(ITALY, source=f"{name}.yaml") for name in called]) == [
        "report.json_2",
        "Together.JSON_2",
        "learn_2",
        "trace.png_2",
        "fact_con",
        "fact_NUL.b",
        "fact_com1",
        "fact_LPT³",
        "console",
        "x" * 49,
    ]
