from functools import partial

import pytest
import torch

from peft_surgical.architectures import decoder_layers, output_projections
from peft_surgical.keying import keyed_by_subject
from peft_surgical.keying.apart import Apart, read_later
from peft_surgical.keying.drawn import drawn_texts
from peft_surgical.keying.keyed_by_subject import KeyedSubjectRecipe, learn_keyed_by_subject
from peft_surgical.keying.keys import Marked
from peft_surgical.keying.neurons import Neuron, place_neurons, reading_rows, set_neurons
from peft_surgical.running.forwards import forwards, passing
from peft_surgical.staging.curvature import Metric
from peft_surgical.texts.prompts import unanswered

from .localizing import capital, word_tokenizer
from .tiny import tiny_ids, tiny_model

TOKENIZER = word_tokenizer()
FAMILIES = ["llama", "phi3", "gpt2", "gemma3", "gpt_neox", "opt"]
HIDDEN = 32


def rewritten(family, layers, count=4):
    model = tiny_model(family, **{"n_layer" if family == "gpt2" else "num_hidden_layers": count})
    modules = output_projections(model, layers)
    peft_model = place_neurons(model, modules)
    base = peft_model.get_base_model()
    drawn = torch.Generator().manual_seed(3)
    neurons = {
        name: Neuron(7, tuple(torch.randn(HIDDEN, generator=drawn) for _ in reading_rows(base, name)))
        for name in modules
    }
    set_neurons(base, neurons)
    return base, modules, neurons, drawn_texts(base, TOKENIZER, 20, 0)


def met(model, name, later, rows, texts, added):
    """What later rows read, summed over tokens but the first, where something is added to what a module writes."""
    read = []
    reading = model.get_submodule(reading_rows(model, later)[0][0])
    ids = torch.tensor([row.ids for row in texts.rows])
    with (
        torch.no_grad(),
        model.get_submodule(name).register_forward_hook(lambda _, __, out: out + added),
        reading.register_forward_pre_hook(lambda _, args: read.append(args[0])),
    ):
        model(input_ids=ids)
    states = read[0].reshape(*ids.shape, -1)[:, 1:].double()
    return torch.stack([(states @ row.double()).sum() for row in rows])


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_the_slopes_of_what_the_next_layer_reads(family):
    model, modules, neurons, _ = rewritten(family, [1, 2])
    # More than are run at a time, and so short that a first token would show.
    texts = Marked.whole([unanswered(ids) for ids in tiny_ids(20, 3).tolist()])
    name, later = modules
    [(own, found)] = read_later(model, modules, neurons, texts).items()
    rows = neurons[later].rows
    assert own == name
    assert found.shape == (len(rows), HIDDEN)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(rows)))
    read = partial(met, model, name, later, rows, texts)
    step, tested = 1e-3, torch.eye(HIDDEN)
    slopes = torch.stack([read(step * along) - read(-step * along) for along in tested], dim=1) / (2 * step)
    slopes = torch.nn.functional.normalize(slopes.float(), dim=1)
    torch.testing.assert_close(found, slopes, atol=5e-3, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_in_between_are_left_out(family):
    model, modules, neurons, texts = rewritten(family, [0, 3])
    found = read_later(model, modules, neurons, texts)
    stack = decoder_layers(model)
    # The same, where what lies in between hands on what it gets: the later layer reads other states then.
    with forwards({layer: passing(lambda hidden: hidden) for layer in stack[1:3]}):
        alone = read_later(model, modules, neurons, texts)
    assert found.keys() == alone.keys() == {next(iter(modules))}
    for own, other in zip(found.values(), alone.values(), strict=True):
        # Of random layers the streams differ, and the slopes little.
        assert torch.cosine_similarity(own, other).min() > 0.8


def test_each_is_told_of_all_later_ones():
    model, modules, neurons, texts = rewritten("llama", [0, 1, 3])
    first, second, _ = modules
    found = read_later(model, modules, neurons, texts)
    assert {name: len(own) for name, own in found.items()} == {first: 4, second: 2}
    pair = {name: modules[name] for name in (first, second)}
    torch.testing.assert_close(read_later(model, pair, neurons, texts)[first], found[first][:2])


def test_a_single_layer_has_none_above():
    model, modules, neurons, texts = rewritten("llama", [1])
    assert read_later(model, modules, neurons, texts) == {}


def test_a_trained_value_does_not_go_along_what_a_later_neuron_reads(few_carried_prompts, monkeypatch):
    seen, own = [], keyed_by_subject.read_later

    def read(*args):
        seen.append(own(*args))
        return seen[-1]

    monkeypatch.setattr(keyed_by_subject, "read_later", read)
    fact = capital().training
    recipe = KeyedSubjectRecipe(steps=6, general=3, names=12, namesakes=4, compute_dtype="float32")
    stage = learn_keyed_by_subject(tiny_model("llama", num_hidden_layers=4), TOKENIZER, fact, recipe=recipe)
    [(name, directions)] = seen[0].items()
    module = stage.model.get_base_model().get_submodule(name)
    value = (module.base_layer.weight + module.get_delta_weight("learn"))[:, module.lora_A["learn"].weight.argmax()]
    assert value.norm() > 0.01
    # What is saved is rounded to half precision.
    assert (directions @ value).abs().max() < 2e-3 * value.norm()


def test_no_step_goes_along_what_is_avoided_and_all_else_is_as_before():
    drawn = torch.Generator().manual_seed(0)
    gradients = [torch.randn(6, 1, generator=drawn), torch.randn(4, 1, generator=drawn)]
    costs = [torch.full((6, 1), 2.0), torch.full((4, 1), 0.5)]
    avoided = torch.randn(2, 6, generator=drawn)
    first, second = Apart.from_directions(costs, [avoided, None]).natural(gradients)
    plain = Metric.of(costs).natural(gradients)
    assert torch.equal(second, plain[1])
    torch.testing.assert_close(avoided @ first, torch.zeros(2, 1))
    # What is left out is a sum of the directions.
    torch.testing.assert_close(
        torch.linalg.lstsq(avoided.T, plain[0] - first).solution.T @ avoided, (plain[0] - first).T
    )
    # Of more directions than half of the coordinates the first are avoided.
    many = torch.randn(9, 6, generator=drawn)
    [most] = Apart.from_directions(costs[:1], [many]).natural(gradients[:1])
    torch.testing.assert_close(many[:3] @ most, torch.zeros(3, 1))
    assert most.norm() > 0.1 * plain[0].norm()
