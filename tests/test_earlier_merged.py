"""Edits that a checkpoint says it has in its weights, where adapters are put on it."""

import re
import warnings

import pytest
import torch

from peft_surgical.adapters.algebra import power
from peft_surgical.earlier import Earlier
from peft_surgical.errors import AdapterError
from peft_surgical.measuring.attached import attach, attach_dials
from peft_surgical.merging import merge
from peft_surgical.stacking import stack

from . import test_earlier
from .adapters import logits
from .conftest import fingerprint
from .counterfacts import TOKENIZER
from .test_earlier import IDS, base, stock

pytestmark = pytest.mark.usefixtures("few_carried_prompts_throughout")
two = test_earlier.two


def test_what_the_weights_have_already_is_believed(two, model_folder, tmp_path):
    """The first edit, merged, is below the second, and is not folded in again."""
    _, out, _, _ = two
    first, second = out / "france" / "edit", out / "italy" / "edit"
    # Of the same name as the base, which the adapters are for.
    merged = tmp_path / model_folder.name
    merge(base(model_folder), first, merged, tokenizer=TOKENIZER)
    own = fingerprint(base(merged))
    stack([first, second], tmp_path / "both")
    power(first, 2).save(tmp_path / "more")
    for on, words in (
        (first, r"france/edit is in the model's weights already, and then acts twice\.$"),
        ([first, second], "france/edit is in the model's weights already"),
        (tmp_path / "both", "both holds what is in the model's weights already, which then acts twice"),
        (tmp_path / "more", "more holds what is in the model's weights already"),
    ):
        with pytest.raises(AdapterError, match=words):
            Earlier.read(on).check_model(base(merged))
    with pytest.raises(AdapterError, match="italy/edit was trained on top of france/edit; give that before it"):
        Earlier.read(second).check_model(base(model_folder))
    Earlier.read(first).check_model(base(model_folder))
    earlier = Earlier.read(second)
    model = base(merged)
    earlier.check_model(model)
    expected = logits(stock(base(model_folder), first, second), IDS)
    with earlier.folded_into(model):
        torch.testing.assert_close(logits(model, IDS), expected, rtol=1e-4, atol=1e-4)
    assert fingerprint(base(merged)) == own


def test_the_weights_edits_are_told_of_where_adapters_are_put_on_them(two, model_folder, tmp_path):
    _, out, _, _ = two
    first, second = out / "france" / "edit", out / "italy" / "edit"
    merge(base(model_folder), first, tmp_path / "merged", tokenizer=TOKENIZER)
    for place, folders, words in (
        (tmp_path / "merged", [first], "france/edit is in the model's weights already, and then acts twice"),
        (tmp_path / "merged", [second], None),
        (model_folder, [first], None),
        (model_folder, [second], "was trained on top of"),
    ):
        for make in (
            lambda model, folders=folders: merge(model, folders, tmp_path / "again", overwrite=True),
            lambda model, folders=folders: attach(model, folders),
            lambda model, folders=folders: attach_dials(model, folders, [1.0]),
        ):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                make(base(place))
            said = [text for text in (str(one.message) for one in caught) if re.search("on top of|twice", text)]
            assert len(said) == (words is not None), said
            assert words is None or words in said[0]
