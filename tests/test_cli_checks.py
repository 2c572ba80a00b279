from dataclasses import replace

import pytest

import peft_surgical as ps
from peft_surgical.adapters.bases import revision_of
from peft_surgical.choice import EDIT_PROJECTIONS
from peft_surgical.cli import checks
from peft_surgical.cli.options import Source
from peft_surgical.earlier import Earlier
from tests.adapters import saved, tiny_peft
from tests.command_line import run, said
from tests.localizing import planted


def test_all_that_a_model_has_can_be_asked_for():
    model = planted()
    limits = {"top": 15, "heads": 12, "mlps": 3, "budget": None}
    checks.model_has(model, None, limits, EDIT_PROJECTIONS, neurons=48)


def test_a_selection_of_another_model_is_refused():
    model, none = planted(), dict.fromkeys(("top", "heads", "mlps", "budget"))
    shape = replace(ps.ModelShape.from_config(model.config), n_layers=2)
    with pytest.raises(ps.SelectionError, match="made on another model"):
        checks.model_has(model, ps.Selection(("L1.mlp",), shape), none, EDIT_PROJECTIONS)


def test_earlier_edits_are_looked_for_in_the_revision_that_is_named(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Earlier, "check_lineage", lambda self, model: asked.append(revision_of(model)))
    adapter = saved(tiny_peft(), tmp_path / "adapter")
    for revision in ("abc", None):
        checks.earlier([adapter], Source("some/model", "auto", None, False, revision), tmp_path / "out")
    assert asked == ["abc", None]


@pytest.mark.usefixtures("no_model")
def test_a_folder_that_is_called_demo_is_not_the_demo_model(tmp_path, monkeypatch):
    adapter = saved(tiny_peft(), tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert "a model was loaded" in run("merge", adapter, "--out", "demo").output
    line = said(run("merge", adapter, "--model", "./demo", "--out", "demo"), 2)
    assert line == "Error: the output demo would replace ./demo, which is read for it; name another folder."
