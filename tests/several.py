"""What the tests of several edits share: facts, and an edit of all."""

from dataclasses import replace

import pytest
import torch

from peft_surgical import many
from peft_surgical.adapters.adapter_files import WEIGHTS
from peft_surgical.adapters.scale_files import read_tensors
from peft_surgical.editing import edit
from peft_surgical.keyed_edit import edit_keyed
from peft_surgical.many import edit_all

from . import test_earlier, test_editing, test_keyed
from .counterfacts import TOKENIZER
from .localizing import capital

FRANCE = capital(controls=[{"prompt": "where is rome ?", "answer": ["italy"]}, {"prompt": "a sky", "answer": ["a"]}])
ITALY = replace(test_earlier.ITALY, contrast=("spain", "japan"))
JAPAN = capital(
    subject="japan",
    old=["town"],
    new=["hamlet"],
    prompts=["what is the capital of japan ?", "name the capital of japan ."],
    held_out=["which city is the seat of government of japan ?"],
    contrast=["spain"],
    controls=[{"prompt": "who wrote the sky ?", "answer": ["a"]}],
)
KINDS = {True: (edit_keyed, test_keyed.RECIPE), False: (edit, test_editing.RECIPE)}


def made(model, facts, out, *, kind=True, **options):
    options = {"recipe": KINDS[kind][1], "retention_tokens": 64, "progress": False, **options}
    return edit_all(model, TOKENIZER, facts, out=out, keyed=kind, **options)


def tensors(folder):
    return read_tensors(folder / WEIGHTS)


def equal(one, other):
    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def edits(monkeypatch):
    """Counts the edits that are made, by subject; one that is called `stop` is interrupted."""
    found = []

    def counting(model, tokenizer, fact, **options):
        if fact.subject in stop:
            raise KeyboardInterrupt
        found.append(fact.subject)
        return edit_keyed(model, tokenizer, fact, **options)

    stop = set()
    monkeypatch.setattr(many, "edit_keyed", counting)
    return found, stop
