from dataclasses import replace

import pytest
import torch

from benchmarks.baselines.fitting import decoder_layers
from benchmarks.baselines.keyed import Keyed, mean_neurons, place, second_moments, values_watched
from benchmarks.baselines.mlps import output_projection
from benchmarks.baselines.restoring import adapters_taken_off
from peft_surgical import retain
from peft_surgical.errors import FactError, SelectionError
from peft_surgical.prompts import EncodedAnswer, span
from peft_surgical.retained import Rows
from peft_surgical.suffix import SuffixRunner

from .adapters import logits
from .counterfacts import REQUEST, TOKENIZER, word_model
from .tiny import tiny_ids

IDS = tiny_ids() % len(TOKENIZER)
ROWS = tuple(EncodedAnswer(tuple(ids), len(ids) - 1) for ids in ([3, 7, 5, 9], [4, 8], [6, 2, 11, 10, 1, 12]))
MARKS = ([1, 2], [1], [0, 5])
FAMILIES = ["llama", "gpt2", "phi3"]


@pytest.fixture(autouse=True)
def few_carried_prompts(monkeypatch):
    everyday, general = retain.everyday_prompts()[:3], retain.general_prompts()[:3]
    monkeypatch.setattr(retain, "everyday_prompts", lambda: everyday)
    monkeypatch.setattr(retain, "general_prompts", lambda: general)


def neurons_one_by_one(model, layer):
    """What enters an MLP's output projection, `[token, neuron]` a row, read a row at a time."""
    found = []
    handle = output_projection(model, layer).register_forward_pre_hook(lambda _, args: found.append(args[0]))
    for row in ROWS:
        model(torch.tensor([row.ids]))
    handle.remove()
    return [own.reshape(len(row.ids), -1).double() for own, row in zip(found, ROWS, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_and_keys_are_those_of_single_rows(family):
    model = word_model(family)
    moments, keys = second_moments(model, ROWS, [0, 1]), mean_neurons(model, ROWS, MARKS, [0, 1])
    for layer in (0, 1):
        single = neurons_one_by_one(model, layer)
        others = torch.cat([own[1:] for own in single])
        marked = torch.cat([own[list(marks)] for own, marks in zip(single, MARKS, strict=True)])
        torch.testing.assert_close(moments[layer], others.T @ others / len(others), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(keys[layer], marked.mean(0), rtol=1e-4, atol=1e-6)


def test_a_direction_reads_the_subject_whole_and_solves_for_the_least_of_the_rest():
    model, method = word_model(), Keyed()
    # What is carried and not kept may be what an evaluation asks, and must not be looked at.
    kept = Rows(ROWS, 2, (ROWS[2], EncodedAnswer((5, 4, 3, 9), 3)), (0,))
    [direction] = method.directions(model, ROWS, MARKS, kept, [1]).values()
    direction = direction.double()
    key = mean_neurons(model, ROWS, MARKS, [1])[1]
    total = second_moments(model, ROWS[:2], [1])[1] + second_moments(model, ROWS[2:], [1])[1]
    ridge = method.ridge * total.diagonal().mean()
    torch.testing.assert_close(direction @ key, torch.ones(()).double(), rtol=1e-5, atol=0.0)
    # Of all that read the key whole it is the one with the least Σ (a·x)² over what is kept, ridge included: there the
    # gradient points along the key.
    slope = total @ direction + ridge * direction
    torch.testing.assert_close(slope, key * (slope @ direction), rtol=1e-3, atol=1e-6 * float(slope.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_added_as_far_as_the_direction_is_met_and_merge(family):
    model = word_model(family)
    plain = logits(model, IDS)
    projection = output_projection(model, 1)
    generator = torch.Generator().manual_seed(0)
    width = second_moments(model, ROWS, [1])[1].shape[0]
    direction = torch.randn(width, generator=generator)
    rng = torch.get_rng_state()
    with adapters_taken_off(model):
        value = place(model, {1: direction})[1]
        assert torch.equal(torch.get_rng_state(), rng)
        assert torch.equal(logits(model, IDS), plain)
        assert [name for name, p in model.named_parameters() if p.requires_grad and p is not value] == []
        with torch.no_grad():
            value.normal_(generator=generator)
        adapted = output_projection(model, 1)
        x = torch.randn(4, width, generator=generator)
        added = (x @ direction)[:, None] * value.detach()[:, 0]
        torch.testing.assert_close(adapted(x), projection(x) + added, rtol=1e-4, atol=1e-4)
        edited = logits(model, IDS)
        adapted.merge()
        torch.testing.assert_close(logits(model, IDS), edited, rtol=1e-4, atol=1e-4)
        adapted.unmerge()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_has_the_gradient_that_it_has_alone(family):
    model = word_model(family)
    width = second_moments(model, ROWS, [1])[1].shape[0]
    generator = torch.Generator().manual_seed(0)
    with adapters_taken_off(model):
        values = place(model, {layer: torch.randn(width, generator=generator) for layer in (0, 1)})
        with torch.no_grad():
            for value in values.values():
                value.normal_(0, 0.1, generator=generator)
        runner = SuffixRunner(model, decoder_layers(model), 0)
        runner.add([row.ids for row in ROWS])
        with values_watched(model, [*values]) as found:
            found.rows, found.tokens = len(ROWS), max(len(row.ids) for row in ROWS)
            runner.logits(range(len(ROWS)), [span(row) for row in ROWS]).logsumexp(-1).sum().backward()
        for i, row in enumerate(ROWS):
            for value in values.values():
                value.grad = None
            runner.logits([i], [span(row)]).logsumexp(-1).sum().backward()
            for position, value in enumerate(values.values()):
                torch.testing.assert_close(found.gradients[position][i], value.grad[:, 0], rtol=1e-3, atol=1e-5)


def test_all_layers_are_changed_unless_some_are_named():
    model = word_model()
    changed = {}
    for layers in (None, (1,)):
        before = [output_projection(model, layer).weight.clone() for layer in (0, 1)]
        with Keyed(layers=layers).edit(model, TOKENIZER, REQUEST, 0):
            adapted = [output_projection(model, layer) for layer in (0, 1)]
            changed[layers] = [hasattr(own, "lora_B") and bool(own.lora_B["default"].weight.any()) for own in adapted]
        for layer, weight in enumerate(before):
            assert torch.equal(output_projection(model, layer).weight, weight)
    assert changed == {None: [True, True], (1,): [False, True]}


def test_what_has_no_key_or_no_layer_is_refused():
    model = word_model()
    with (
        pytest.raises(FactError, match="no prompt names the subject 'spain'"),
        Keyed().edit(model, TOKENIZER, replace(REQUEST, subject="spain"), 0),
    ):
        pass
    with pytest.raises(SelectionError, match="no layer 9"), Keyed(layers=(9,)).edit(model, TOKENIZER, REQUEST, 0):
        pass
