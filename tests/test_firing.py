import pytest
import torch

from peft_surgical.architectures import output_projections
from peft_surgical.keying import firing
from peft_surgical.keying.firing import fire_from, fired
from peft_surgical.keying.keys import Marked
from peft_surgical.keying.neurons import Neuron, place_neurons, reading_rows, set_neurons
from peft_surgical.texts.prompts import EncodedAnswer

from .counterfacts import word_model

SHARED = tuple(range(3, 12))
# The longest first, so that the order of reading is another.
ROWS = tuple(EncodedAnswer(tuple(ids), start) for ids, start in (([6, 2, 11, 10, 1, 12], 4), ([3, 7, 5, 9], 2)))
FAMILIES = ["llama", "gpt2", "phi3", "gpt_neox", "opt"]


def rewritten(family, seed=0):
    """A model with neurons of two layers that read at random, their modules and the neurons."""
    model = word_model(family)
    modules = output_projections(model, [0, 1])
    generator = torch.Generator().manual_seed(seed)
    neurons = {
        name: Neuron(
            2 + layer,
            tuple(torch.randn(model.config.hidden_size, generator=generator) for _ in reading_rows(model, name)),
        )
        for name, layer in modules.items()
    }
    base = place_neurons(model, modules).get_base_model()
    set_neurons(base, neurons)
    return base, modules, neurons


def alone(model, neurons, ids):
    """How far each neuron fires at each token of a text by itself, `[module, token]`."""
    seen = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, at=name: seen.update({at: args[0]}))
        for name in neurons
    ]
    with torch.no_grad():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return torch.stack([seen[name].reshape(len(ids), -1)[:, neuron.index] for name, neuron in neurons.items()])


@pytest.mark.parametrize("shared", [(), SHARED], ids=["apart", "begun alike"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_text_has_what_it_has_alone_token_for_token(family, shared):
    model, modules, neurons = rewritten(family)
    rows = [EncodedAnswer((*shared, *row.ids), len(shared) + row.answer_start) for row in (*ROWS, ROWS[1])]
    marks = [[0, len(shared) + 2, len(shared) + 4], [*range(len(rows[1].ids))], []]
    found = fired(model, modules, neurons, Marked(rows, marks))
    assert sorted(found) == [0, 1]
    for place, met in found.items():
        wanted = alone(model, neurons, rows[place].ids)[:, marks[place]]
        torch.testing.assert_close(met, wanted, rtol=1e-4, atol=1e-5)
    assert fired(model, modules, neurons, Marked(rows, [[], [], []])) == {}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_row_runs_from_where_a_neuron_fires_first(family, monkeypatch):
    model, modules, neurons = rewritten(family)
    # What is read: nothing follows the last token.
    far = [alone(model, neurons, row.ids)[:, : len(row.read)].abs().amax(0) for row in ROWS]
    for level in [0.0, *sorted(torch.cat(far).tolist()), 99.0]:
        monkeypatch.setattr(firing, "_FIRES", level * (1 + 1e-4))
        for begin in (0, 1):
            wanted = []
            for row, met in zip(ROWS, far, strict=True):
                open_at = [i for i in range(begin, len(row.read)) if met[i] > level * (1 + 1e-4)]
                # The last token before the answer is what predicts it.
                wanted.append(min(open_at[0], row.answer_start - 1) if open_at else None)
            assert fire_from(model, modules, neurons, ROWS, begin) == wanted
    assert wanted == [None, None]
    assert fire_from(model, modules, neurons, [], 0) == []


def test_all_processes_run_what_the_first_has_found(monkeypatch):
    model, modules, neurons = rewritten("llama")
    monkeypatch.setattr(firing, "by_main", lambda _: [1, None])
    assert fire_from(model, modules, neurons, ROWS, 0) == [1, None]


def test_half_shut_is_not_firing_and_a_tenth_open_is():
    shut, tenth = (torch.nn.functional.silu(torch.tensor(at)) for at in (-4.0, 0.7))
    assert abs(shut) * 2 < firing._FIRES < abs(tenth)
