import os

import pytest
import yaml
from huggingface_hub import ModelCard

from peft_surgical.adapters.bases import hub_id
from peft_surgical.adapters.cards import card_header, card_use


@pytest.mark.parametrize("name", ["org/model-1", "gpt2", "1.0", "123", "yes", "null", "a_b/c.d"])
def test_the_header_names_the_base_as_text(name):
    header = card_header(name, "CAUSAL_LM", "ia3")
    assert yaml.safe_load(header.strip("-\n"))["base_model"] == name
    assert ModelCard(header + "\n").data.base_model == name


@pytest.mark.parametrize("name", ["models/x.gguf", "a--b", "a/..", "./here", "/there", "a/b/c", "", None, ".hidden/x"])
def test_what_the_hub_does_not_take_is_no_id(name):
    assert hub_id(name) is None
    assert "base_model" not in card_header(name, None, "ia3")
    assert "path/to/the/base" in card_use(name)


def test_a_folder_that_is_here_is_no_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("org/model") == "org/model"
    os.makedirs("org/model")
    assert hub_id("org/model") is None


@pytest.mark.parametrize("stages", [[], ["learn"], ["un'learn", 'my "x"']])
def test_the_code_of_a_card_is_code_whatever_adapters_are_called(stages):
    use = card_use("org/model", stages)
    code = use.split("```")[1].removeprefix("python\n")
    compile(code, "card", "exec")
    assert ("import peft_surgical as ps" in code) == bool(stages)
    assert ("do not load it" in use) == (len(stages) < 2)
