"""The third party's plugin: installed as its users would, found by its entry point, passing its own tests."""

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import peft_surgical as ps
from peft_surgical import plugins

from .localizing import HEAD, MLP, capital, planted, word_tokenizer

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = ROOT / "plugins" / "peft-surgical-direct-logit"


def test_it_installs_and_passes_its_own_tests(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(PLUGIN, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, capture_output=True, text=True)
    [licence] = site.glob("*.dist-info/**/LICENSE")
    assert licence.read_bytes() == (ROOT / "LICENSE").read_bytes()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(source / "tests")]
    done = subprocess.run(pytest, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


def test_it_finds_what_writes_the_answer_and_not_what_feeds_that(monkeypatch):
    """On the planted circuit patching needs both; only the MLP writes the answer itself."""
    monkeypatch.syspath_prepend(PLUGIN)
    plugin = import_module("peft_surgical_direct_logit")
    point = SimpleNamespace(name="direct_logit", value=plugin.__name__, dist=None, load=lambda: plugin)
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: [point])
    loc = ps.localize(planted(), word_tokenizer(), capital(), ["direct_logit", "logit_drop"], progress=False)
    direct, causal = loc.scores["direct_logit"], loc.scores["logit_drop"]
    assert loc.top(1).components == (MLP,)
    assert direct[MLP] > 0.5 * causal[MLP] > 0
    assert causal[HEAD] > 0.5 * causal[MLP]
    # What the head writes no logit reads; it adds to the norm, which lowers them all.
    assert direct[HEAD] < 0
    # The one neuron that does it.
    assert loc.top(1, neurons=1).neurons == {MLP: ((5, 6),)}


def test_its_scorer_is_short():
    assert len((PLUGIN / "peft_surgical_direct_logit.py").read_text().splitlines()) <= 40
