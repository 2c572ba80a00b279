import re
import shutil
import warnings
from dataclasses import replace

import pytest
from peft import PeftModel

from peft_surgical.adapters.adapter_files import WEIGHTS
from peft_surgical.adapters.algebra import difference, inverse, power, product
from peft_surgical.adapters.edits import Edit
from peft_surgical.adapters.export import from_ia3, to_ia3
from peft_surgical.adapters.lineage import Fault, Lineage, after, called, faults_of_lineage
from peft_surgical.adapters.scale_files import read_tensors, write_tensors
from peft_surgical.merging import merge
from peft_surgical.stacking import stack
from tests.adapters import perturb, saved, tiny_peft
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


def test_a_folder_is_called_by_its_name_and_that_of_the_one_it_is_in(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "somebody"))
    for folder, name in (
        ("/out/france/edit", "france/edit"),
        ("/out/france/../japan/edit/", "japan/edit"),
        ("/edit", "edit"),
        ("~/france/edit", "france/edit"),
        # Whose home it is, is nobody else's business.
        ("~/edit", "edit"),
        (tmp_path / "somebody" / "edit", "edit"),
    ):
        assert called(folder) == name
    monkeypatch.chdir(tmp_path)
    assert called("edit") == f"{tmp_path.name}/edit"


def test_what_is_in_the_weights_already_is_no_fault(folder):
    """By its digest, and by the number of them where one is not known; a stage that lacks another is one still."""
    first = Lineage.of(folder / "unlearn")
    learn = f"the adapter {folder / 'learn'}"
    lacks = Fault(f"{learn} was trained on top of unlearn; give that before it", "unless the model has it already")
    assert faults_of_lineage([folder / "learn"]) == [lacks]
    assert str(lacks).endswith("give that before it, unless the model has it already.")
    assert faults_of_lineage([folder / "learn"], [first]) == []
    assert faults_of_lineage([folder / "learn"], [Lineage("another")]) == [lacks]
    two = replace(Edit.load(folder / "learn"), lineage=Lineage("d", ("france/edit", "unlearn")))
    assert faults_of_lineage([folder / "unlearn", two], [Lineage()]) == []
    assert len(faults_of_lineage([folder / "unlearn", two])) == 1
    twice = [folder / "edit", folder / "edit"]
    assert [fault.unless for fault in faults_of_lineage(twice)] == [""]


def test_stacking_names_the_line_that_asked_for_it(folder, tmp_path):
    with pytest.warns(UserWarning, match="was trained on top of") as caught:
        stack([folder / "learn"], tmp_path / "out")
    assert [one.filename for one in caught if "on top of" in str(one.message)] == [__file__]


def told(make):
    """What is said of half an edit, or of one that acts twice."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
    return [str(one.message) for one in caught if re.search("on top of|twice", str(one.message))]


def test_what_is_made_of_a_stage_needs_what_is_below_it(folder, tmp_path):
    made = {
        "plain": lambda out: to_ia3(folder / "learn", out),
        "again": lambda out: Edit.load(folder / "learn").save(out),
        "half": lambda out: power(folder / "learn", 0.5).save(out),
        "product": lambda out: product([folder / "learn"]).save(out),
    }
    for name, make in made.items():
        make(tmp_path / name)
        assert Lineage.of(tmp_path / name).after == ("unlearn",)
        for given in (tmp_path / name, Edit.load(tmp_path / name)):
            said = told(
                lambda given=given, name=name: merge(tiny_model("llama"), given, tmp_path / f"m{name}", overwrite=True)
            )
            assert len(said) == 1
            assert re.search(f"{name} was trained on top of unlearn; give that before it", said[0])
            assert product([folder / "unlearn", given]).lineage.after == ()
    # What is taken back needs nothing below it, and a product of both has it.
    assert inverse(folder / "learn").lineage == power(folder / "learn", 0).lineage == Lineage()
    assert product([folder / "unlearn", folder / "learn"]).lineage.after == ()


def test_what_is_made_of_an_adapter_holds_it(folder, tmp_path):
    to_ia3(folder / "learn", tmp_path / "plain")
    from_ia3(folder / "edit", tmp_path / "surgical")
    from_ia3(folder / "edit", tmp_path / "changed", only_changed=True)
    power(folder / "edit", 0.5).save(tmp_path / "half")
    for first, second, message in (
        (folder / "unlearn", tmp_path / "surgical", "surgical holds .*unlearn already"),
        (folder / "edit", tmp_path / "surgical", "surgical holds .*edit already"),
        (folder / "edit", tmp_path / "changed", "changed holds .*edit already"),
        (folder / "edit", tmp_path / "half", "half holds .*edit already"),
        (Edit.load(folder / "edit"), Edit.load(tmp_path / "surgical"), "surgical holds .*edit already"),
        (product([folder / "unlearn", folder / "learn"]), folder / "unlearn", "holds .*unlearn already"),
    ):
        said = told(lambda first=first, second=second: stack([first, second], tmp_path / "out", overwrite=True))
        assert len(said) == 1, said
        assert re.search(message, said[0])
    assert "plain is given twice" in told(lambda: stack([tmp_path / "plain"] * 2, tmp_path / "out", overwrite=True))[0]


def test_what_leads_from_one_edit_to_another_does_not_hold_the_first(folder, tmp_path):
    difference(folder / "edit", folder / "unlearn").save(tmp_path / "rest")
    assert not told(lambda: stack([folder / "unlearn", tmp_path / "rest"], tmp_path / "out"))
    assert told(lambda: stack([tmp_path / "rest", folder / "edit"], tmp_path / "out", overwrite=True))


def test_an_edit_that_is_written_as_it_was_read_is_the_same_file(folder, tmp_path):
    Edit.load(folder / "learn").save(tmp_path / "again")
    to_ia3(folder / "edit", tmp_path / "plain")
    for one, other in ((folder / "learn", tmp_path / "again"), (folder / "edit", tmp_path / "plain")):
        assert (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()


def test_another_adapter_does_not_stand_for_the_one_below(folder, tmp_path):
    first, second, both = (Lineage.of(folder / name) for name in ("unlearn", "learn", "edit"))
    assert second.below == (first.digest,)
    assert both.below == ()
    other = saved(tiny_peft(), tmp_path / "other")
    to_ia3(folder / "unlearn", tmp_path / "plain")
    power(folder / "unlearn", 0.5).save(tmp_path / "half")

    def said(*given):
        return told(lambda: stack(given, tmp_path / "out", overwrite=True))

    for given in ([other, folder / "learn"], [Edit.load(other), Edit.load(folder / "learn")]):
        assert ["learn was trained on top of unlearn; give that" in text for text in said(*given)] == [True]
    # The product of the two still lacks it, whatever stands before.
    halves = product([other, folder / "learn"])
    assert (halves.lineage.after, halves.lineage.below) == (("unlearn",), (first.digest,))
    assert len(said(power(other, -1), halves)) == 1
    for below in (folder / "unlearn", tmp_path / "plain"):
        assert not said(below, other, folder / "learn")
        assert not said(below, halves)
    # Nor does it at another strength.
    for above in (folder / "learn", halves):
        assert ["trained on top of unlearn; give" in text for text in said(tmp_path / "half", above)] == [True]


def on_top_of(one, *folders):
    """An adapter as if it had been trained on top of others."""
    pairs = [pair for folder in folders for pair in Lineage.of(folder).acting(folder.name)]
    names, digests = zip(*dict.fromkeys(pairs), strict=True)
    return replace(Edit.load(one), lineage=Lineage(None, names, (), digests))


@pytest.fixture
def stacked(folder, tmp_path):
    """Two edits of two stages each, one of both, and one on top of that."""
    shutil.copytree(folder, tmp_path / "a")
    for number, name in enumerate(("unlearn", "learn", "top", "last")):
        model = tiny_peft()
        perturb(model, seed=number)
        saved(model, tmp_path / "b" / name)
    stack([tmp_path / "b" / "unlearn", tmp_path / "b" / "learn"], tmp_path / "b" / "edit")
    stack([tmp_path / "a" / "edit", tmp_path / "b" / "edit"], tmp_path / "ab")
    on_top_of(tmp_path / "b" / "top", tmp_path / "ab").save(tmp_path / "c")
    return tmp_path


A, A_STAGES = ["a/edit"], ["a/unlearn", "a/learn"]
B, B_STAGES = ["b/edit"], ["b/unlearn", "b/learn"]


@pytest.mark.parametrize("given", [["ab"], *([*a, *b] for a in (A, A_STAGES) for b in (B, B_STAGES))])
def test_what_stands_on_a_product_of_products_is_satisfied_by_any_way_of_giving_it(given, stacked):
    folders = [stacked / name for name in [*given, "c"]]
    assert not told(lambda: stack(folders, stacked / "out"))
    assert not told(lambda: stack([product(folders[:-1]), folders[-1]], stacked / "out", overwrite=True))
    assert told(lambda: stack(folders[1:], stacked / "out", overwrite=True))
    # What is made of all is another way to give them, and lacks none.
    stack(folders, stacked / "abc")
    assert Lineage.of(stacked / "abc").after == ()
    on_top_of(stacked / "b" / "last", stacked / "abc").save(stacked / "d")
    assert not told(lambda: stack([*folders, stacked / "d"], stacked / "out", overwrite=True))


def test_a_file_that_does_not_say_which_of_its_parts_are_products_is_read(stacked):
    written = Lineage.of(stacked / "ab")
    assert {*written.made} == {Lineage.of(stacked / name / "edit").digest for name in "ab"}
    notes = {key: value for key, value in written.notes(written.digest).items() if not key.endswith("made")}
    write_tensors(stacked / "ab" / WEIGHTS, read_tensors(stacked / "ab" / WEIGHTS), notes)
    assert Lineage.of(stacked / "ab") == replace(written, made=())
    assert not told(lambda: stack([stacked / "ab", stacked / "c"], stacked / "out"))
    assert told(lambda: stack([stacked / "ab", stacked / "a" / "learn"], stacked / "out", overwrite=True))


@pytest.mark.parametrize("part", [0.5, 2.0])
def test_an_adapter_at_another_strength_is_another_one(part, stacked):
    power(stacked / "ab", part).save(stacked / "half")
    stack([stacked / "half"], stacked / "plain")
    assert Lineage.of(stacked / "half").acting("half") == (("half", Lineage.of(stacked / "half").digest),)
    on_top_of(stacked / "b" / "last", stacked / "half").save(stacked / "d")
    for below, one, lacking in (
        (["half"], "d", False),
        (["plain"], "d", False),
        (["ab"], "d", True),
        (["a/edit", "b/edit"], "d", True),
        (["half"], "c", True),
        (["plain"], "c", True),
    ):
        for whole in ([stacked / name for name in below], [product([stacked / name for name in below])]):
            said = told(lambda whole=whole, one=one: stack([*whole, stacked / one], stacked / "out", overwrite=True))
            assert ["on top of" in text for text in said] == [True] * lacking, (below, one)
    # It still acts beside the whole one.
    assert told(lambda: stack([stacked / "half", stacked / "a" / "learn"], stacked / "out", overwrite=True))
    power(stacked / "ab", 1).save(stacked / "same")
    assert not told(lambda: stack([stacked / "same", stacked / "c"], stacked / "out", overwrite=True))


def test_a_file_that_says_no_digests_of_what_is_below_it_needs_as_many_others(folder, tmp_path):
    other, old = saved(tiny_peft(), tmp_path / "other"), tmp_path / "old"
    shutil.copytree(folder / "learn", old)
    for notes, said in (
        (after(["unlearn"]), False),
        (after(["a", "b"], [None, "x"]), True),
        (after(["a", "b"], ["x"]), True),
        ({}, False),
    ):
        write_tensors(old / WEIGHTS, read_tensors(folder / "learn" / WEIGHTS), notes)
        assert Lineage.of(old).below == ()
        assert bool(told(lambda: stack([other, old], tmp_path / "out", overwrite=True))) is said


def test_one_that_says_nothing_of_itself_is_known_by_what_it_holds(folder, tmp_path):
    """As stock PEFT writes one, and as one in memory."""
    stock = PeftModel.from_pretrained(tiny_model("llama"), folder / "edit")
    stock.save_pretrained(tmp_path / "stock")
    shutil.copytree(tmp_path / "stock", tmp_path / "copy")
    edit, other = (replace(Edit.load(folder / name), lineage=Lineage()) for name in ("unlearn", "learn"))
    for first, second, message in (
        (tmp_path / "stock", tmp_path / "stock", "stock is given twice"),
        (tmp_path / "stock", tmp_path / "copy", "copy is given twice"),
        (edit, edit, "is given twice"),
        (edit, replace(edit, name="the edit"), "^the edit is given twice"),
        (edit, folder / "unlearn", "is given twice"),
        (edit, product([edit, other]), "holds .* already"),
        (edit, other, None),
    ):
        said = told(lambda first=first, second=second: stack([first, second], tmp_path / "out", overwrite=True))
        assert len(said) == (message is not None), said
        assert message is None or re.search(message, said[0])
    stack([tmp_path / "stock"], tmp_path / "again", overwrite=True)
    assert told(lambda: stack([tmp_path / "stock", tmp_path / "again"], tmp_path / "out", overwrite=True))


def test_the_commands_tell_it_once(folder, model_folder, tmp_path):
    options = [option for name in ("edit", "learn") for option in ("--adapter", folder / name)]
    result = run("ask", "who ?", "--model", model_folder, *options)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("holds") == result.stderr.count("acts twice") == 1
    for given in (["learn"], ["unlearn", "edit"]):
        names = [folder / name for name in given]
        result = run("merge", *names, "--model", model_folder, "--out", tmp_path / given[0])
        assert result.exit_code == 0, result.output
        assert result.stderr.count("on top of") + result.stderr.count("twice") == 1


def test_of_a_product_with_one_that_does_not_know_all_below_it_no_digest_is_noted():
    known, unknown = Lineage("a", ("x",), below=("digest of x",)), Lineage("b", ("y", "z", "w"))
    found = Lineage.of_product([known, unknown])
    assert (found.after, found.below) == (("x", "y", "z", "w"), ())


def test_what_has_only_the_changed_scales_is_another_adapter_made_of_the_first(tmp_path):
    to_ia3(saved(tiny_peft(), tmp_path / "a"), tmp_path / "plain")
    whole, changed = Lineage.of(tmp_path / "plain"), from_ia3(tmp_path / "plain", only_changed=True).origin()
    assert changed.digest not in (None, whole.digest)
    assert whole.digest in changed.parts


def test_a_part_of_what_is_in_the_weights_is_there_already(folder):
    both = Lineage.of(folder / "edit")
    [fault] = faults_of_lineage([folder / "unlearn"], [both])
    assert str(fault) == f"the adapter {folder / 'unlearn'} is in the model's weights already, and then acts twice."


@pytest.mark.parametrize("name", ["unlearn", "learn"])
def test_what_holds_any_part_that_is_in_the_weights_acts_twice_there(name, folder):
    [fault] = faults_of_lineage([folder / "edit"], [Lineage.of(folder / name)])
    told = f"the adapter {folder / 'edit'} holds what is in the model's weights already, which then acts twice"
    assert str(fault) == f"{told}."


def test_what_leads_from_one_product_to_another_holds_nothing_of_the_first(stacked):
    rest, taken = difference(stacked / "ab", stacked / "a" / "edit"), Lineage.of(stacked / "a" / "edit").held
    assert len(taken) == 3
    assert not {*taken} & {*rest.lineage.parts}
    assert {Lineage.of(stacked / "b" / name).digest for name in ("unlearn", "learn")} < {*rest.lineage.parts}


def test_in_a_product_only_what_stands_before_an_adapter_is_below_it():
    first, second = Lineage("a"), Lineage("b", after=("first",), below=("a",))
    assert Lineage.of_product([first, second]).after == ()
    turned = Lineage.of_product([second, first])
    assert (turned.after, turned.below) == (("first",), ("a",))
