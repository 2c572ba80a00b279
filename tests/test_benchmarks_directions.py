"""The direction among an MLP's neurons that reads a subject off."""

import pytest
import torch

import peft_surgical as ps
from benchmarks.directions import find_directions
from peft_surgical.architectures import output_projections
from peft_surgical.errors import SelectionError
from peft_surgical.keying import keys
from peft_surgical.keying.keys import Marked, marked_neurons
from peft_surgical.texts.prompts import EncodedAnswer, encode, encode_answer, swap_subject
from peft_surgical.texts.subjects import subject_spans
from peft_surgical.texts.wording import variants

from .counterfacts import word_model
from .test_keys import ALL, FAMILIES, KINDS, OTHERS, RIDGE, ROWS, SUBJECT, neurons_one_by_one, single


@pytest.mark.parametrize("family", FAMILIES)
def test_a_direction_is_the_least_squares_reading_of_the_subject(family):
    model = word_model(family)
    modules = output_projections(model)
    found = find_directions(model, modules, [SUBJECT], KINDS, RIDGE)
    assert [*found] == [*modules]
    for name, direction in found.items():
        own, others = single(model, name)
        ridge = RIDGE * sum((kind.T @ kind / len(kind)).diagonal().mean() for kind in others)

        def loss(a, own=own, others=others, ridge=ridge):
            missed = (own @ a - 1).square().mean()
            return missed + sum((kind @ a).square().mean() for kind in others) + ridge * a.square().sum()

        # Its length is chosen by the mean; along the ray the least loss has a gradient of 0.
        a = direction.double()
        torch.testing.assert_close(own.mean(0) @ a, torch.ones(()).double(), rtol=1e-4, atol=0.0)
        curved = sum((kind @ a).square().mean() for kind in (own, *others)) + ridge * a.square().sum()
        best = (a / curved).requires_grad_(True)
        loss(best).backward()
        torch.testing.assert_close(
            best.grad, torch.zeros_like(a), rtol=0.0, atol=2e-3 * float(own.mean(0).abs().max())
        )


def test_every_spelling_of_the_subject_is_met_about_alike():
    model = word_model()
    [name] = output_projections(model, [1])
    with torch.no_grad():
        # A token whose neurons are many times as large as others', as a rare spelling's are.
        model.get_input_embeddings().weight[5] *= 30
    own, met = single(model, name)[0], {}
    for weight in (0.0, 1.0):
        found = find_directions(model, {name: 1}, [SUBJECT], [ALL], RIDGE, weight)[name]
        met[weight] = own @ found.double()
        torch.testing.assert_close(met[weight].mean(), torch.ones(()).double(), rtol=1e-4, atol=0.0)
    # Without the subject's own second moment it is ROME's direction.
    other = torch.cat([rows[1:] for rows in neurons_one_by_one(model, name, OTHERS)])
    total = other.T @ other / len(other)
    total.diagonal().add_(RIDGE * total.diagonal().mean())
    direction = torch.linalg.solve(total, own.mean(0))
    torch.testing.assert_close(met[0.0], own @ (direction / (direction @ own.mean(0))), rtol=1e-3, atol=1e-3)
    assert met[1.0].std() < 0.5 * met[0.0].std()


def test_little_room_changes_nothing(monkeypatch):
    model = word_model()
    modules = output_projections(model)
    whole = find_directions(model, modules, [SUBJECT], [ALL], RIDGE)
    monkeypatch.setattr(keys, "_ROOM", 1)
    apart = find_directions(model, modules, [SUBJECT], [ALL], RIDGE)
    assert all(torch.equal(whole[name], apart[name]) for name in modules)


@pytest.mark.real
def test_wordings_that_were_not_among_the_keys_meet_the_direction_and_other_countries_do_not(demo):
    model, tokenizer = demo
    fact = ps.Fact.from_file("examples/facts/france_capital.yaml")
    modules = output_projections(model, [4, 12])

    def named(prompts, subject="France"):
        rows = [encode_answer(tokenizer, prompt, fact.answer) for prompt in prompts]
        marks = [
            [found[-1] for found in subject_spans(tokenizer, prompt, subject, encode(tokenizer, prompt))]
            for prompt in prompts
        ]
        return Marked(rows, marks)

    def met(prompts, subject="France"):
        batches = list(marked_neurons(model, modules, named(prompts, subject)))
        return {name: torch.cat([batch[name] for batch in batches]) @ own for name, own in found.items()}

    others = [swap_subject(prompt, "France", "Italy") for prompt in fact.prompts]
    kept = [encode_answer(tokenizer, prompt, "I do not know.") for prompt in (*fact.retain, *others)]
    found = find_directions(model, modules, [named(variants(fact.prompts))], [Marked.whole(kept)], RIDGE)
    asked = [prompt for prompt in fact.held_out if "France" in prompt]
    unseen = [swap_subject(prompt, "France", "Norway") for prompt in asked]
    for name in modules:
        own, other = met(asked)[name], met(unseen, "Norway")[name]
        assert 0.8 < own.mean() < 1.1
        assert own.min() > 0.4
        assert other.abs().max() < own.min()
        assert other.abs().mean() < 0.2


def test_what_is_told_apart_besides_does_not_set_the_ridge():
    model = word_model()
    [name] = modules = output_projections(model, [1])
    texts = [EncodedAnswer(ids, len(ids)) for ids in [(5, 7), (7, 5), (9, 5), (7, 9)]]
    first = Marked.first_of(texts, [[0], [1]])
    assert [row.ids for row in first.rows] == [(7,), (9,)]
    assert first.marks == [[0], [0]]
    found, without = (
        find_directions(model, modules, [SUBJECT], [ALL], RIDGE, besides=besides)[name] for besides in ([first], [])
    )
    own, others = single(model, name)[0], torch.cat([rows[1:] for rows in neurons_one_by_one(model, name, OTHERS)])
    beside = torch.cat(neurons_one_by_one(model, name, first.rows))
    kept = others.T @ others / len(others)
    total = kept + own.T @ own / len(own) + beside.T @ beside / 2
    total.diagonal().add_(RIDGE * kept.diagonal().mean())
    expected = torch.linalg.solve(total, own.mean(0))
    torch.testing.assert_close(found.double(), expected / (expected @ own.mean(0)), rtol=1e-3, atol=1e-3)
    met, met_without = ((beside.float() @ own).abs().max() for own in (found, without))
    assert met < met_without / 2


def test_names_of_the_subject_count_alike():
    model = word_model()
    [name] = modules = output_projections(model, [1])
    # Three texts of one name and one of another are as one of each.
    first, second = Marked(ROWS[:1] * 3, [[1, 2]] * 3), Marked(ROWS[1:2], [[1]])
    found = find_directions(model, modules, [first, second], KINDS, RIDGE)[name]
    own = [neurons_one_by_one(model, name, [row])[0][at] for row, at in ((ROWS[0], [1, 2]), (ROWS[1], [1]))]
    key = sum(marked.mean(0) for marked in own) / 2
    kept = sum(kind.T @ kind / len(kind) for kind in single(model, name)[1])
    total = kept + sum(marked.T @ marked / len(marked) for marked in own) / 2
    total.diagonal().add_(RIDGE * kept.diagonal().mean())
    expected = torch.linalg.solve(total, key)
    torch.testing.assert_close(found.double(), expected / (expected @ key), rtol=1e-3, atol=1e-3)


def test_neurons_that_do_not_respond_are_refused():
    model = word_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.zero_()
    with pytest.raises(SelectionError, match=r"no neuron of model\.layers\.1\.mlp\.down_proj responds"):
        find_directions(model, output_projections(model, [1]), [SUBJECT], [ALL], RIDGE)
