from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from benchmarks.baselines import METHODS, Request, build
from benchmarks.baselines.alphaedit import AlphaEdit
from benchmarks.baselines.batches import InBatches, add_values, gains
from benchmarks.baselines.memit import Memit
from benchmarks.baselines.mlps import edited_layers, output_projection
from benchmarks.baselines.rome import add_rank_one
from benchmarks.baselines.values import Asked, Objective
from benchmarks.plain_text import log_likelihoods
from peft_surgical.architectures import decoder_layers
from peft_surgical.errors import SurgicalError

from . import easyedit
from .conftest import fingerprint
from .counterfacts import CONTEXTS, REQUEST, TOKENIZER, word_model

REQUESTS = [
    REQUEST,
    Request("italy", "the capital of italy is", "rome", "paris", CONTEXTS),
    Request("new zealand", "tell me about new zealand", "rome", "hamlet", CONTEXTS),
]
BATCHED = [name for name, kind in METHODS.items() if issubclass(kind, InBatches)]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written(method, model):
    """The weights that a method writes."""
    return [output_projection(model, layer).weight for layer in easyedit.layers_of(method, model)]


def updates(edited, method, model):
    """What a context adds to the weights that a method writes."""
    before = [weight.clone() for weight in written(method, model)]
    with edited:
        return [weight - was for weight, was in zip(written(method, model), before, strict=True)]


@pytest.mark.parametrize("module", [nn.Linear(3, 2, bias=False), Conv1D(2, 3)], ids=["Linear", "Conv1D"])
def test_keys_that_are_orthogonal_get_what_each_gets_alone_by_hand(module):
    module.double().requires_grad_(False)
    module.weight.zero_()
    keys = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    values = torch.tensor([[5.0, 0.0], [6.0, 4.0]])
    away = torch.diag(torch.tensor([1.0, 3.0, 7.0], dtype=torch.float64))
    # Of λ = 1: 2/(1 + 2·2) of the first, and 3/(1 + 3) of the second.
    read = gains(keys, away, 1.0)
    torch.testing.assert_close(read, torch.tensor([[0.4, 0.0, 0.0], [0.0, 0.75, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(torch.cat([gains(key[None], away, 1.0) for key in keys]), read)
    add_values(module, values, read)
    written = torch.tensor([[2.0, 4.5, 0.0], [0.0, 3.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(module.weight.T if isinstance(module, Conv1D) else module.weight, written)


def test_one_key_gets_the_update_of_one_rank():
    key, value, form = drawn(6), drawn(4, seed=1), drawn(6, 6, seed=2)
    away, written, one = form @ form.T, nn.Linear(6, 4).double(), nn.Linear(6, 4).double()
    one.load_state_dict(written.state_dict())
    add_values(written, value[None], gains(key[None], away, 0.3))
    reached = key @ away @ key
    add_rank_one(one, value * reached / (0.3 + reached), key, away @ key)
    torch.testing.assert_close(written.weight, one.weight, rtol=1e-12, atol=1e-12)


def test_keys_of_a_broken_model_break_what_is_written_and_not_the_run():
    for size in (1e30, torch.inf, torch.nan):
        assert gains(torch.full((2, 3), size), None, 1.0).isnan().all()
    # Where they can be told apart by λ alone, requests that are alike share what one would have.
    alike = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    torch.testing.assert_close(gains(alike, None, 1.0), alike.double() / 9)


def test_many_keys_get_the_formulas_of_the_papers():
    keys, form = drawn(3, 6), drawn(6, 6, seed=1)
    common, eye = form @ form.T, torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(
        gains(keys, Memit(ridge=0.0).away_from(common), 2.0),
        keys @ torch.linalg.inv(2.0 * common + keys.T @ keys),
        rtol=1e-9,
        atol=1e-9,
    )
    method = AlphaEdit(small=float(torch.linalg.eigvalsh(common)[3:5].mean()))
    projection = away = method.away_from(common)
    assert round(float(projection.trace())) == 4
    before = torch.zeros_like(common)
    # Batch after batch, with the keys of all before.
    for seed in range(2, 5):
        keys = drawn(3, 6, seed=seed)
        read = gains(keys, away, 0.5)
        asked = (keys.T @ keys + before) @ projection + 0.5 * eye
        torch.testing.assert_close(read, keys @ projection @ torch.linalg.inv(asked), rtol=1e-9, atol=1e-9)
        away, before = method.away_after(away, keys, read), before + keys.T @ keys


def test_a_batch_of_one_is_an_edit():
    for name in BATCHED:
        model, method = word_model(), build(name)
        alone = updates(method.edit(model, TOKENIZER, REQUEST, 0), method, model)
        batch = updates(method.edit_batch(model, TOKENIZER, [REQUEST], 0), method, model)
        assert all(map(torch.equal, alone, batch))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", [Memit(known=0.0), AlphaEdit(known=0.0, small=1e9)], ids=["memit", "alphaedit"])
def test_where_nothing_weighs_against_them_all_values_are_reached(method, family):
    model = word_model(family)
    last = decoder_layers(model)[edited_layers(model)[-1]]
    alone = [replace(request, contexts=()) for request in REQUESTS]
    asked = [Asked(model, TOKENIZER, request, 0, kl_at_subject=True) for request in alone]
    before = [one.at_subject(last)[0][1][0] for one in asked]
    wanted = [
        value + one.delta(last, value, Objective(method.learning_rate))
        for one, value in zip(asked, before, strict=True)
    ]
    assert all((value - was).norm() > 0.1 * was.norm() for value, was in zip(wanted, before, strict=True))
    with method.edit_batch(model, TOKENIZER, alone, 0):
        for one, value in zip(asked, wanted, strict=True):
            torch.testing.assert_close(one.at_subject(last)[0][1][0], value, rtol=1e-3, atol=1e-3)


def test_a_sequence_of_alphaedit_leaves_earlier_values_and_one_of_memit_does_not():
    model, moved = word_model(), {}
    layer = edited_layers(model)[0]
    projection = output_projection(model, layer)
    first, second = (replace(request, contexts=()) for request in REQUESTS[:2])
    # Below the first edited layer nothing changes, so neither do the keys in it.
    [(keys, _)] = Asked(model, TOKENIZER, first, 0).at_subject(projection)
    for method in (Memit(known=1e-6), AlphaEdit(known=1e-6, small=1e9)):
        with method.sequence(model, TOKENIZER, 0) as write:
            write([first])
            before, weight = projection(keys[0]).detach(), projection.weight.clone()
            write([second])
            assert (projection.weight - weight).norm() > 1e-3
            moved[method.name] = float((projection(keys[0]).detach() - before).norm() / before.norm())
    assert moved["alphaedit"] < 1e-4
    assert moved["memit"] > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("name", BATCHED)
def test_batches_teach_their_answers_and_leave_every_bit_as_it_was(name, family):
    model, method = word_model(family), build(name)
    pairs = [(request.prompt, request.new) for request in REQUESTS]
    before, base = fingerprint(model), log_likelihoods(model, TOKENIZER, pairs)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    found = []
    for _ in range(2):
        with method.sequence(model, TOKENIZER, 0) as write:
            write(REQUESTS[:2])
            once = fingerprint(model)
            write(REQUESTS[2:])
            assert len({before, once, fingerprint(model)}) == 3
            # Prompts that are so alike cost each other, of what λ and α let them have.
            assert sum(log_likelihoods(model, TOKENIZER, pairs)) > sum(base) + 2.0
            found.append(fingerprint(model))
        assert fingerprint(model) == before
        assert [parameter.requires_grad for parameter in model.parameters()] == flags
        assert all(parameter.grad is None for parameter in model.parameters())
    # What one sequence has written the next knows nothing of.
    assert found[0] == found[1]
    with method.edit_batch(model, TOKENIZER, REQUESTS[:2], 0):
        assert fingerprint(model) == once
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", BATCHED)
def test_what_fails_between_batches_leaves_the_base_too(name):
    model, method = word_model(), build(name)
    before = fingerprint(model)
    with method.sequence(model, TOKENIZER, 0) as write:
        write(REQUESTS[:2])
        assert fingerprint(model) != before
        with pytest.raises(SurgicalError, match="no requests"):
            write([])
    assert fingerprint(model) == before
    with pytest.raises(KeyboardInterrupt), method.edit_batch(model, TOKENIZER, REQUESTS[:2], 0):
        raise KeyboardInterrupt
    assert fingerprint(model) == before
    with pytest.raises(SurgicalError, match="no requests"), method.edit_batch(model, TOKENIZER, (), 0):
        raise AssertionError("nothing was edited")


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("sizes", [(3,), (2, 1)], ids=["at once", "in turn"])
@pytest.mark.parametrize("method", [Memit(known=10.0), AlphaEdit()], ids=["memit", "alphaedit"])
def test_it_is_what_easyedit_does_with_a_batch(method, sizes, family, monkeypatch):
    model = word_model(family)
    batches = [list(batch) for batch in (REQUESTS[: sizes[0]], REQUESTS[sizes[0] :]) if batch]
    theirs = updates(easyedit.edited(method, model, TOKENIZER, batches, monkeypatch), method, model)
    with method.sequence(model, TOKENIZER, 0) as write:
        for batch in batches:
            write(batch)
        ours = [weight.clone() for weight in written(method, model)]
    for weight, update, after in zip(written(method, model), theirs, ours, strict=True):
        assert update.norm() > 0.1
        # What is summed in another order differs by rounding, and so does what descends from it.
        assert (after - weight - update).norm() < 1e-4 * update.norm()
