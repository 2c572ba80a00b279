"""Scorers that fail in every way a plugin can, and what is shown of the code that plugins bring.

| Plugin | What comes of it |
|---|---|
| gives NaN, infinity, a wrong shape, nothing | left out with a warning; refused when nothing else ranks |
| leaves notes that are no JSON (NaN, a tensor) | the same |
| raises anything, ends the process with `sys.exit` | the same |
| notes or says what UTF-8 does not have | the same |
| leaves hooks in the model, or gradients off | the next scorer finds neither |
| is installed | named by `peft-surgical scorers` with its distribution, module and file |
"""

import json
import sys
from types import ModuleType

import pytest
import torch

import peft_surgical as ps
from peft_surgical import plugins
from peft_surgical.errors import ScorerError, SelectionError
from peft_surgical.localization import localize
from peft_surgical.plugins import PluginWarning, load_scorers

from .command_line import run, written
from .localizing import capital, planted, word_tokenizer
from .tiny import tiny_model


def fine(context):
    """Ones."""
    return {site: torch.ones(site.size) for site in context.sites}


def full_of(value):
    return lambda context: {site: torch.full((site.size,), value) for site in context.sites}


def noted(value):
    def scorer(context):
        context.notes["x"] = value
        return fine(context)

    return scorer


def undecodable(context):
    raise ValueError("cannot decode \ud83d")


def ends(context):
    sys.exit(0)


BAD = {
    "nan": (full_of(float("nan")), "not a finite number"),
    "infinite": (full_of(float("inf")), "not a finite number"),
    "shape": (lambda context: {site: torch.ones(site.size + 1) for site in context.sites}, "it must be"),
    "nothing": (lambda context: None, "must return a mapping"),
    "nan_note": (noted(float("nan")), "a note that is not JSON"),
    "tensor_note": (noted(torch.ones(2)), "a note that is not JSON"),
    "surrogate_note": (noted("\ud83d"), "a note that is not JSON"),
    "undecodable": (undecodable, "failed with ValueError: cannot decode \ufffd"),
    "raises": (lambda context: 1 / 0, "failed with ZeroDivisionError"),
    "ends": (ends, "failed with SystemExit"),
}


class Installed:
    """An entry point; `brings` is its module, or what importing it raises."""

    def __init__(self, brings, name="a_plugin"):
        self.brings, self.name, self.value, self.dist = brings, name, name, None

    @property
    def module(self):
        return self.value

    def load(self):
        if isinstance(self.brings, BaseException):
            raise self.brings
        return self.brings


@pytest.fixture
def install(monkeypatch):
    def install(*points):
        monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: list(points))

    return install


def module(name="a_plugin", **scorers):
    plugin = ModuleType(name)

    def register_scorers(register):
        for key, scorer in scorers.items():
            register(key, scorer)

    plugin.register_scorers = ps.hookimpl(register_scorers)
    return plugin


@pytest.fixture
def bad(install):
    install(Installed(module(fine=fine, **{name: scorer for name, (scorer, _) in BAD.items()})))


@pytest.mark.usefixtures("bad")
@pytest.mark.parametrize("name", BAD)
def test_a_scorer_that_fails(name, tmp_path):
    words = BAD[name][1]
    model, tokenizer = planted(), word_tokenizer()
    with pytest.warns(PluginWarning, match=words), pytest.raises(ScorerError, match=words):
        localize(model, tokenizer, capital(), [name], progress=False)
    # It never takes another with it, and what was found can be written.
    with pytest.warns(PluginWarning, match=words):
        found = localize(model, tokenizer, capital(), ["fine", name], progress=False)
    found.save(tmp_path / "loc.json")
    assert ps.Localization.load(tmp_path / "loc.json").errors.keys() == {name}
    # One that was to rank is not silently replaced.
    with pytest.warns(PluginWarning), pytest.raises(SelectionError, match=f"the scorer '{name}' failed"):
        ps.edit(model, tokenizer, capital(), out=tmp_path / "out", scorers=[name, "fine"], progress=False)
    assert written(tmp_path) == ["loc.json"]


def hooked(context):
    context.model.add_hook("blocks.0.mlp.hook_post", lambda tensor, hook: tensor * 0)
    return fine(context)


def hooked_for_good(context):
    context.model.add_perma_hook("blocks.0.mlp.hook_post", lambda tensor, hook: tensor * 0)
    return fine(context)


def hooked_and_raises(context):
    hooked(context)
    raise ValueError("halfway")


def without_gradients(context):
    torch.set_grad_enabled(False)
    return fine(context)


def asks(context):
    context.model.add_hook("blocks.0.mlp.hook_post", seen := Seen())
    context.score("fine")
    before = len(seen)
    context.runs.logits(*next((window, window.clean) for window in context.windows()))
    context.notes["still there"] = len(seen) > before
    return fine(context)


def trains(context):
    context.model.train()
    context.model.requires_grad_(False)
    return fine(context)


def by_backward(context):
    window = next(context.windows(whole=True))
    with torch.enable_grad():
        window.difference(context.runs.logits(window, window.clean)).sum().backward()
    size = sum(float(p.grad.norm()) for p in context.model.parameters() if p.grad is not None)
    return {site: torch.full((site.size,), size) for site in context.sites}


def asks_by_backward(context):
    own = by_backward(context)
    assert context.score("again").components == context.score("by_backward").components
    after = by_backward(context)
    # What another one's backward pass gave has not come on top, and its own is still there.
    site = context.sites[0]
    torch.testing.assert_close(after[site], 2 * own[site])
    return own


def asks_in_half_precision(context):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        context.score("attribution")
    return fine(context)


def asks_in_inference_mode(context):
    with torch.inference_mode():
        context.score("attribution")
    return fine(context)


def in_half_precision_for_good(context):
    torch.autocast("cpu", dtype=torch.bfloat16).__enter__()
    return fine(context)


def in_double_precision_for_good(context):
    torch.set_default_dtype(torch.float64)
    return fine(context)


class Seen(list):
    def __call__(self, tensor, hook):
        self.append(tensor.shape)


@pytest.mark.parametrize(
    "scorer",
    [
        hooked,
        hooked_for_good,
        hooked_and_raises,
        without_gradients,
        trains,
        asks_in_half_precision,
        asks_in_inference_mode,
        in_half_precision_for_good,
        in_double_precision_for_good,
    ],
)
@pytest.mark.filterwarnings("ignore::peft_surgical.plugins.PluginWarning")
def test_what_a_scorer_leaves_behind_changes_no_other(scorer, install):
    install(Installed(module(fine=fine, messy=scorer)))
    model, tokenizer = tiny_model("llama", attention_dropout=0.5), word_tokenizer()
    alone = localize(model, tokenizer, capital(), ["attribution"], progress=False)
    after = localize(model, tokenizer, capital(), ["messy", "attribution"], progress=False)
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.get_default_dtype() == torch.float32
    assert "messy" in after.scores or scorer is hooked_and_raises
    assert after.scores["attribution"] == alone.scores["attribution"]


@pytest.mark.filterwarnings("error::peft_surgical.plugins.PluginWarning")
def test_a_scorers_backward_pass_leaves_no_gradient_in_the_model_nor_for_another(install):
    install(Installed(module(by_backward=by_backward, again=by_backward, asks=asks_by_backward)))
    model = planted()
    model.requires_grad_(False).lm_head.weight.requires_grad_(True)
    kept = model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    found = localize(model, word_tokenizer(), capital(), ["by_backward", "again", "asks"], progress=False)
    first, *others = (found.scores[name] for name in ("by_backward", "again", "asks"))
    assert next(iter(first.values())) > 0
    assert all(other == first for other in others)
    assert model.lm_head.weight.grad is kept
    assert bool((kept == 1).all())
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["lm_head.weight"]


def spoils(context):
    scores = context.score("attribution")
    scores.components.update(dict.fromkeys(scores.components, 7.0))
    for values in scores.neurons.values():
        values[:] = 7.0
    scores.notes["x"] = "theirs"
    for pair in (*context.pairs, *context.controls()):
        pair.clean[:] = 5
        pair.corrupted[:] = 5
        if pair.shift is not None:
            pair.shift[:] = 9.0
    return fine(context)


@pytest.mark.parametrize("contrast", [["italy"], ["new zealand"]])
def test_what_a_scorer_does_to_what_it_was_given_reaches_no_other(install, contrast):
    install(Installed(module(fine=fine, spoils=spoils)))
    model, tokenizer, fact = tiny_model("llama"), word_tokenizer(), capital(contrast=contrast)
    after = ["attribution", "logit_drop", "verified"]
    alone = localize(model, tokenizer, fact, after, progress=False)
    found = localize(model, tokenizer, fact, ["spoils", *after], progress=False)
    for name in after:
        assert found.scores[name] == alone.scores[name]
        for mlp, values in alone.tables[name].neurons.items():
            assert found.tables[name].neurons[mlp].tolist() == values.tolist()
    assert found.tables["attribution"].notes.keys() == {"seconds"}


def test_what_a_scorer_goes_on_doing_changes_no_score_of_its_own(install):
    kept = {}

    def keeps(context):
        found = {site: torch.ones(site.size) for site in context.sites}
        kept.update(found)
        context.notes["list"] = kept["list"] = [1]
        return found

    def later(context):
        for value in kept.values():
            value[0] = 9
        return fine(context)

    install(Installed(module(keeps=keeps, later=later)))
    found = localize(planted(), word_tokenizer(), capital(), ["keeps", "later"], progress=False)
    assert found.tables["keeps"].notes["list"] == [1]
    assert all(bool((values == 1).all()) for values in found.tables["keeps"].neurons.values())


def test_scorers_that_ask_for_each_other_are_refused(install):
    install(Installed(module(one=lambda context: context.score("two"), two=lambda context: context.score("one"))))
    with pytest.warns(PluginWarning), pytest.raises(ScorerError, match="in a circle: one → two → one"):
        localize(planted(), word_tokenizer(), capital(), ["one"], progress=False)


def test_a_scorer_keeps_its_own_hooks_while_it_asks_for_the_scores_of_another(install):
    install(Installed(module(fine=fine, asks=asks)))
    found = localize(planted(), word_tokenizer(), capital(), ["asks"], progress=False)
    assert found.tables["asks"].notes["still there"]


@pytest.mark.usefixtures("bad")
def test_a_command_with_a_scorer_that_fails(tmp_path, fact_file, model_folder):
    for command in ("localize", "edit"):
        options = ["--model", model_folder, "--scorer", "nan", "--out", tmp_path / "out"]
        result = run(command, fact_file, *options, "--quiet")
        assert result.exit_code == 2
        assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["Warning", "Error"]
        assert written(tmp_path) == ["fact.yaml"]


@pytest.mark.usefixtures("bad")
@pytest.mark.parametrize(
    ("scorers", "message", "chosen"),
    [
        (
            ["nan", "fine", "logit_drop"],
            "'nan' failed, so nothing ranks the components; the scores by fine",
            False,
        ),
        (["fine", "nan", "raises"], "but without the scores of 'nan', 'raises', which failed.", True),
    ],
)
def test_what_the_other_scorers_found_is_kept(scorers, message, chosen, tmp_path, fact_file, model_folder):
    out = tmp_path / "out"
    out.mkdir()
    (out / "localization.png").write_bytes(b"of an earlier run")
    names = [word for name in scorers for word in ("--scorer", name)]
    result = run("localize", fact_file, "--model", model_folder, "--out", out, *names, "--quiet", "--overwrite")
    assert result.exit_code == 2
    *warned, last = result.stderr.splitlines()
    assert [line.split(":")[0] for line in warned] == ["Warning"] * (2 if chosen else 1)
    assert last.startswith("Error: ")
    assert message in last
    assert not result.stdout
    found = ps.Localization.load(out / "localization.json")
    assert found.tables.keys() == {"fine", "logit_drop"} - ({"logit_drop"} if chosen else set())
    assert found.errors.keys() == {"nan", "raises"} - (set() if chosen else {"raises"})
    if chosen:
        assert len(ps.Selection.load(out / "localization.json").components) == 10
    else:
        # No picture of what was not chosen, nor of another run.
        assert written(out) == ["localization.json"]
        with pytest.raises(SelectionError, match="is a localization that holds no selection"):
            ps.Selection.load(out / "localization.json")


@pytest.mark.parametrize("error", [SystemExit(0), ImportError("no"), RecursionError("deep")])
def test_a_plugin_that_cannot_be_imported(error, install, tmp_path, fact_file):
    install(Installed(error, "broken"), Installed(module("other", fine=fine), "other"))
    with pytest.warns(PluginWarning, match=f"'broken' of broken was left out: {type(error).__name__}"):
        catalogue = load_scorers()
    assert catalogue["fine"].scorer is fine
    assert [(plugin.name, plugin.fault is None) for plugin in catalogue.plugins] == [
        ("broken", False),
        ("other", True),
    ]
    result = run("scorers")
    assert result.exit_code == 0
    assert "broken of broken: broken, without a file (left out)" in result.stdout
    result = run("edit", fact_file, "--scorer", "nope", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "Error: there is no scorer 'nope'; installed are" in result.stderr.splitlines()[-1]


def test_a_plugin_that_is_left_out_is_told_of_once_a_command(install, model_folder, tmp_path, fact_file):
    install(Installed(ImportError("no"), "broken"))
    for name in ("once", "again"):
        options = ("--model", model_folder, "--scorer", "random", "--out", tmp_path / name)
        result = run("localize", fact_file, *options)
        assert (result.exit_code, result.stderr.count("'broken' of broken was left out")) == (0, 1)


def test_what_a_plugin_prints_is_no_part_of_the_json(install, model_folder, tmp_path, fact_file):
    def prints(context):
        print("so far so good")
        return fine(context)

    install(Installed(module(prints=prints)))
    options = ("--model", model_folder, "--scorer", "prints", "--json", "--quiet", "--out", tmp_path / "out")
    result = run("localize", fact_file, *options)
    assert json.loads(result.stdout)["scorers"] == ["prints"]
    assert "so far so good" in result.stderr


@pytest.mark.usefixtures("bad")
def test_an_edit_whose_ranking_scorer_failed_names_what_would_be_right(model_folder, tmp_path, fact_file):
    options = ("--scorer", "nan", "--scorer", "fine", "--top", 1, "--model", model_folder, "--out", tmp_path / "out")
    result = run("edit", fact_file, *options, "--quiet")
    assert result.exit_code == 2
    words = "Error: the scorer 'nan' failed, so nothing ranks the components; name another first."
    assert result.stderr.splitlines()[-1] == words


def test_what_code_runs_is_shown(install, monkeypatch):
    plugin = module("shown_plugin", shown=fine)
    plugin.__file__ = "/somewhere/shown_plugin.py"
    monkeypatch.setitem(sys.modules, "shown_plugin", plugin)
    install(Installed(plugin, "shown_plugin"))
    text = run("scorers").stdout
    assert "Code of other packages that runs:" in text
    assert "shown_plugin of shown_plugin: shown_plugin, /somewhere/shown_plugin.py" in text
    listed = {item["name"]: item["code"] for item in json.loads(run("scorers", "--json").stdout)}
    assert listed["shown"] == f"{__name__}:fine"
    assert listed["lookup"].startswith("peft_surgical.scorers.lookup:")
    install()
    assert run("scorers").stdout.rstrip().endswith("none")


def test_what_a_plugin_says_cannot_write_to_the_terminal(install):
    def coloured(context):
        "\x1b[31mred\x1b]0;title\x07"

    install(Installed(module(coloured=coloured)), Installed(ImportError("\x1b[2J"), "broken"))
    result = run("scorers")
    assert "red" in result.stdout
    assert "\x1b" not in result.output
    assert "\x07" not in result.output
