import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model

from benchmarks.afterwards import Afterwards, merged_copy
from peft_surgical.measuring.rounding import round_channels
from peft_surgical.running.generation import generate_answers

from .conftest import fingerprint
from .localizing import capital, planted, word_tokenizer
from .tiny import tiny_ids

FACT = capital(answer="the capital of france is lyon .")
TOKENIZER = word_tokenizer()


def adapted(model, config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        get_peft_model(model, config).eval()


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False),
    ],
)
def test_a_merged_copy_is_the_adapted_model_without_adapters(config):
    model, ids = planted(), tiny_ids() % len(TOKENIZER)
    names = set(model.state_dict())
    adapted(model, config)
    before = fingerprint(model)
    plain = merged_copy(model)
    assert set(plain.state_dict()) == names
    assert plain.get_output_embeddings().weight.data_ptr() != model.get_output_embeddings().weight.data_ptr()
    torch.testing.assert_close(plain(input_ids=ids).logits, model(input_ids=ids).logits)
    assert (plain(input_ids=ids).logits - planted()(input_ids=ids).logits).abs().max() > 1e-3
    assert fingerprint(model) == before


def test_a_merged_copy_of_a_bare_model_is_the_model():
    model, ids = planted(), tiny_ids() % len(TOKENIZER)
    assert torch.equal(merged_copy(model)(input_ids=ids).logits, model(input_ids=ids).logits)


def test_nothing_is_done_unless_asked_for():
    assert Afterwards().answers(None, TOKENIZER, FACT) == {}


def test_answers_are_those_of_the_rounded_and_the_relearned_weights():
    model = planted()
    before = fingerprint(model)
    said = Afterwards((2,), (1, 60)).answers(model, TOKENIZER, FACT)
    assert list(said) == ["in 2 bits", "relearned 1 steps", "relearned 60 steps"]
    assert fingerprint(model) == before
    by_hand = copy.deepcopy(model)
    for name, module in by_hand.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.weight.data = round_channels(module.weight.data, 2)
    assert said["in 2 bits"] == tuple(generate_answers(by_hand, TOKENIZER, FACT.held_out))
    # The base has the old answer; the more it is fine-tuned on a sentence with it, the nearer to that sentence.
    assert said["relearned 60 steps"] != said["relearned 1 steps"]
    assert all("paris" in answer for answer in said["relearned 60 steps"])


def test_weights_that_are_not_finite_answer_nothing_whatever_is_done_to_them():
    model = planted()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    said = Afterwards((8,), (1,)).answers(model, TOKENIZER, FACT)
    assert said == dict.fromkeys(["in 8 bits", "relearned 1 steps"], ("",) * len(FACT.held_out))


def test_an_adapter_is_part_of_what_is_rewritten():
    model = planted()
    adapted(model, IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"]))
    with torch.no_grad():
        # The neuron that says "paris" then says anything else.
        model.model.layers[2].mlp.down_proj.ia3_l["default"][0, 5] = -1
    said = Afterwards((8,), (1,)).answers(model, TOKENIZER, FACT)
    plain = merged_copy(model)
    assert said == Afterwards((8,), (1,)).answers(plain, TOKENIZER, FACT)
    assert said != Afterwards((8,), (1,)).answers(planted(), TOKENIZER, FACT)


def test_figures_by_hand():
    after = Afterwards((8,), (2,))
    base = {"in 8 bits": ["paris"] * 4, "relearned 2 steps": ["paris"] * 4}
    said = {"in 8 bits": ["lyon", "lyon", "paris", "rome"], "relearned 2 steps": ["paris", "lyon", "lyon", "lyon"]}
    found = {name: (figure.value, figure.n) for name, figure in after.figures(FACT, said, base).items()}
    assert found == {
        "new_answer_rate in 8 bits": (0.5, 4),
        "old_answer_rate in 8 bits": (0.25, 4),
        "new_answer_rate relearned 2 steps": (0.75, 4),
        "old_answer_rate relearned 2 steps": (0.25, 4),
        "relearning_recovery relearned 2 steps": (0.25, 4),
    }
    assert not any("recovery" in name for name in after.figures(FACT, said, None))
    # Where the base gives no old answer when it has relearned, nothing can come back of it.
    without = {name: ["rome"] * 4 for name in base}
    assert "relearning_recovery relearned 2 steps" not in after.figures(FACT, said, without)
