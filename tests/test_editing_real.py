"""A whole edit of the demo model, in few steps."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from peft_surgical import edit
from peft_surgical.facts import Fact
from peft_surgical.models import load_model
from peft_surgical.staging.recipe import Recipe

from .adapters import logits


@pytest.mark.real
def test_an_edit_of_the_demo_model(tmp_path):
    whole = Fact.from_file("examples/facts/france_capital.yaml")
    fact = replace(
        whole,
        prompts=whole.prompts[:4],
        held_out=whole.held_out[:3],
        controls=whole.controls[:3],
        retain=whole.retain[:3],
        probes=(),
        portability=(),
    )
    model, tokenizer = load_model("demo", dtype="float32")
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    base = logits(model, ids)
    recipe = Recipe(steps=2, neighbours=4, general=0, near_batch=4, fact_batch=4)
    report = edit(model, tokenizer, fact, out=tmp_path / "out", recipe=recipe, retention_tokens=128, progress=False)
    assert all(name.endswith(".mlp") for name in report.selection["components"])
    assert len(report.selection["components"]) == 30
    assert report.stages["base"]["kl_per_token"].value == 0 < report.stages["edited"]["kl_per_token"].value
    edited = logits(model, ids)
    assert not torch.equal(edited, base)
    fresh, _ = load_model("demo", dtype="float32")
    plain = PeftModel.from_pretrained(fresh, tmp_path / "out" / "edit")
    assert torch.equal(logits(plain, ids), edited)
    with plain.disable_adapter():
        assert torch.equal(logits(plain, ids), base)
