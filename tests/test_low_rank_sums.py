"""What several LoRA adapters add, as one, and one that comes from no file."""

import pytest
import torch
from peft import PeftConfig, PeftModel
from peft.utils.other import get_pattern_key
from transformers import AutoModelForCausalLM

from peft_surgical.adapters.lineage import Lineage
from peft_surgical.adapters.low_rank import LowRank, total
from peft_surgical.errors import AdapterError
from peft_surgical.merging import merge

from .adapters import logits
from .test_low_rank import FAMILIES, OWN, lora
from .tiny import tiny_model


def both(family, tmp_path, **options):
    """Two adapters of other ranks and, in part, on other modules, and stock PEFT's model with both of them."""
    lora(family, tmp_path / "one", **options)
    more = {"target_modules": [FAMILIES[family], "gate_proj"]} if family == "llama" else {}
    lora(family, tmp_path / "two", seed=1, r=3, **more)
    model = PeftModel.from_pretrained(tiny_model(family), tmp_path / "one", adapter_name="one")
    model.load_adapter(tmp_path / "two", "two")
    model.base_model.set_adapter(["one", "two"])
    return [tmp_path / "one", tmp_path / "two"], model.eval()


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, OWN])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_of_two_adds_what_both_do_in_peft_and_merged(family, options, tmp_path):
    folders, model = both(family, tmp_path, **options)
    assert not torch.allclose(logits(model), logits(tiny_model(family)), atol=1e-2)
    one = total([LowRank.load(folder) for folder in folders])
    one.save(tmp_path / "sum")
    loaded = PeftModel.from_pretrained(tiny_model(family), tmp_path / "sum").eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)
    again = LowRank.load(tmp_path / "sum")
    assert again.factors.keys() == one.factors.keys()
    assert all(torch.equal(again.added(name), one.added(name)) for name in one.factors)
    merge(tiny_model(family), folders, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-5, atol=1e-5)


def test_it_is_pefts_combination_cat(tmp_path):
    folders, model = both("llama", tmp_path)
    total([LowRank.load(folder) for folder in folders]).save(tmp_path / "sum")
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "cat", combination_type="cat")
    ours = LowRank.load(tmp_path / "sum")
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    torch.testing.assert_close(ours.added("model.layers.1.mlp.down_proj"), layer.get_delta_weight("cat"))
    assert ours.rank == layer.lora_A["cat"].weight.shape[0] == 5


def test_adapters_of_other_widths_do_not_add_up():
    first = LowRank({"a": (torch.ones(1, 4), torch.ones(3, 1))})
    for rows, columns in ((3, 5), (2, 4)):
        other = LowRank({"a": (torch.ones(1, columns), torch.ones(rows, 1))}, name="other")
        with pytest.raises(
            AdapterError, match=f"other adds {rows} by {columns} numbers to a, and another adapter 3 by 4"
        ):
            total([first, other])
    with pytest.raises(AdapterError, match="nothing to add up"):
        total([])


def test_what_one_adapter_alone_says_of_its_base_holds_for_the_sum():
    said = {"base_model": "org/base", "revision": "1", "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}
    factors = {"a": (torch.ones(1, 4), torch.ones(3, 1))}
    for first, second in ((said, {}), ({}, said)):
        found = total([LowRank(factors, **first), LowRank(factors, **second)])
        assert {name: getattr(found, name) for name in said} == said


def test_a_name_that_others_end_in_keeps_its_own_rank_and_strength(tmp_path):
    def factors(rank):
        return torch.ones(rank, 4), torch.ones(3, rank)

    made = LowRank(
        {"head": factors(1), "last.head": factors(2)},
        scaling={"head": 2.0, "last.head": 3.0},
        fan_in_fan_out=True,
    )
    made.save(tmp_path / "a")
    assert LowRank.load(tmp_path / "a") == made
    config = PeftConfig.from_pretrained(tmp_path / "a")
    found = {name: config.rank_pattern[get_pattern_key(config.rank_pattern, name)] for name in made.factors}
    assert found == {"head": 1, "last.head": 2}


def test_the_card_says_what_it_stands_on_and_of_which_revision_the_base_is(tmp_path):
    factors = {"a": (torch.ones(1, 4), torch.ones(3, 1))}
    lineage = Lineage(after=("france/edit", "france/edit"))
    LowRank(factors, "org/base", "v2", lineage=lineage).save(tmp_path / "a")
    card = (tmp_path / "a" / "README.md").read_text()
    assert "It was trained on top of `france/edit` and is made for a model on which that acts, too" in card
    assert 'from_pretrained("org/base", revision="v2")' in card
