import pytest
import torch

from benchmarks.baselines.alphaedit import AlphaEdit
from benchmarks.baselines.covariances import covariances, with_ridge
from benchmarks.baselines.memit import Memit
from benchmarks.baselines.method import Request
from benchmarks.baselines.mlps import edited_layers, output_projection
from benchmarks.baselines.values import Asked, Objective
from peft_surgical.architectures import decoder_layers

from .counterfacts import REQUEST, TOKENIZER, word_model

ALONE = Request("france", "the capital of france is", "paris", "lyon")


def value_of(model, request, last):
    return Asked(model, TOKENIZER, request, 0).at_subject(last)[0][1][0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("method", [Memit(known=0.0), AlphaEdit(known=0.0, small=1e9)], ids=["memit", "alphaedit"])
def test_where_nothing_weighs_against_it_the_value_is_reached(method, family):
    model = word_model(family)
    last = decoder_layers(model)[edited_layers(model)[-1]]
    asked = Asked(model, TOKENIZER, ALONE, 0, kl_at_subject=True)
    before = value_of(model, ALONE, last)
    wanted = before + asked.delta(last, before, Objective(method.learning_rate))
    assert (wanted - before).norm() > 0.1 * before.norm()
    with method.edit(model, TOKENIZER, ALONE, 0):
        torch.testing.assert_close(value_of(model, ALONE, last), wanted, rtol=1e-4, atol=1e-4)


def test_what_is_known_weighs_against_what_is_new():
    model = word_model()
    last, moved = decoder_layers(model)[edited_layers(model)[-1]], []
    before = value_of(model, ALONE, last)
    for known in (0.0, 10.0, 1e9):
        with Memit(known=known).edit(model, TOKENIZER, ALONE, 0):
            moved.append(float((value_of(model, ALONE, last) - before).norm()))
    assert moved[0] > moved[1] > moved[2]
    assert moved[2] < 1e-4 * moved[0]


def test_each_layer_gets_a_share_that_is_one_rank():
    model = word_model()
    layers = edited_layers(model)
    assert len(layers) > 1
    weights = [output_projection(model, layer).weight for layer in layers]
    before = [weight.clone() for weight in weights]
    with Memit(known=1.0).edit(model, TOKENIZER, REQUEST, 0):
        for weight, was in zip(weights, before, strict=True):
            values = torch.linalg.svdvals((weight - was).double())
            assert values[0] > 1e-3
            assert values[1] < 1e-5 * values[0]


def test_five_layers_up_to_the_eighth_or_the_middle():
    assert edited_layers(word_model(num_hidden_layers=30)) == [4, 5, 6, 7, 8]
    assert edited_layers(word_model(num_hidden_layers=6)) == [0, 1, 2, 3]
    assert edited_layers(word_model(num_hidden_layers=1)) == [0]


def test_away_from_common_keys_by_hand():
    common = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(with_ridge(common, 0.4), torch.diag(torch.tensor([5.0, 2.0], dtype=torch.float64)))
    torch.testing.assert_close(
        Memit(ridge=0.4).away_from(common), torch.diag(torch.tensor([0.2, 0.5], dtype=torch.float64))
    )
    projection = torch.diag(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(AlphaEdit(small=2.0).away_from(common), projection)


def test_what_common_keys_give_stays_by_alphaedit():
    model = word_model()
    layer = edited_layers(model)[-1]
    found = covariances(model, TOKENIZER, [layer])[layer]
    values, vectors = torch.linalg.eigh(found)
    small = float(values[-3:].mean())
    common = vectors[:, values >= small].float()
    assert 0 < common.shape[1] < len(values)
    weight = output_projection(model, layer).weight
    before = weight.clone()
    with AlphaEdit(small=small).edit(model, TOKENIZER, REQUEST, 0):
        change = weight - before
    assert change.norm() > 1e-3
    assert (change @ common).norm() < 1e-5 * change.norm()
