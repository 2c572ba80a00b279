"""What a merged checkpoint says of the edits in its weights."""

import json
import os
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from huggingface_hub import ModelCard, constants
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import peft_surgical as ps
from peft_surgical.adapters.bases import note_revision
from peft_surgical.adapters.edits import Edit
from peft_surgical.adapters.lineage import Lineage
from peft_surgical.adapters.merged_edits import edit_names, edits_in, lineages_of, read_edits

from .adapters import OTHER_COMPONENTS, saved, tiny_peft
from .localizing import capital, word_tokenizer
from .test_merging import hub
from .tiny import tiny_model

WEIGHTS = "model.safetensors"


def adapters(folder):
    return [saved(tiny_peft(), folder / "unlearn"), saved(tiny_peft("llama", OTHER_COMPONENTS), folder / "learn")]


def written(folder):
    return json.loads((folder / "peft_surgical.json").read_text())


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "home" / "somebody" / "base"
    tiny_model("llama").save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def test_what_was_merged_stands_beside_the_weights(tmp_path, base, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "somebody"))
    given = adapters(tmp_path / "home" / "somebody")
    ps.merge(ps.load_model(base)[0], given, tmp_path / "merged", dtype="float16")
    found = written(tmp_path / "merged")
    [edit] = found.pop("edits")
    assert found == {"format": 1}
    digests = [Lineage.of(path).digest for path in given]
    assert edit["adapters"] == [
        {"name": name, "sha256": digest} for name, digest in zip(["unlearn", "learn"], digests, strict=True)
    ]
    assert edit["base"] == {"name": "base", "hub_id": None, "revision": None}
    assert (edit["dtype"], edit["peft_surgical"]) == ("float16", ps.__version__)
    # All weights that the adapters touch and that are not 0, counted by hand.
    old = tiny_model("llama").state_dict()
    new = load_file(tmp_path / "merged" / WEIGHTS)
    moved = sum(int((old[key].half() != new[key]).sum()) for key in new)
    assert edit["weights"] == pytest.approx(moved / (1 - edit["rounded_away"]), abs=1)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "This is `base` with this edit folded into its weights" in card
    assert f"`unlearn` (SHA-256 `{digests[0][:12]}…`) and `learn`" in card
    assert "use `base` itself" in card
    # No path of the machine.
    for name in ("README.md", "peft_surgical.json"):
        text = (tmp_path / "merged" / name).read_text()
        assert str(tmp_path) not in text
        assert "somebody" not in text
        assert os.getcwd() not in text


def test_two_edits_of_one_name_are_told_apart(tmp_path, base):
    first, second = adapters(tmp_path / "made")
    for given, name in ((first, "france"), (second, "japan")):
        (tmp_path / "out" / name).mkdir(parents=True)
        shutil.move(given, tmp_path / "out" / name / "edit")
    given = [tmp_path / "out" / name / "edit" for name in ("france", "japan")]
    for adapters_given in (given, [Edit.load(path) for path in given]):
        ps.merge(ps.load_model(base)[0], adapters_given, tmp_path / "merged", overwrite=True)
        [edit] = written(tmp_path / "merged")["edits"]
        assert [each["name"] for each in edit["adapters"]] == ["france/edit", "japan/edit"]
        assert edit_names([edit]) == ["france/edit and japan/edit"]
        assert "1. `france/edit` (SHA-256" in (tmp_path / "merged" / "README.md").read_text()


def test_what_an_adapter_was_trained_after_is_told_whole(tmp_path, base):
    edit = replace(Edit.load(adapters(tmp_path / "japan")[0]), lineage=Lineage("ab", ("france/edit",), (), ("cd",)))
    with pytest.warns(UserWarning, match="was trained on top of france/edit"):
        ps.merge(ps.load_model(base)[0], edit, tmp_path / "merged")
    [told] = written(tmp_path / "merged")["edits"]
    assert (told["adapters"][0]["after"], told["adapters"][0]["below"]) == (["france/edit"], ["cd"])


def test_how_much_was_rounded_away_is_written(tmp_path, base):
    edit = Edit.load(adapters(tmp_path / "france")[0])
    slight = ps.power(edit, 1e-3)
    with pytest.warns(UserWarning, match="loses part of the edit"):
        ps.merge(ps.load_model(base)[0], slight, tmp_path / "merged", dtype="bfloat16")
    [told] = written(tmp_path / "merged")["edits"]
    assert 0.01 < told["rounded_away"] < 1
    assert told["adapters"][0]["name"] == "an edit in memory"
    ps.merge(ps.load_model(base)[0], edit, tmp_path / "merged", overwrite=True)
    [told] = written(tmp_path / "merged")["edits"]
    assert (told["rounded_away"], told["adapters"][0]["name"], told["dtype"]) == (0.0, "france/unlearn", "float32")


def test_a_second_merge_appends_and_keeps_the_first_base(tmp_path, base):
    one, two = adapters(tmp_path / "france")
    ps.merge(ps.load_model(base)[0], one, tmp_path / "first")
    word_tokenizer().save_pretrained(tmp_path / "first")
    again, tokenizer = ps.load_model(tmp_path / "first")
    assert edits_in(ps.load_model(base)[0]) == []
    [told] = edits_in(again)
    ps.merge(again, two, tmp_path / "second", tokenizer=tokenizer)
    edits = written(tmp_path / "second")["edits"]
    assert edits[0] == told
    assert [edit["base"]["name"] for edit in edits] == ["base", "first"]
    assert edit_names(edits) == ["france/unlearn", "france/learn"]
    card = (tmp_path / "second" / "README.md").read_text()
    assert card.count("## Edits in these weights") == 1
    assert "This is `base` with these edits folded into its weights" in card
    assert card.index("1. `france/unlearn`") < card.index("2. `france/learn`")


def test_the_cards_own_words_stay_above_the_section(tmp_path, base):
    one, two = adapters(tmp_path)
    theirs = "---\nlicense: mit\n---\n\n# Base\n\nWörter.\n".encode() + b"\xff not UTF-8\r\n"
    (base / "README.md").write_bytes(theirs)
    ps.merge(ps.load_model(base)[0], one, tmp_path / "first")
    card = (tmp_path / "first" / "README.md").read_bytes()
    assert card.startswith(theirs.rstrip() + b"\n\n<!-- peft-surgical: edits -->\n## Edits in these weights\n")
    # What somebody has written below it stays, too.
    (tmp_path / "first" / "README.md").write_bytes(card + b"\nMore.\n")
    word_tokenizer().save_pretrained(tmp_path / "first")
    ps.merge(ps.load_model(tmp_path / "first")[0], two, tmp_path / "second")
    card = (tmp_path / "second" / "README.md").read_bytes()
    assert card.startswith(theirs.rstrip())
    assert card.endswith(b"\nMore.\n")
    assert card.count(b"## Edits in these weights") == 1
    assert (base / "README.md").read_bytes() == theirs


def test_what_stands_below_a_section_without_its_end_stays(tmp_path, base):
    one, two = adapters(tmp_path)
    ps.merge(ps.load_model(base)[0], one, tmp_path / "first")
    word_tokenizer().save_pretrained(tmp_path / "first")
    path, end = tmp_path / "first" / "README.md", "<!-- peft-surgical: end of edits -->"
    own, heading = "## Licence\n\nTheir own.\n", "## Edits in these weights"
    card = path.read_text().replace(end, "")
    for given, sections in ((card, 1), (card.replace("\n", "\r\n"), 1), (card.replace("To undo it", "Undo"), 2)):
        path.write_bytes((given + own).encode())
        ps.merge(ps.load_model(tmp_path / "first")[0], two, tmp_path / "second", overwrite=True)
        found = (tmp_path / "second" / "README.md").read_bytes().decode()
        assert found.endswith(own)
        # Somebody's wording of it is theirs.
        assert found.count(heading) == sections
        assert found.count(end) == found.count("<!-- peft-surgical: edits -->") == 1
        assert found.index(heading) < found.index(end) < found.index(own)


def called(name):
    model = tiny_model("llama")
    model.name_or_path = name
    return model


def test_another_revision_s_edits_are_not_taken_for_the_model_s(tmp_path, model_folder, monkeypatch):
    one, two = adapters(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an adapter for another base
        ps.merge(ps.load_model(model_folder)[0], one, tmp_path / "merged")
        word_tokenizer().save_pretrained(tmp_path / "merged")
        snapshot = hub(tmp_path / "cache", tmp_path / "merged")
        (snapshot / "LICENSE").write_text("free")
        shutil.copytree(model_folder, snapshot.parent / ("b" * 40))
        (snapshot.parents[1] / "refs" / "before").write_text("b" * 40)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        cache = {"cache_dir": tmp_path / "cache"}
        for model, count in (
            (AutoModelForCausalLM.from_pretrained("org/base", revision="before", **cache), 0),
            # Nobody can tell this one from that.
            (AutoModelForCausalLM.from_pretrained("org/base", **cache), 0),
            (AutoModelForCausalLM.from_pretrained(snapshot), 1),
            (ps.load_model("org/base", revision="before")[0], 0),
            (ps.load_model("org/base")[0], 1),
            # By the path in a cache that is elsewhere, which says the commit.
            *((called(f"/away/models--org--base/snapshots/{each * 40}"), each == "a") for each in "cba"),
        ):
            assert len(edits_in(model)) == count
            ps.merge(model, two, tmp_path / "out", overwrite=True)
            assert len(written(tmp_path / "out")["edits"]) == count + 1
            card = (tmp_path / "out" / "README.md").read_text()
            assert (f"1. `{tmp_path.name}/unlearn`" in card) == (count == 1)
    assert (tmp_path / "out" / "LICENSE").is_file()


def test_a_base_of_the_hub_goes_by_its_id(tmp_path, model_folder, monkeypatch):
    snapshot = hub(tmp_path / "cache", model_folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    one = adapters(tmp_path)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an adapter for another base
        ps.merge(ps.load_model("org/base")[0], one, tmp_path / "by id")
        ps.merge(ps.load_model(snapshot)[0], one, tmp_path / "by path")
    known = {"name": "org/base", "hub_id": "org/base"}
    assert written(tmp_path / "by id")["edits"][0]["base"] == {**known, "revision": None}
    assert written(tmp_path / "by path")["edits"][0]["base"] == {**known, "revision": "a" * 40}
    assert (tmp_path / "by id" / "README.md").read_text().startswith("---\nbase_model: org/base\n")
    assert f"This is `org/base` (revision `{'a' * 40}`) with" in (tmp_path / "by path" / "README.md").read_text()


def test_a_folder_that_was_named_from_another_one_goes_by_its_name_alone(tmp_path, base, monkeypatch):
    monkeypatch.chdir(base.parent.parent)
    model, _ = ps.load_model("somebody/base")
    monkeypatch.chdir(tmp_path)
    ps.merge(model, adapters(tmp_path)[0], tmp_path / "merged")
    assert written(tmp_path / "merged")["edits"][0]["base"]["name"] == "base"
    monkeypatch.chdir(base)
    here, _ = ps.load_model(".")
    monkeypatch.chdir(tmp_path)
    ps.merge(here, adapters(tmp_path / "here")[0], tmp_path / "merged", overwrite=True)
    assert written(tmp_path / "merged")["edits"][0]["base"]["name"] == "base"
    ps.merge(tiny_model("llama"), adapters(tmp_path / "more")[0], tmp_path / "unnamed")
    assert written(tmp_path / "unnamed")["edits"][0]["base"]["name"] is None
    assert "This is the base with this edit" in (tmp_path / "unnamed" / "README.md").read_text()


def test_a_folder_with_the_name_of_a_model_of_the_hub_is_not_that_model(tmp_path, base, monkeypatch):
    one, two = adapters(tmp_path)
    base.rename(tmp_path / "gpt2")
    for here in (tmp_path, tmp_path / "home"):
        monkeypatch.chdir(here)
        ps.merge(ps.load_model(tmp_path / "gpt2")[0], one, tmp_path / "merged", overwrite=True)
        assert ModelCard.load(tmp_path / "merged" / "README.md").data.base_model is None
        assert "This is `gpt2` with this edit" in (tmp_path / "merged" / "README.md").read_text()
    # Nor where a record does not say which it is.
    word_tokenizer().save_pretrained(tmp_path / "merged")
    os.remove(tmp_path / "merged" / "README.md")
    for recorded, expected in (
        ({"name": "gpt2"}, None),
        ({"name": "org/base"}, "org/base"),
        ({"name": "org/base", "hub_id": None}, None),
        ({"name": "gpt2", "hub_id": "gpt2"}, "gpt2"),
        ({"name": ["org/base"]}, None),
        ({"name": "org/base", "hub_id": ["org/base"]}, None),
    ):
        found = written(tmp_path / "merged")
        found["edits"][0]["base"] = recorded
        (tmp_path / "merged" / "peft_surgical.json").write_text(json.dumps(found))
        ps.merge(ps.load_model(tmp_path / "merged")[0], two, tmp_path / "again", overwrite=True)
        assert ModelCard.load(tmp_path / "again" / "README.md").data.base_model == expected


def test_what_is_no_folder_is_an_edit_in_memory(tmp_path, base, monkeypatch):
    """However its folder was given that it was computed of."""
    one, two = adapters(tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    for made in (ps.power("learn", 0.5), ps.power(two, 0.5), ps.product(["unlearn", "learn"]), ps.product([one, two])):
        ps.merge(ps.load_model(base)[0], made, tmp_path / "merged", overwrite=True)
        assert edit_names(written(tmp_path / "merged")["edits"]) == ["an edit in memory"]
        assert "1. `an edit in memory` (SHA-256" in (tmp_path / "merged" / "README.md").read_text()
    ps.merge(ps.load_model(base)[0], Edit.load("learn"), tmp_path / "merged", overwrite=True)
    assert edit_names(written(tmp_path / "merged")["edits"]) == ["out/learn"]


def test_a_lora_adapter_and_what_it_says_of_itself(tmp_path, base):
    model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["down_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # a random change can be too small for a value here and there
            torch.nn.init.ones_(parameter)
    model.save_pretrained(tmp_path / "out" / "keyed")
    ps.merge(ps.load_model(base)[0], tmp_path / "out" / "keyed", tmp_path / "merged")
    [edit] = written(tmp_path / "merged")["edits"]
    assert edit["adapters"] == [{"name": "out/keyed", "sha256": Lineage.of(tmp_path / "out" / "keyed").digest}]
    assert edit["weights"] == 3 * 32 * 48
    ps.stack(adapters(tmp_path / "stages"), tmp_path / "edit")
    ps.merge(ps.load_model(base)[0], tmp_path / "edit", tmp_path / "merged", overwrite=True)
    [edit] = written(tmp_path / "merged")["edits"]
    assert edit["adapters"][0]["parts"] == list(Lineage.of(tmp_path / "edit").parts)
    assert len(edit["adapters"][0]["parts"]) == 2


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": 2, "edits": []}', '{"format": 1, "edits": [{"adapters": []}]}']
)
def test_what_cannot_be_read_is_told_and_left_out(text, tmp_path, base):
    (base / "peft_surgical.json").write_text(text)
    with pytest.warns(UserWarning, match=r"peft_surgical\.json cannot be read \(.*\), so what it says of edits"):
        assert read_edits(base) == []
    with pytest.warns(UserWarning, match="cannot be read"):
        ps.merge(ps.load_model(base)[0], adapters(tmp_path)[0], tmp_path / "merged")
    assert len(written(tmp_path / "merged")["edits"]) == 1
    assert (base / "peft_surgical.json").read_text() == text


def test_names_that_would_end_a_line_of_the_card(tmp_path, base):
    odd = tmp_path / "out" / "a `b`\n# c"
    odd.parent.mkdir()
    shutil.move(adapters(tmp_path)[0], odd)
    ps.merge(ps.load_model(base)[0], odd, tmp_path / "merged")
    assert "1. `out/a ?b??? c` (SHA-256" in (tmp_path / "merged" / "README.md").read_text()


def test_reports_say_what_their_base_carries(tmp_path, model_folder):
    one, _ = adapters(tmp_path)
    base, tokenizer = ps.load_model(model_folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ps.merge(base, one, tmp_path / "merged", tokenizer=tokenizer)
    options = {"max_new_tokens": 2, "retention_tokens": 0, "progress": False}
    assert "base_edits" not in ps.evaluate(base, tokenizer, capital(), **options).settings
    merged, tokenizer = ps.load_model(tmp_path / "merged")
    report = ps.evaluate(merged, tokenizer, capital(), **options)
    assert report.settings["base_edits"] == written(tmp_path / "merged")["edits"]
    # Below an adapter, too.
    adapted = get_peft_model(merged, LoraConfig(target_modules=["down_proj"]))
    assert ps.evaluate(adapted, tokenizer, capital(), **options).settings["base_edits"]
    assert edits_in(tiny_model("llama")) == []


def test_the_revision_may_be_told_by_any_of_the_adapters(tmp_path):
    model = tiny_model("llama")
    model.name_or_path = "org/base"
    note_revision(model, "one")
    first, second = (replace(Edit.load(folder), base_model="org/base") for folder in adapters(tmp_path))
    with pytest.warns(UserWarning, match="was made for the revision 'two' of org/base; this model is of 'one'"):
        ps.merge(model, [first, replace(second, revision="two")], tmp_path / "out")


def test_what_is_no_lineage_in_a_record_says_nothing():
    odd = {"name": "a", "sha256": 3, "after": "unlearn", "parts": 3, "below": None}
    assert lineages_of([{"adapters": [odd, {"name": "b", "sha256": "x", "parts": ["y"]}]}]) == [
        Lineage(),
        Lineage("x", parts=("y",)),
    ]
