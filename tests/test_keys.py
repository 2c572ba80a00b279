import re

import pytest
import torch

from peft_surgical import architectures
from peft_surgical.architectures import output_projections
from peft_surgical.errors import ArchitectureError, SelectionError
from peft_surgical.keying import keys
from peft_surgical.keying.keys import (
    Marked,
    marked_neurons,
    modules_in_turn,
    neuron_count,
    order_of_reading,
    stream_lengths,
)
from peft_surgical.texts.prompts import EncodedAnswer, unanswered
from peft_surgical.tuner.targets import find_module

from .counterfacts import word_model
from .test_beginnings import built
from .threads import threads

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
    # In double precision, as products are rounded otherwise with as many rows.
    model, shared, sizes = word_model(family, **options).double(), tuple(range(3, 12)), []
    rows = [EncodedAnswer((*shared, *row.ids), 1) for row in ROWS]
    texts = Marked(rows, [[0, 8, 9, 11], [3, 10], [9, 14]])
    [name] = modules = output_projections(model, [1])
    handle = find_module(model, name).register_forward_hook(lambda _, __, out: sizes.append(out.numel()))
    met = torch.cat([batch[name] for batch in marked_neurons(model, modules, texts)])
    handle.remove()
    hidden = model.config.hidden_size
    assert sizes == [len(shared) * hidden, len(ROWS) * 6 * hidden]
    read = neurons_one_by_one(model, name, rows)
    order = order_of_reading(texts)
    assert order == [1, 0, 2]
    alone = torch.cat([read[place][texts.marks[place]] for place in order])
    torch.testing.assert_close(met.double(), alone, rtol=1e-4, atol=1e-6)
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


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_threads_read_what_one_does(batch):
    model = word_model().double()
    modules = output_projections(model)
    with threads(1):
        alone = list(marked_neurons(model, modules, SUBJECT, batch))
    with threads(2):
        shared = list(marked_neurons(model, modules, SUBJECT, batch))
        lengths = stream_lengths(model, modules, SUBJECT)
    assert len(shared) == {1: 3, 3: 2, 32: 2}[batch]
    for name in modules:
        one, two = (torch.cat([found[name] for found in each]) for each in (alone, shared))
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)
    assert lengths == pytest.approx(stream_lengths(model, modules, SUBJECT))


def test_what_stands_behind_the_last_mark_is_not_run():
    model, seen = word_model(), []
    handle = model.get_input_embeddings().register_forward_hook(lambda _, args, __: seen.append(args[0]))
    texts = Marked([*ROWS, ROWS[2]], [[0, 1], [1], [2], []])
    list(marked_neurons(model, output_projections(model, [0]), texts))
    handle.remove()
    assert [ids.tolist() for ids in seen] == [[[3, 7, 0], [4, 8, 0], [6, 2, 11]]]


def test_as_many_modules_are_read_at_a_time_as_there_is_room_for(monkeypatch):
    model = word_model(num_hidden_layers=5)
    modules = output_projections(model)
    # The subject's second moments and those of what is kept, in double precision.
    each = 2 * 8 * neuron_count(find_module(model, next(iter(modules)))) ** 2
    for room, counts in ((each - 1, [1] * 5), (2 * each, [2, 2, 1]), (5 * each, [5])):
        monkeypatch.setattr(keys, "_ROOM", room)
        turns = list(modules_in_turn(model, modules))
        assert [len(turn) for turn in turns] == counts
        assert {name: layer for turn in turns for name, layer in turn.items()} == modules


def test_a_first_token_counts_once_and_not_where_it_is_a_subjects_last():
    rows = [unanswered(ids) for ids in ((3, 1), (4, 2), (5, 3), (4, 7), (3, 8))]
    first = Marked.first_of(rows, [[1], [0, 1], []])
    assert first == Marked([unanswered((3,)), unanswered((5,))], [[0], [0]])


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
    with pytest.raises(SelectionError, match="read off linear modules, and this one is a LayerNorm"):
        neuron_count(torch.nn.LayerNorm(3))
    model.config.model_type = "unheard_of"
    with pytest.raises(ArchitectureError, match="unheard_of"):
        output_projections(model)


def test_states_that_layers_give_in_a_list_are_read(monkeypatch):
    monkeypatch.setitem(architectures._KNOWN, "openai-gpt", architectures.architecture_of("gpt2"))
    model = built("openai-gpt")
    [length] = stream_lengths(model, output_projections(model, [1]), SUBJECT).values()
    with torch.no_grad():
        states = [model(torch.tensor([row.ids]), output_hidden_states=True).hidden_states[2][0] for row in ROWS]
    squares = torch.cat([own[marks] for own, marks in zip(states, MARKS, strict=True)]).square().sum(-1)
    assert length == pytest.approx(float(squares.mean()) ** 0.5, rel=1e-5)


def test_several_states_a_token_are_no_residual_stream(monkeypatch):
    monkeypatch.setitem(architectures._KNOWN, "gemma3n_text", architectures.architecture_of("llama"))
    model = built("gemma3n_text")
    with pytest.raises(ArchitectureError, match=r"hand on 4 states a token.*learn with learn_keyed"):
        stream_lengths(model, output_projections(model, [1]), SUBJECT)
