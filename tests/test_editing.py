from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from peft import IA3Config, PeftModel

from peft_surgical import edit as edit_function
from peft_surgical import editing
from peft_surgical.adapters.edits import Edit
from peft_surgical.choice import EDIT_PROJECTIONS
from peft_surgical.editing import EDIT_SCORERS
from peft_surgical.errors import ModelError, SelectionError
from peft_surgical.localizing.faithfulness import Carried, Faithfulness
from peft_surgical.localizing.results import Localization
from peft_surgical.measuring.states import adapter_state
from peft_surgical.models import load_model
from peft_surgical.report import METRICS, Report
from peft_surgical.running.cache import FOLDER
from peft_surgical.selection import Selection
from peft_surgical.staging import retain
from peft_surgical.staging.recipe import Recipe
from peft_surgical.tuner import SurgicalIA3Layer, activate

from .adapters import logits
from .conftest import fingerprint
from .localizing import capital, word_tokenizer
from .reports import report

RECIPE = Recipe(
    steps=3,
    fact_batch=3,
    near_batch=2,
    far_batch=1,
    general=0,
    variants=2,
    neighbours=3,
    retain_tokens=2,
    target_loss=0.0,
    compute_dtype="float32",
)
FACT = capital(
    probes=[{"prompt": "is paris the capital of france ?", "kind": "contradiction"}],
    portability=[{"kind": "reversal", "prompt": "lyon is the capital of", "answer": ["france"]}],
)
KEYS = ("held_out", "controls", "probes", "portability")
FOLDERS = ("unlearn", "learn", "edit")
FILES = {"localization.json", *FOLDERS, "report.json", "report.html"}
if find_spec("matplotlib"):
    FILES.add("localization.png")
# "what is the capital of france ?"
IDS = torch.tensor([word_tokenizer()("what is the capital of france ?")["input_ids"]])


@pytest.fixture(scope="module", autouse=True)
def few_everyday_prompts():
    with pytest.MonkeyPatch.context() as patch:
        everyday = retain.everyday_prompts()[:3]
        patch.setattr(retain, "everyday_prompts", lambda: everyday)
        yield


def rewrite(model_folder, out, fact=FACT, **options):
    """Edits a model that is loaded for it; returns the model and the report."""
    model, tokenizer = load_model(model_folder, dtype="float32")
    options = {"recipe": RECIPE, "retention_tokens": 48, "progress": False, **options}
    return model, edit_function(model, tokenizer, fact, out=out, **options)


def load(model_folder, folder, name="default"):
    model, _ = load_model(model_folder, dtype="float32")
    return PeftModel.from_pretrained(model, folder, adapter_name=name)


@pytest.fixture(scope="module")
def edited(model_folder, tmp_path_factory):
    """The folder of an edit with all defaults, the edited model and the report."""
    out = tmp_path_factory.mktemp("edited") / "deep" / "out"
    model, report = rewrite(model_folder, out, command="peft-surgical edit fact.yaml")
    return out, model, report


def test_an_earlier_localization_is_not_done_again(edited, model_folder, tmp_path, monkeypatch):
    out, _, report = edited
    monkeypatch.delattr(editing, "localize")
    earlier = Localization.load(out / "localization.json")
    _, again = rewrite(model_folder, tmp_path / "out", localization=earlier, scorers=["attribution"])
    assert again.answers == report.answers
    assert again.settings["scorers"] == [*earlier.scorers]
    assert (tmp_path / "out" / "localization.json").read_text() == (out / "localization.json").read_text()
    assert earlier.seconds == sum(table.notes["seconds"] for table in earlier.tables.values()) > 0
    assert again.seconds["localize"] >= round(earlier.seconds, 2)
    wider = replace(earlier, shape=replace(earlier.shape, d_mlp=2 * earlier.shape.d_mlp))
    with pytest.raises(SelectionError, match="the localization was made on a model of other sizes"):
        rewrite(model_folder, tmp_path / "other", localization=wider)
    assert not (tmp_path / "other").exists()


def test_the_first_scorer_that_is_asked_for_ranks_an_earlier_localization(edited, model_folder, tmp_path, monkeypatch):
    earlier, seen = Localization.load(edited[0] / "localization.json"), []

    def started(_, localization, selection):
        seen.append((localization.scorers, selection.components))
        raise InterruptedError

    monkeypatch.setattr(editing, "_start_output", started)
    for scorers in (None, ["lookup"]):
        with pytest.raises(InterruptedError):
            rewrite(model_folder, tmp_path / "out", localization=earlier, scorers=scorers, top=3)
    orders = (("attribution", "lookup"), ("lookup", "attribution"))
    assert seen == [(names, earlier.top(3, by=names[0]).components) for names in orders]


def test_what_the_selection_carries_is_measured_where_it_is_asked(edited, model_folder, tmp_path):
    out, _, plain = edited
    assert "faithfulness" not in plain.selection
    assert "carry together" not in (out / "report.html").read_text()
    selection = Selection.from_components("L1.head.2", "L2.mlp")
    _, report = rewrite(model_folder, tmp_path / "out", selection=selection, faithfulness=True)
    found = Localization.load(tmp_path / "out" / "localization.json").faithfulness
    assert {"selection": selection.to_dict(), **report.selection["faithfulness"]} == found.to_dict()
    assert "selection" not in report.selection["faithfulness"]
    assert found.selection == selection
    assert list(report.seconds)[:2] == ["localize", "faithfulness"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert found.told() in page
    assert all(cell in page for row in found.rows()[1] for cell in row)
    assert Selection.load(tmp_path / "out" / "report.json") == selection


def test_what_another_selection_carries_is_not_kept(edited, model_folder, tmp_path, monkeypatch):
    earlier, chosen = Localization.load(edited[0] / "localization.json"), Selection.from_components("L1.mlp")
    of_chosen = Faithfulness(chosen, Carried(None, None, ()), Carried(None, None, ()), (), least=0.1, seed=0)
    earlier, seen = replace(earlier, faithfulness=of_chosen), []

    def started(_, localization, selection):
        seen.append(localization)
        raise InterruptedError

    monkeypatch.setattr(editing, "_start_output", started)
    below = {"on": [edited[0] / "edit"]}
    other = Selection.from_components("L1.head.0")
    for options in ({"selection": chosen}, {"selection": other}, {"top": 1}, {"selection": chosen, **below}):
        with pytest.raises(InterruptedError):
            rewrite(model_folder, tmp_path / "out", localization=earlier, **options)
    assert seen == [earlier, *[replace(earlier, faithfulness=None)] * 3]


def test_every_step_has_the_seed(model_folder, tmp_path, monkeypatch):
    seeds = {}

    def noting(name, step):
        return lambda *given, seed, **options: step(*given, seed=seeds.setdefault(name, seed), **options)

    for name in ("localize", "measure", "unlearn", "learn", "evaluate"):
        monkeypatch.setattr(editing, name, noting(name, getattr(editing, name)))
    rewrite(model_folder, tmp_path / "out", seed=3, faithfulness=True)
    assert seeds == {"localize": 3, "measure": 3, "unlearn": 3, "learn": 3, "evaluate": 3}


def test_each_stage_has_the_recipe_that_is_given_for_it(model_folder, tmp_path):
    recipe = {"unlearn": RECIPE, "learn": replace(RECIPE, steps=2)}
    _, report = rewrite(model_folder, tmp_path / "out", recipe=recipe)
    assert [report.training[stage]["steps"] for stage in ("unlearn", "learn")] == [RECIPE.steps, 2]
    with pytest.raises(
        ModelError, match="there is no stage 'forget' to give a recipe for; the stages are unlearn and l"
    ):
        rewrite(model_folder, tmp_path / "other", recipe={"forget": RECIPE})
    assert not (tmp_path / "other").exists()


def test_everything_is_written_and_nothing_else(edited):
    out, _, _ = edited
    assert {path.name for path in out.iterdir()} == FILES
    assert {path.name for path in out.parent.iterdir()} == {FOLDER, out.name}
    for name in FOLDERS:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in (out / name).iterdir()}


def test_the_report_is_of_three_states(edited, model_folder):
    out, _, report = edited
    assert Report.load(out / "report.json") == report
    assert list(report.stages) == ["base", "unlearned", "edited"]
    assert report.fact == FACT
    assert report.model == str(model_folder)
    assert report.dtype == "float32"
    assert set(report.seconds) == {"localize", "unlearn", "learn", "evaluate"}
    kl = {name: figures["kl_per_token"].value for name, figures in report.stages.items()}
    assert kl["base"] == 0 < kl["unlearned"] != kl["edited"] > 0
    for figures in report.stages.values():
        assert set(figures) <= set(METRICS)
        assert figures["new_answer_rate"].n == len(FACT.held_out)
        assert figures["kl_per_token"].n == report.stages["base"]["kl_per_token"].n > 0
    for given in report.answers.values():
        assert {key: len(answers) for key, answers in given.items()} == dict.fromkeys(KEYS, 1)
    assert set(report.training) == {"unlearn", "learn"}
    assert all(record["steps"] == RECIPE.steps for record in report.training.values())
    assert [record["answer"] for record in report.training.values()] == [FACT.refusal, FACT.answer]
    assert report.settings["scorers"] == list(EDIT_SCORERS)
    assert report.settings["projections"] == list(EDIT_PROJECTIONS)
    assert report.settings["recipe"] == {stage: vars(RECIPE) for stage in ("unlearn", "learn")}
    page = (out / "report.html").read_text()
    assert "peft-surgical edit fact.yaml" in page
    assert report.verdict() in page


def test_the_card_of_the_edit_says_what_was_measured_and_those_of_its_stages_do_not(edited):
    out, _, report = edited
    cards = {name: (out / name / "README.md").read_text() for name in FOLDERS}
    measured = replace(report, stages={name: report.stages[name] for name in ("base", "edited")}).to_markdown()
    assert f"# A surgical edit\n\n## What was measured\n\n{measured}\n\n## The adapter\n\nAn (IA)³" in cards["edit"]
    assert report.verdict() in measured
    assert "| | base | edited |" in measured.replace("|  |", "| |")
    assert "fact.yaml" in report.settings["command"]
    assert "fact.yaml" not in measured
    assert not any("measured" in cards[name] for name in ("unlearn", "learn"))


def test_the_selection_is_all_mlps_in_the_order_of_the_localization(edited):
    out, _, report = edited
    found = Localization.load(out / "localization.json")
    assert found.scorers == EDIT_SCORERS
    assert found.subject == "france"
    expected = found.top(mlps=99)
    assert sorted(expected.components) == [f"L{layer}.mlp" for layer in range(found.shape.n_layers)]
    assert tuple(report.selection["components"]) == expected.components
    assert report.selection["granularity"] == "component"
    stages = [Edit.load(out / name) for name in FOLDERS]
    # Every coordinate of the residual stream that an up projection reads.
    assert report.selection["scales"] == 32 * len(expected.components)
    assert all(name.endswith("mlp.up_proj") for name in stages[0].modules)
    assert [stage.n_scales for stage in stages] == [report.selection["scales"]] * 3
    assert {name.split(".")[2] for name in stages[0].modules} == {name[1] for name in expected.components}


def test_the_edit_folder_is_plain_ia3_and_the_stages_bit_for_bit(edited, model_folder):
    out, _, _ = edited
    plain = load(model_folder, out / "edit")
    assert type(plain.peft_config["default"]) is IA3Config
    both = load(model_folder, out / "unlearn", "unlearn")
    both.load_adapter(out / "learn", "learn")
    activate(both, ["unlearn", "learn"])
    assert torch.equal(logits(plain, IDS), logits(both, IDS))
    with adapter_state(both, ["unlearn"])():
        unlearned = logits(both, IDS)
    base, _ = load_model(model_folder, dtype="float32")
    assert not torch.equal(unlearned, logits(both, IDS))
    assert not torch.equal(unlearned, logits(base, IDS))
    with plain.disable_adapter():
        assert torch.equal(logits(plain, IDS), logits(base, IDS))


def test_the_model_carries_both_adapters_afterwards(edited, model_folder):
    out, model, _ = edited
    layers = [module for module in model.modules() if isinstance(module, SurgicalIA3Layer)]
    assert layers
    assert all(list(layer.coordinates) == layer.active_adapters == ["unlearn", "learn"] for layer in layers)
    assert torch.equal(logits(model, IDS), logits(load(model_folder, out / "edit"), IDS))


def test_the_same_seed_gives_the_same_edit(edited, model_folder, tmp_path):
    out, _, report = edited
    _, again = rewrite(model_folder, tmp_path / "out")
    told = {"seconds": {}, "training": {}, "settings": {}}
    assert replace(again, **told) == replace(report, **told)
    for name in FOLDERS:
        weights = [(folder / name / "adapter_model.safetensors").read_bytes() for folder in (out, tmp_path / "out")]
        assert weights[0] == weights[1]


OPTIONS = {
    "top": ({"top": 3, "scorers": ["logit_drop"]}, 3, None),
    "selection": ({"selection": Selection.from_components("L1.head.2", "L2.mlp")}, 2, 8 + 32),
    "neurons": ({"selection": Selection(("L2.mlp",), neurons={"L2.mlp": ((3, 5),)})}, 1, 2 * 2),
    "neurons_told": (
        {"selection": Selection(("L2.mlp",), neurons={"L2.mlp": ((3, 5),)}), "granularity": "neuron"},
        1,
        2 * 2,
    ),
    "projections": ({"selection": Selection.from_components("L2.mlp"), "projections": ["post"]}, 1, 48),
    "module": ({"selection": Selection.from_components("L2.mlp"), "granularity": "module"}, 1, 3 * 48),
    "neuron": ({"granularity": "neuron", "neurons": 5, "top": 12}, 12, None),
    # A head has 8 coordinates at z, an MLP reads 32 of the residual stream and has 48 neurons.
    "budget": ({"budget": 47, "heads": 1, "mlps": 1, "scorers": ["logit_drop"]}, 2, 8 + 32),
    "budget_of_neurons": ({"budget": 19, "mlps": 3, "granularity": "neuron", "neurons": 3}, 3, 3 * 2 * 3),
    "budget_of_post": ({"budget": 100, "projections": ["z", "post"], "mlps": 3}, 2, 2 * 48),
    "quotas": ({"heads": 2, "mlps": 1, "scorers": ["logit_drop"]}, 3, 2 * 8 + 32),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_what_is_selected(case, model_folder, tmp_path):
    options, components, scales = OPTIONS[case]
    out = tmp_path / "out"
    _, report = rewrite(model_folder, out, retention_tokens=0, **options)
    found = Localization.load(out / "localization.json")
    assert found.scorers == tuple(options.get("scorers", EDIT_SCORERS))
    assert len(report.selection["components"]) == components
    assert "kl_per_token" not in report.stages["edited"]
    n_scales = Edit.load(out / "learn").n_scales
    assert report.selection["scales"] == n_scales
    if scales is not None:
        assert n_scales == scales
    if "selection" in options:
        assert tuple(report.selection["components"]) == options["selection"].components
    elif "top" in options:
        assert tuple(report.selection["components"]) == found.top(options["top"]).components
    else:
        assert scales <= options.get("budget", scales)
    assert Selection.load(out / "localization.json") == Selection.load(out / "report.json")
    # Whole modules are scaled where they are, and not at projections.
    projections = report.settings.get("projections")
    assert (projections is None) == (case == "module")
    assert projections == options.get("projections", projections)
    if case == "neuron":
        mlps = [name for name in report.selection["components"] if name.endswith(".mlp")]
        heads = components - len(mlps)
        assert mlps
        assert n_scales == 2 * 5 * len(mlps) + 8 * heads
        assert set(report.selection["neurons"]) == set(mlps)


def test_overwriting_replaces_the_edit_and_keeps_what_is_not_its_own(model_folder, tmp_path):
    out = tmp_path / "out"
    rewrite(model_folder, out, selection=Selection.from_components("L1.mlp"))
    (out / "notes.txt").write_text("mine")
    (out / "unlearn" / "stale.bin").write_text("old")
    before = (out / "edit" / "adapter_model.safetensors").read_bytes()
    _, report = rewrite(model_folder, out, selection=Selection.from_components("L2.mlp"), overwrite=True)
    assert {path.name for path in out.iterdir()} == {*FILES, "notes.txt"}
    assert not (out / "unlearn" / "stale.bin").exists()
    assert (out / "edit" / "adapter_model.safetensors").read_bytes() != before
    assert Report.load(out / "report.json") == report
    assert {name.split(".")[2] for name in Edit.load(out / "edit").modules} == {"2"}


@pytest.mark.parametrize(
    ("step", "left"),
    [
        ("localize", None),
        ("plot_localization", {"localization.json"}),
        ("unlearn", {"localization.json", "localization.png"}),
        ("learn", {"localization.json", "localization.png", "unlearn"}),
        ("stack_above", {"localization.json", "localization.png", "unlearn", "learn"}),
        ("evaluate", {"localization.json", "localization.png", *FOLDERS}),
    ],
)
@pytest.mark.parametrize("earlier", [False, True], ids=["fresh", "overwritten"])
def test_an_interrupted_edit_leaves_what_is_complete(step, left, earlier, model_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    if earlier:
        out.mkdir()
        report("base", "edited").save(out / "report.json")
        (out / "learn").mkdir()
        (out / "learn" / "adapter_config.json").write_text("of an earlier edit")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(editing, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        rewrite(model_folder, out, overwrite=earlier)
    if left is None or (earlier and step != "evaluate"):
        # An earlier edit stays until there is another one to put in its place.
        assert out.exists() == earlier
        assert {path.name for path in out.rglob("*")} == (
            {"report.json", "learn", "adapter_config.json"} if earlier else set()
        )
        return
    assert {path.name for path in out.iterdir()} == left & FILES
    Localization.load(out / "localization.json")
    base, _ = load_model(model_folder, dtype="float32")
    for name in left & set(FOLDERS):
        assert not torch.equal(logits(load(model_folder, out / name, name), IDS), logits(base, IDS))
    assert {path.name for path in tmp_path.iterdir()} - {FOLDER} == {"out"}


def test_no_step_and_still_a_report(model_folder, tmp_path):
    _, report = rewrite(model_folder, tmp_path / "out", recipe=replace(RECIPE, steps=0))
    assert Report.load(tmp_path / "out" / "report.json") == report
    assert report.training["learn"]["worst"] is None
    assert report.training["learn"]["loss"] is None
    page = (tmp_path / "out" / "report.html").read_text()
    assert "0 steps, " in page
    assert "loss" not in page.partition("0 steps, ")[2][:30]


@pytest.mark.parametrize("step", ["learn", "evaluate"])
def test_an_interrupted_edit_leaves_the_model_as_it_was(step, model_folder, tmp_path, monkeypatch):
    model, tokenizer = load_model(model_folder, dtype="float32")
    before = fingerprint(model)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(editing, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        edit_function(model, tokenizer, FACT, out=tmp_path / "out", recipe=RECIPE, progress=False)
    assert fingerprint(model) == before
