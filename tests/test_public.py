"""What a package that depends on this one sees."""

import inspect
import re
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

import peft_surgical as ps

from .localizing import capital, word_tokenizer
from .tiny import tiny_model

ROOT = Path(__file__).resolve().parents[1]


def test_classes_that_public_signatures_name_are_public():
    functions = [value for name in ps.__all__ if inspect.isfunction(value := getattr(ps, name))]
    found = {}
    for function in map(inspect.unwrap, functions):
        signature = inspect.signature(function)
        given = [*(each.annotation for each in signature.parameters.values()), signature.return_annotation]
        for word in re.findall(r"\b[A-Z]\w+", " ".join(map(str, given))):
            found[word] = function.__globals__.get(word)
    own = {name for name, value in found.items() if getattr(value, "__module__", "").startswith("peft_surgical")}
    assert {"Fact", "Retained", "SurgicalIA3Config"} <= own <= {*ps.__all__}
    assert {"EditOrPath", "Mergeable", "State", "Way"} <= found.keys() & {*ps.__all__}


def test_what_is_no_fact_is_refused_wherever_a_fact_is_asked_for():
    asked = 0
    for function in (value for name in ps.__all__ if inspect.isfunction(value := getattr(ps, name))):
        parameters = inspect.signature(function).parameters
        if "fact" in parameters:
            asked += 1
            given = {name: None for name, each in parameters.items() if each.default is each.empty}
            with pytest.raises(ps.FactError, match=r"such as Fact\.from_file\(\.\.\.\) gives, not 'france\.yaml'"):
                function(**given | {"fact": "france.yaml"})
            assert "FactError: " in inspect.getdoc(function), function
    assert asked == 12


def test_what_is_no_model_is_refused_wherever_a_model_is_asked_for():
    fact, pair, asked = capital(), (tiny_model("llama"), word_tokenizer()), 0
    stage = SimpleNamespace(model=pair[0])
    for function in (value for name in ps.__all__ if inspect.isfunction(value := getattr(ps, name))):
        parameters = inspect.signature(function).parameters
        if "model" in parameters:
            asked += 1
            given = {name: None for name, each in parameters.items() if each.default is each.empty} | {"fact": fact}
            given = {name: value for name, value in given.items() if name in parameters}
            for model, told in ((None, "None"), (pair, r"\(LlamaForCausalLM\(.*\)"), (stage, ".*; give its model")):
                match = rf"^a model must be a torch module, such as load_model gives, not {told}\.$"
                with pytest.raises(ps.ModelError, match=match):
                    function(**given | {"model": model})
            assert "ModelError: " in inspect.getdoc(function), function
    assert asked == 23


def test_what_is_imported_is_required():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    lines = [line for text in lists for line in text.split("\n") if line[:1].isalpha()]
    required = {_plain(re.split(r"[^\w-]", line)[0]) for line in lines}
    imported = {
        found[1]
        for path in (ROOT / "peft_surgical").rglob("*.py")
        for found in re.finditer(r"^\s*(?:from|import) ([a-z_0-9]+)", path.read_text(encoding="utf-8"), re.M)
    }
    providers = metadata.packages_distributions()
    others = {name for name in imported if name in providers and not name.startswith("peft_surgical")}
    assert {"torch", "huggingface_hub"} <= others
    assert [name for name in sorted(others) if not {*map(_plain, providers[name])} & required] == []


def _plain(name):
    return name.lower().replace("_", "-")
