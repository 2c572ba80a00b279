import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from benchmarks.baselines.alphaedit import AlphaEdit
from benchmarks.baselines.covariances import covariances
from benchmarks.baselines.memit import Memit
from benchmarks.baselines.method import Request
from benchmarks.baselines.mlps import output_projection
from benchmarks.baselines.rome import Rome, add_rank_one, key_and_delta
from benchmarks.baselines.rome_code import RomeAsInCode
from benchmarks.baselines.rome_cov import RomeWithCovariance
from benchmarks.baselines.values import last_token
from peft_surgical.errors import ModelError
from peft_surgical.texts.prompts import without_template

from . import easyedit
from .counterfacts import REQUEST, TOKENIZER, word_model


def keys_of(model, layer, request=REQUEST):
    """What enters an MLP's output projection at the subject's last token, read the plain way: a prompt at a time."""
    seen = []
    handle = output_projection(model, layer).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for prompt in request.prompts:
        ids = TOKENIZER(prompt)["input_ids"]
        model(torch.tensor([ids]))
        last = TOKENIZER.convert_tokens_to_ids(request.subject.split()[-1])
        seen[-1] = seen[-1][0, len(ids) - 1 - ids[::-1].index(last)]
    handle.remove()
    return torch.stack(seen)


@pytest.mark.parametrize("module", [nn.Linear(6, 4), Conv1D(4, 6)], ids=["Linear", "Conv1D"])
def test_a_rank_one_update_gives_the_key_its_value_and_leaves_what_the_direction_is_blind_to(module):
    module.double().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    key, direction, delta, other = (torch.randn(n, generator=generator).double() for n in (6, 6, 4, 6))
    before = module(key), module(other)
    value = before[0] + delta
    add_rank_one(module, delta, key, direction)
    torch.testing.assert_close(module(key), value, rtol=1e-12, atol=1e-12)
    share = (other @ direction) / (key @ direction)
    torch.testing.assert_close(module(other), before[1] + share * delta, rtol=1e-12, atol=1e-12)
    blind = other - key * share
    add_rank_one(module, delta, key, direction)
    torch.testing.assert_close(module(blind) - module(torch.zeros(6).double()), _linear(module, blind, delta, key))


def _linear(module, blind, delta, key):
    """The output at a key that is orthogonal to the direction, less the bias: unchanged by both updates."""
    return module(blind + key) - module(key)


@pytest.mark.parametrize("method", [Rome(), Rome(layer=0), RomeWithCovariance()])
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_the_edited_projection_gives_the_mean_key_its_value(method, family):
    model = word_model(family)
    layer = 1 if method.layer is None else method.layer
    projection, mean_key = output_projection(model, layer), keys_of(model, layer).mean(0)
    key, _, delta = key_and_delta(model, TOKENIZER, REQUEST, layer, 0.5)
    torch.testing.assert_close(key, mean_key, rtol=1e-4, atol=1e-5)
    value = projection(mean_key) + delta
    assert delta.norm() > 0.1
    with method.edit(model, TOKENIZER, REQUEST, 0):
        torch.testing.assert_close(projection(mean_key), value, rtol=1e-4, atol=1e-4)
        # Layers below and at the edited MLP still give the same keys: the update changes outputs only.
        torch.testing.assert_close(keys_of(model, layer).mean(0), mean_key, rtol=1e-4, atol=1e-5)


def test_as_in_its_authors_code_the_prompt_alone_gets_all_of_the_value():
    model = word_model()
    projection, keys = output_projection(model, 1), keys_of(model, 1)
    found = key_and_delta(model, TOKENIZER, REQUEST, 1, 0.5, kl_at_subject=True)
    torch.testing.assert_close(found.bare, keys[0], rtol=1e-4, atol=1e-5)
    before, at_mean = projection(keys[0]), projection(keys.mean(0))
    with RomeAsInCode().edit(model, TOKENIZER, REQUEST, 0):
        torch.testing.assert_close(projection(keys[0]) - before, found.delta, rtol=1e-4, atol=1e-4)
        share = (found.key @ found.key) / (found.bare @ found.key)
        torch.testing.assert_close(projection(keys.mean(0)) - at_mean, share * found.delta, rtol=1e-4, atol=1e-4)


def check_that_it_is_what_easyedit_does(method, model, tokenizer, request, monkeypatch):
    weights = [output_projection(model, layer).weight for layer in easyedit.layers_of(method, model)]
    before = [weight.clone() for weight in weights]
    found = []
    for edited in (
        easyedit.edited(method, model, tokenizer, [[request]], monkeypatch),
        method.edit(model, tokenizer, request, 0),
    ):
        with edited:
            found.append([weight - was for weight, was in zip(weights, before, strict=True)])
    for theirs, ours in zip(*found, strict=True):
        assert theirs.norm() > 0.1
        # What is summed in another order differs by rounding, and so does what descends from it.
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()


AS_EASYEDIT = {
    "ROME": lambda layer: RomeAsInCode(layer=layer),
    "MEMIT": lambda _: Memit(known=10.0),
    "AlphaEdit": lambda _: AlphaEdit(),
}


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("name", AS_EASYEDIT)
def test_it_is_what_easyedit_does(name, family, monkeypatch):
    check_that_it_is_what_easyedit_does(AS_EASYEDIT[name](1), word_model(family), TOKENIZER, REQUEST, monkeypatch)


@pytest.mark.real
@pytest.mark.parametrize("name", AS_EASYEDIT)
def test_it_is_what_easyedit_does_on_a_real_model(name, demo, monkeypatch):
    model, tokenizer = demo
    request = Request("France", "The capital of France is", "Paris", "Lyon", ("The weather is fine. ", "I say. "))
    check_that_it_is_what_easyedit_does(AS_EASYEDIT[name](5), model, without_template(tokenizer), request, monkeypatch)


def test_what_follows_the_subject_is_kept_where_it_is_asked_for():
    model = word_model()
    ends, subjects = (
        key_and_delta(model, TOKENIZER, REQUEST, 1, 0.5, kl_at_subject=where).delta for where in (False, True)
    )
    assert not torch.allclose(ends, subjects)


def test_the_update_has_rank_one():
    model = word_model()
    weight = output_projection(model, 1).weight
    before = weight.clone()
    with Rome().edit(model, TOKENIZER, REQUEST, 0):
        values = torch.linalg.svdvals((weight - before).double())
    assert values[0] > 0.1
    assert values[1] < 1e-5 * values[0]


def test_the_delta_is_bounded():
    model = word_model()
    length = float(output_projection(model, 1)(keys_of(model, 1)[0]).norm())
    *_, free = key_and_delta(model, TOKENIZER, REQUEST, 1, 0.5)
    *_, bounded = key_and_delta(model, TOKENIZER, REQUEST, 1, 50.0)
    assert float(free.norm()) <= 4 * length * 1.0001
    assert float(bounded.norm()) == pytest.approx(4 * length, rel=1e-4)


def test_the_subject_is_found_behind_a_context_that_names_it():
    request = Request("new zealand", "the capital of new zealand is", "paris", "lyon", ("tell me about france . ",))
    model = word_model()
    key, *_ = key_and_delta(model, TOKENIZER, request, 1, 0.5)
    torch.testing.assert_close(key, keys_of(model, 1, request).mean(0), rtol=1e-4, atol=1e-5)
    assert last_token(TOKENIZER, "new zealand is", len("new zealand")) == 1
    with pytest.raises(ModelError, match="needs a fast tokenizer"):
        last_token(object(), "france", 6)


def test_the_covariance_turns_the_update_away_from_common_keys():
    model = word_model()
    found = covariances(model, TOKENIZER, [1])[1]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, found.T)
    assert torch.linalg.eigvalsh(found).min() > -1e-9
    common = torch.linalg.eigh(found).eigenvectors[:, -1]
    key = keys_of(model, 1).mean(0)
    direction = RomeWithCovariance().direction(model, TOKENIZER, 1, key).double()
    ridge = 0.01 * found.diagonal().mean() * torch.eye(len(found))
    torch.testing.assert_close((found + ridge) @ direction, key.double(), rtol=1e-3, atol=1e-4)

    def along(vector):
        return float((vector.double() @ common).abs() / vector.double().norm())

    assert along(direction) < along(key)
