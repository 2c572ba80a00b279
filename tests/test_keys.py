import re

import pytest
import torch

import peft_surgical as ps
from peft_surgical.architectures import output_projections
from peft_surgical.errors import ArchitectureError, SelectionError
from peft_surgical.keying import keys
from peft_surgical.keying.keys import Marked, find_directions, marked_neurons, neuron_count, stream_lengths
from peft_surgical.texts.prompts import EncodedAnswer, encode, encode_answer, swap_subject
from peft_surgical.texts.subjects import subject_spans
from peft_surgical.texts.wording import variants
from peft_surgical.tuner.targets import find_module

from .counterfacts import word_model

ROWS = tuple(EncodedAnswer(tuple(ids), len(ids) - 1) for ids in ([3, 7, 5, 9], [4, 8], [6, 2, 11, 10, 1, 12]))
MARKS = ([1, 2], [1], [0, 5])
OTHERS = tuple(EncodedAnswer(tuple(ids), 1) for ids in ([2, 9, 9, 1], [5, 4, 3]))
SUBJECT, ALL = Marked(ROWS, MARKS), Marked.whole(OTHERS)
KINDS = [Marked.whole(OTHERS[:1]), Marked.whole(OTHERS[1:])]
FAMILIES = ["llama", "gpt2", "phi3", "gpt_neox"]
RIDGE = 0.03


def neurons_one_by_one(model, name, rows=ROWS):
    """What enters an MLP's output projection, `[token, neuron]` a row, read a row at a time."""
    found = []
    handle = find_module(model, name).register_forward_pre_hook(lambda _, args: found.append(args[0]))
    with torch.no_grad():
        for row in rows:
            model(torch.tensor([row.ids]))
    handle.remove()
    return [own.reshape(len(row.ids), -1).double() for own, row in zip(found, rows, strict=True)]


def single(model, name):
    """The subject's neurons and those of the other texts, `[token, neuron]` each."""
    marked = zip(neurons_one_by_one(model, name), MARKS, strict=True)
    return torch.cat([own[list(at)] for own, at in marked]), [
        torch.cat([own[1:] for own in neurons_one_by_one(model, name, rows)]) for rows in (OTHERS[:1], OTHERS[1:])
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_are_those_of_single_rows(family):
    model = word_model(family)
    modules = output_projections(model)
    found = list(marked_neurons(model, modules, SUBJECT))
    for name in modules:
        met = torch.cat([batch[name] for batch in found])
        alone = single(model, name)[0]
        assert met.shape == alone.shape == (5, neuron_count(find_module(model, name)))
        # Batches go by length, so the order of rows is not that of the list.
        torch.testing.assert_close(met.sum(0).double(), alone.sum(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close((met.T @ met).double(), alone.T @ alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3", "opt"])
def test_what_all_texts_begin_with_is_run_once(family):
    options = {"sliding_window": 4} if family == "gemma3" else {}
    model, shared, sizes = word_model(family, **options), tuple(range(3, 12)), []
    rows = [EncodedAnswer((*shared, *row.ids), 1) for row in ROWS]
    texts = Marked(rows, [[0, 8, 9, 11], [3, 10], [9, 14]])
    [name] = modules = output_projections(model, [1])
    handle = find_module(model, name).register_forward_hook(lambda _, __, out: sizes.append(out.numel()))
    met = torch.cat([batch[name] for batch in marked_neurons(model, modules, texts)])
    handle.remove()
    hidden = model.config.hidden_size
    assert sizes == [len(shared) * hidden, len(ROWS) * 6 * hidden]
    read = zip(neurons_one_by_one(model, name, rows), texts.marks, strict=True)
    alone = torch.cat([own[list(at)] for own, at in read])
    torch.testing.assert_close((met.T @ met).double(), alone.T @ alone, rtol=1e-4, atol=1e-6)
    [length] = stream_lengths(model, modules, texts).values()
    with torch.no_grad():
        states = [model(torch.tensor([row.ids]), output_hidden_states=True).hidden_states[2][0] for row in rows]
    squares = torch.cat([own[list(at)] for own, at in zip(states, texts.marks, strict=True)]).square().sum(-1)
    assert length == pytest.approx(float(squares.mean()) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_residual_streams_length_is_that_of_the_hidden_states(family):
    model = word_model(family)
    found = stream_lengths(model, output_projections(model, [0]), SUBJECT)
    squares = []
    with torch.no_grad():
        for row, marks in zip(ROWS, MARKS, strict=True):
            states = model(torch.tensor([row.ids]), output_hidden_states=True).hidden_states[1][0]
            squares += states[marks].double().square().sum(-1).tolist()
    [length] = found.values()
    assert length == pytest.approx((sum(squares) / len(squares)) ** 0.5, rel=1e-5)


def test_layers_above_the_last_that_is_read_are_not_run():
    model = word_model()
    ran = []
    handles = [
        layer.mlp.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, layer in enumerate(model.model.layers)
    ]
    [_] = marked_neurons(model, output_projections(model, [0]), SUBJECT)
    assert ran == [0]
    for handle in handles:
        handle.remove()


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
        a = direction.vector.double()
        apart = sum((kind @ a).square().mean() for kind in others)
        # The direction all but cancels those neurons, down to what float32 knows of them.
        size = a.norm() * sum(kind.square().sum(-1).mean() for kind in others).sqrt()
        assert abs(direction.elsewhere**0.5 - float(apart) ** 0.5) < 1e-5 * size
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
        met[weight] = own @ found.vector.double()
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
    assert all(torch.equal(whole[name].vector, apart[name].vector) for name in modules)


def test_what_cannot_be_read_is_refused():
    model = word_model()
    with pytest.raises(SelectionError, match="so no layer 9"):
        output_projections(model, [0, 9])
    for layers in (1, "1", [1.0], [True]):
        with pytest.raises(
            SelectionError, match=re.escape(f"layers must be a list of whole numbers, such as [3, 4], not {layers!r}")
        ):
            output_projections(model, layers)
    with pytest.raises(SelectionError, match="no layer is named"):
        output_projections(model, [])
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.zero_()
    with pytest.raises(SelectionError, match=r"no neuron of model\.layers\.1\.mlp\.down_proj responds"):
        find_directions(model, output_projections(model, [1]), [SUBJECT], [ALL], RIDGE)
    model.config.model_type = "unheard_of"
    with pytest.raises(ArchitectureError, match="unheard_of"):
        output_projections(model)


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
        return {name: torch.cat([batch[name] for batch in batches]) @ own.vector for name, own in found.items()}

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
    torch.testing.assert_close(found.vector.double(), expected / (expected @ own.mean(0)), rtol=1e-3, atol=1e-3)
    met, met_without = ((beside.float() @ own.vector).abs().max() for own in (found, without))
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
    torch.testing.assert_close(found.vector.double(), expected / (expected @ key), rtol=1e-3, atol=1e-3)


class Elsewhere(torch.Tensor):
    """A tensor on another device, so to speak: it is of no use before `to` is called."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if function is torch.Tensor.to:
                return args[0].as_subclass(torch.Tensor)
            assert function is torch.Tensor.__truediv__, function
            return (args[0].as_subclass(torch.Tensor) / args[1]).as_subclass(cls)


@pytest.mark.parametrize("besides", [[], [Marked.whole(OTHERS[1:])]])
def test_moments_meet_on_the_device_of_what_is_kept(besides, monkeypatch):
    model = word_model("llama")
    name, *_ = modules = output_projections(model, [1])
    expected = find_directions(model, modules, [SUBJECT], [ALL], RIDGE, besides=besides)[name]
    read, calls = keys.moments, []

    def of_another_device(*arguments):
        calls.append(arguments)
        found = read(*arguments)
        if len(calls) == 1:
            return found
        return {name: tuple(each.as_subclass(Elsewhere) for each in pair) for name, pair in found.items()}

    monkeypatch.setattr(keys, "moments", of_another_device)
    found = find_directions(model, modules, [SUBJECT], [ALL], RIDGE, besides=besides)[name]
    assert len(calls) == 3
    assert torch.equal(found.vector, expected.vector)
