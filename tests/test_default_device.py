"""What the caller's `torch.set_default_device` is decides nothing; one without values shows where it would."""

from contextlib import nullcontext

import pytest
import torch
from peft import get_peft_model

import peft_surgical as ps
from peft_surgical.adapters.algebra import power, product
from peft_surgical.adapters.edits import ModuleScale
from peft_surgical.architectures import output_projections
from peft_surgical.keying.keys import Marked, moments
from peft_surgical.measuring.relearning import relearned_state
from peft_surgical.sentence import sample_contexts
from peft_surgical.staging.curvature import Metric, _generator, _signs
from peft_surgical.texts.prompts import EncodedAnswer
from peft_surgical.tuner import Coordinates, activate
from tests.adapters import OTHER_COMPONENTS, add, deltas, logits, saved, tiny_peft
from tests.localizing import capital, localized, planted, word_tokenizer
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("few_carried_prompts")

TOKENIZER = word_tokenizer()


def elsewhere():
    return torch.device("meta")


def both(work, given=lambda: None):
    """What some work gives without a default device and with one, on what `given` makes."""
    found = []
    for context in (nullcontext, elsewhere):
        made = given()
        with context():
            found.append(work(made))
    return found


def test_scales_are_multiplied_alike():
    one = ModuleScale(Coordinates("input", ((0, 2), (4, 5))), torch.tensor([2.0, 3.0, 0.5]))
    other = ModuleScale(Coordinates("input", ((1, 5),)), torch.tensor([2.0, 3.0, 0.5, 4.0]))
    plain, there = both(lambda _: product([power(ps.Edit({"a": one}), 2), ps.Edit({"a": other})]))
    assert plain.modules == there.modules
    assert torch.equal(one.dense(6), both(lambda _: one.dense(6))[1])


def test_adapters_are_stacked_alike(tmp_path):
    model = tiny_peft()
    add(model, "other", OTHER_COMPONENTS)
    folders = [saved(model, tmp_path / name, name) for name in ("default", "other")]
    ps.stack(folders, tmp_path / "plain")
    with elsewhere():
        ps.stack(folders, tmp_path / "there")
    names = [path.name for path in (tmp_path / "plain").iterdir()]
    assert all((tmp_path / "plain" / name).read_bytes() == (tmp_path / "there" / name).read_bytes() for name in names)


def test_an_adapter_goes_on_and_runs_alike():
    def put_on(model):
        selections = {"model.layers.1.mlp.down_proj": {"side": "input", "ranges": [[0, 4], [6, 8]]}}
        adapted = get_peft_model(model, ps.SurgicalIA3Config(selections=selections))
        adapted.base_model.add_edit(ps.Edit({"model.layers.1.mlp.up_proj": scale}), "more")
        activate(adapted, ["default", "more"])
        return adapted

    scale = ModuleScale(Coordinates("output", ((1, 3),)), torch.tensor([2.0, 3.0]))
    plain, there = both(put_on, lambda: tiny_model("llama"))
    assert torch.equal(logits(plain), logits(there))
    assert not torch.equal(logits(plain), logits(tiny_model("llama")))


def test_a_fact_is_traced_alike():
    def traced(model):
        return ps.causal_trace(model, TOKENIZER, capital(contrast=["new zealand"]), least=1e-6, progress=False)

    plain, there = both(traced, planted)
    assert len(plain.prompts) >= 1
    assert plain == there


@pytest.mark.parametrize("scorers", [["random"], ["attribution"], ["verified"], ["consensus"]], ids=str)
def test_a_fact_is_localized_alike(scorers):
    def scored(model):
        found = localized(model, TOKENIZER, *scorers).to_dict()
        for note in found["notes"].values():
            del note["seconds"]
        return {key: value for key, value in found.items() if key != "seconds"}

    plain, there = both(scored, planted)
    assert plain == there


def test_what_is_drawn_is_drawn_alike():
    row = EncodedAnswer((1, 2, 3), 1)
    plain, there = both(lambda _: _signs(_generator(3, row), 2, 9))
    assert torch.equal(plain, there)
    one, other = both(lambda model: sample_contexts(model, TOKENIZER, 2, 5), planted)
    assert one == other


def test_keys_and_metrics_are_computed_where_their_texts_are():
    model = planted()
    rows = Marked.whole([EncodedAnswer((3, 4, 5), 2)])
    plain, there = both(lambda _: moments(model, output_projections(model, [1]), [rows]))
    assert all(torch.equal(a, b) for name in plain for a, b in zip(plain[name], there[name], strict=True))
    metrics = both(lambda _: Metric.of([torch.ones(3, device="cpu")]))
    assert metrics[1].factor.device.type == "cpu"


def test_answers_are_the_same():
    model = planted()
    plain, there = both(lambda _: ps.generate_answers(model, TOKENIZER, capital().held_out, max_new_tokens=3))
    assert plain == there


def test_neurons_are_placed_and_set_alike():
    recipe = ps.KeyedRecipe(steps=1)

    def taught(model):
        stage = ps.learn_keyed(model, TOKENIZER, capital(), layers=[1], recipe=recipe, progress=False)
        return {name: p.tolist() for name, p in stage.model.named_parameters() if "lora_" in name}

    plain, there = both(taught, planted)
    assert plain == there


def test_a_stage_is_trained_alike():
    config = ps.SurgicalIA3Config(components=["L1.mlp"], task_type="CAUSAL_LM")

    def taught(model):
        recipe = ps.Recipe(steps=1)
        return deltas(ps.unlearn(model, TOKENIZER, capital(), config, recipe=recipe, progress=False).model)

    plain, there = both(taught, planted)
    assert all(torch.equal(delta, there[name]) for name, delta in plain.items())


def test_the_old_answer_is_relearned_alike():
    def answers(model):
        with relearned_state(model, TOKENIZER, capital(), [], 2, learning_rate=1e-2)():
            return model(torch.tensor([[3, 4, 5]], device="cpu")).logits

    plain, there = both(answers, planted)
    assert torch.equal(plain, there)
