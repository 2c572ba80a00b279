import json
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from peft_surgical.adapters.adapter_files import WEIGHTS
from peft_surgical.adapters.edits import Edit
from peft_surgical.adapters.export import to_ia3
from peft_surgical.adapters.lineage import Lineage
from peft_surgical.adapters.low_rank import LowRank
from peft_surgical.adapters.scale_files import read_tensors
from peft_surgical.earlier import Earlier
from peft_surgical.editing import edit
from peft_surgical.errors import AdapterError, ModelError, OutputError
from peft_surgical.keyed_edit import edit_keyed
from peft_surgical.measuring.attached import attach
from peft_surgical.merging import merge
from peft_surgical.models import load_model
from peft_surgical.report import Report
from peft_surgical.reporting.page import render_page
from peft_surgical.reporting.summary import on_top
from peft_surgical.selection import Selection
from peft_surgical.stacking import stack

from . import test_editing, test_keyed
from .adapters import logits, perturb, saved, tiny_peft
from .conftest import fingerprint
from .counterfacts import TOKENIZER, word_model
from .localizing import capital
from .test_folding import SCALES
from .tiny import tiny_ids, tiny_model

FRANCE = capital()
ITALY = capital(
    subject="italy",
    old=["rome"],
    new=["paris"],
    prompts=["what is the capital of italy ?", "name the capital of italy ."],
    held_out=["which city is the seat of government of italy ?"],
    contrast=["france", "spain", "japan"],
    controls=[{"prompt": "where is lyon ?", "answer": ["france"]}],
)
SCALED = {"recipe": test_editing.RECIPE, "selection": Selection.from_components("L2.mlp", "L1.mlp")}
KEYED = {"recipe": test_keyed.RECIPE, "layers": [1]}
KINDS = {"scales": (edit, SCALED), "keyed": (edit_keyed, KEYED)}
IDS = tiny_ids() % len(TOKENIZER)


pytestmark = pytest.mark.usefixtures("few_carried_prompts_throughout")


def made(kind, model, fact, out, **options):
    function, own = KINDS[kind]
    return function(model, TOKENIZER, fact, out=out, retention_tokens=64, progress=False, **{**own, **options})


def base(folder):
    return load_model(folder, dtype="float32")[0]


def stock(model, *folders):
    """Stock PEFT's model with some adapters of one kind, all of which act."""
    for number, folder in enumerate(folders):
        if number:
            model.load_adapter(folder, f"a{number}")
        else:
            model = PeftModel.from_pretrained(model, folder, adapter_name="a0")
    model.base_model.set_adapter([f"a{number}" for number in range(len(folders))])
    return model.eval()


@pytest.fixture(scope="module", params=[*KINDS])
def two(request, model_folder, tmp_path_factory):
    """An edit, and one on top of it; the kind, their folder, the model that was given and the second's report."""
    out = tmp_path_factory.mktemp("two")
    model = base(model_folder).train()
    made(request.param, model, FRANCE, out / "france")
    assert not any(module.training for module in model.modules())
    model = base(model_folder).train()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*on top of")
        report = made(request.param, model, ITALY, out / "italy", on=[out / "france" / "edit"])
    return request.param, out, model, report


def test_the_model_is_left_as_it_was_given(two, model_folder):
    _, _, model, _ = two
    untouched = base(model_folder)
    assert fingerprint(model) == fingerprint(untouched)
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in untouched.parameters()]
    assert not hasattr(model, "peft_config")
    # As it is where the adapters stay on it.
    assert not any(module.training for module in model.modules())


def test_it_is_the_edit_that_the_merged_model_gets(two, model_folder, tmp_path):
    """Localized, trained, kept and measured is the model with the first one, bit for bit."""
    kind, out, _, report = two
    merge(base(model_folder), out / "france" / "edit", tmp_path / "merged", tokenizer=TOKENIZER)
    again = made(kind, base(tmp_path / "merged"), ITALY, tmp_path / "again")
    for folder in (path.name for path in (tmp_path / "again").iterdir() if path.is_dir()):
        first, second = (read_tensors(place / folder / WEIGHTS) for place in (out / "italy", tmp_path / "again"))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert again.answers == report.answers
    assert again.stages == report.stages


def test_both_act_in_stock_peft_as_in_training_and_each_is_taken_back(two, model_folder, tmp_path):
    _, out, _, _ = two
    first, second = out / "france" / "edit", out / "italy" / "edit"
    merge(base(model_folder), first, tmp_path / "merged", tokenizer=TOKENIZER)
    trained = logits(stock(base(tmp_path / "merged"), second), IDS)
    both = stock(base(model_folder), first, second)
    torch.testing.assert_close(logits(both, IDS), trained, rtol=1e-4, atol=1e-4)
    one = logits(stock(base(model_folder), first), IDS)
    assert (trained - one).abs().max() > 1e-3
    both.base_model.set_adapter(["a0"])
    assert torch.equal(logits(both, IDS), one)
    with both.disable_adapter():
        assert torch.equal(logits(both, IDS), logits(base(model_folder), IDS))


def test_one_adapter_of_both_and_a_checkpoint_are_both(two, model_folder, tmp_path):
    _, out, _, _ = two
    folders = [out / "france" / "edit", out / "italy" / "edit"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(on top of|twice)")
        stack(folders, tmp_path / "both")
        merge(base(model_folder), folders, tmp_path / "merged", tokenizer=TOKENIZER)
    expected = logits(stock(base(model_folder), *folders), IDS)
    for model in (stock(base(model_folder), tmp_path / "both"), base(tmp_path / "merged")):
        torch.testing.assert_close(logits(model, IDS), expected, rtol=1e-5, atol=1e-5)
    held = Lineage.of(tmp_path / "both")
    assert held.after == ()
    assert {Lineage.of(folder).digest for folder in folders} <= {*held.parts}


def test_it_is_for_the_base_and_says_on_top_of_what(two, model_folder):
    kind, out, _, report = two
    config = json.loads((out / "italy" / "edit" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model_folder)
    assert [one["folder"] for one in report.settings["on"]] == [str(out / "france" / "edit")]
    assert Report.load(out / "italy" / "report.json") == report
    assert on_top(report) in (out / "italy" / "report.html").read_text()
    assert on_top(report) == f"Here base is the model with {out / 'france' / 'edit'} folded in."
    assert (
        on_top(replace(report, settings={})) is on_top(replace(report, settings={"on": ["x", {"folder": 3}]})) is None
    )
    assert "Here base is" not in render_page(replace(report, settings={}))
    for folder in ("edit",) if kind == "keyed" else ("edit", "unlearn", "learn"):
        assert {*Lineage.of(out / "italy" / folder).after} >= {"france/edit"}
        assert "on top of `france/edit`" in (out / "italy" / folder / "README.md").read_text()
        assert "on top of `france" not in (out / "france" / folder / "README.md").read_text()
    assert str(out) not in (out / "italy" / "edit" / "README.md").read_text()


@pytest.mark.parametrize(("order", "told"), [((0, 1), False), ((1,), True), ((1, 0), True), ((0,), False)])
def test_without_the_first_or_before_it_it_is_told_of(order, told, two, model_folder, tmp_path):
    _, out, _, _ = two
    folders = [(out / "france" / "edit", out / "italy" / "edit")[place] for place in order]
    for make in (
        lambda: attach(base(model_folder), folders),
        lambda: stack(folders, tmp_path / "stacked"),
        lambda: merge(base(model_folder), folders, tmp_path / "merged"),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make()
        said = [str(one.message) for one in caught if "on top of" in str(one.message)]
        assert len(said) == told
        assert not told or "italy/edit was trained on top of france/edit; give that before it" in said[0]


def test_only_the_stages_of_one_edit_have_an_unlearned_state(two, model_folder, tmp_path):
    kind, out, _, _ = two

    def between(*folders):
        with warnings.catch_warnings():
            # Of Italy's edit without France's before it.
            warnings.simplefilter("ignore")
            return list(attach(base(model_folder), folders)[1])[1:-1]

    assert between(out / "france" / "edit") == []
    if kind == "keyed":
        return
    for whole in (out / "france", out / "italy"):
        stages = [whole / "unlearn", whole / "learn"]
        assert between(*stages) == ["unlearned"]
        plain = [tmp_path / whole.name / stage.name for stage in stages]
        for stage, folder in zip(stages, plain, strict=True):
            to_ia3(stage, folder)
        assert between(*plain) == ["unlearned"]
        assert between(*reversed(stages)) == ["after 1"]
    # What holds the stage is more than it.
    assert between(out / "italy" / "edit", out / "italy" / "learn") == ["after 1"]
    assert between(out / "france" / "unlearn", out / "italy" / "learn") == ["after 1"]
    assert between(out / "france" / "edit", out / "italy" / "unlearn", out / "italy" / "learn") == [
        "after 1",
        "after 2",
    ]


def test_a_model_of_no_name_may_be_any_base():
    Earlier(adapters=(SCALES,)).check_base("")
    with pytest.raises(AdapterError, match="was made for 'b', and this model is 'c'"):
        Earlier(adapters=(SCALES,)).check_base("c")


def test_evaluate_has_the_state_of_both(two, model_folder):
    _, out, _, _ = two
    folders = [out / "france" / "edit", out / "italy" / "edit"]
    model, states = attach(base(model_folder), folders)
    expected = {"base": [], "after 1": folders[:1], "edited": folders}
    assert states.keys() == expected.keys()
    for name, acting in expected.items():
        with states[name]():
            plain = base(model_folder)
            assert torch.equal(logits(model, IDS), logits(stock(plain, *acting) if acting else plain, IDS))


def test_the_stages_stand_for_the_edit_that_is_made_of_them(model_folder, tmp_path):
    for number, name in enumerate(("unlearn", "learn", "next")):
        model = tiny_peft()
        perturb(model, seed=number)
        saved(model, tmp_path / name)
    stack([tmp_path / "unlearn", tmp_path / "learn"], tmp_path / "edit")
    edit = replace(Edit.load(tmp_path / "next"), lineage=Lineage())
    for on, given in (
        (["edit"], ["edit"]),
        (["edit"], ["unlearn", "learn"]),
        (["unlearn", "learn"], ["edit"]),
    ):
        below = Earlier.read([tmp_path / name for name in on]).below
        names, digests = zip(*below, strict=True)
        above = replace(edit, lineage=Lineage(None, names, (), digests))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            stack([*(tmp_path / name for name in given), above], tmp_path / "out", overwrite=True)
        with pytest.warns(UserWarning, match=rf"on top of \S*{on[0]}"):
            stack([tmp_path / given[0], above] if len(given) > 1 else [above], tmp_path / "out", overwrite=True)


def test_a_keyed_edit_leaves_an_earlier_ones_neuron_alone(tmp_path):
    first, second = (replace(capital(), subject="france") for _ in range(2))
    made("keyed", word_model(hidden_size=64), first, tmp_path / "one")
    made("keyed", word_model(hidden_size=64), second, tmp_path / "apart")
    made("keyed", word_model(hidden_size=64), second, tmp_path / "two", on=tmp_path / "one" / "edit")

    def neuron(folder):
        [taken] = LowRank.load(tmp_path / folder / "edit").factors["model.layers.1.mlp.down_proj"][0].nonzero()
        return int(taken[1])

    assert neuron("one") == neuron("apart") != neuron("two")


def test_kinds_follow_one_another(two, model_folder, tmp_path):
    """Each kind on top of the other: stock PEFT has no model of both, and the weights have them in their order."""
    kind, out, _, _ = two
    other = "keyed" if kind == "scales" else "scales"
    first, second = out / "france" / "edit", tmp_path / "other" / "edit"
    made(other, base(model_folder), ITALY, tmp_path / "other", on=first)
    with pytest.raises(AdapterError, match=r"some adapters hold scales and some are LoRA, .* `merge` folds them"):
        stack([first, second], tmp_path / "both")
    merge(base(model_folder), [first, second], tmp_path / "merged", tokenizer=TOKENIZER)
    merge(base(model_folder), first, tmp_path / "first", tokenizer=TOKENIZER)
    expected = logits(stock(base(tmp_path / "first"), second), IDS)
    torch.testing.assert_close(logits(base(tmp_path / "merged"), IDS), expected, rtol=1e-5, atol=1e-5)


def test_a_model_that_nothing_is_folded_into_is_refused(tmp_path, model_folder):
    earlier = Earlier((tmp_path,), (SCALES,), (SCALES,))
    with pytest.raises(ModelError, match="an edit on top of others needs the unedited base model, got a PeftModel"):
        earlier.check_model(tiny_peft())
    offloaded = tiny_model("llama").to("meta")
    with pytest.raises(ModelError, match="offloaded; load it whole to edit it on top of others"):
        earlier.check_model(offloaded)
    Earlier().check_model(None)
    model = base(model_folder)
    model.name_or_path = "a"
    with pytest.raises(AdapterError, match="the edit was made for 'b', and this model is 'a'"):
        earlier.check_model(model)
    model.name_or_path = "b"
    earlier.check_model(model)


@pytest.mark.parametrize("kind", KINDS)
def test_folders_that_cannot_be_edited_on_top_of_leave_no_output(kind, tmp_path, two, model_folder):
    _, out, _, _ = two
    first, second, model = out / "france" / "edit", out / "italy" / "edit", base(model_folder)
    shutil.copytree(first, tmp_path / "damaged")
    (tmp_path / "damaged" / WEIGHTS).write_bytes(b"none")
    own = fingerprint(model)
    for on, words in (
        (tmp_path / "none", "there is no adapter folder"),
        ([first, first], "is given twice"),
        ([second], r"edit was trained on top of france/edit; give that before it\.$"),
        ([second, first], r"edit was trained on top of france/edit; give that before it\.$"),
        ([tmp_path / "damaged"], "cannot be read"),
        ([5], "an adapter is a folder"),
        ([SCALES], "on top of folders of adapters, not of Edit"),
    ):
        with pytest.raises(AdapterError, match=words):
            made(kind, model, ITALY, tmp_path / "out", on=on)
    with pytest.raises(OutputError, match=r"would replace .*france.edit, which is read for it"):
        made(kind, model, FRANCE, out / "france", on=first, overwrite=True)
    assert fingerprint(model) == own
    assert not (tmp_path / "out").exists()
    assert (first / WEIGHTS).is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_a_fold_that_fails_or_an_edit_that_does_leaves_the_model(kind, tmp_path, two, model_folder, monkeypatch):
    _, out, _, _ = two
    model = tiny_model("llama", vocab_size=len(TOKENIZER))
    model.name_or_path = "another"
    with pytest.raises(AdapterError, match=r"was made for .*, and this model is 'another'"):
        made(kind, model, ITALY, tmp_path / "out", on=out / "france" / "edit")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    model = base(model_folder)
    own = fingerprint(model)
    monkeypatch.setattr(f"peft_surgical.{'editing' if kind == 'scales' else 'keyed_edit'}.evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        made(kind, model, ITALY, tmp_path / "out", on=out / "france" / "edit")
    assert fingerprint(model) == own
