import copy

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    ElectraConfig,
    ElectraForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from peft_surgical.running.pieces import Pieces, _together, unembedding_of
from peft_surgical.running.suffix import SuffixRunner

from .test_suffix import PREFIX, gradients, layers_of, plain, rows, spans_of, state
from .tiny import FAMILIES, tiny_model

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}


def scaled_model():
    """Divides its logits."""
    torch.manual_seed(0)
    return GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0)).eval()


def multiplied_model():
    torch.manual_seed(0)
    return CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.3)).eval()


def capped_model():
    model = tiny_model("gemma3")
    model.config.final_logit_softcapping = 0.05
    return model


MODELS = {
    **{family: (lambda family=family: tiny_model(family)) for family in FAMILIES},
    "granite": scaled_model,
    "cohere": multiplied_model,
    "capped": capped_model,
}


def runner_of(model, first=0):
    sequences = rows(PREFIX)
    # Layers are named alike in all of them.
    layers = layers_of(model) if model.config.model_type in FAMILIES else model.model.layers
    runner = SuffixRunner(model, layers, first, PREFIX)
    runner.add(sequences)
    return runner, spans_of(sequences, len(PREFIX))


def weighed(pieces, weights):
    """Leads back, piece by piece, a loss that weighs each logit differently; returns the logits."""
    found, start = [], 0
    for _, logits in pieces:
        (logits * weights[start : start + len(logits)]).sum().backward()
        found.append(logits.detach())
        start += len(logits)
    return found


@pytest.mark.parametrize(("name", "first"), [*((name, 0) for name in MODELS), *((name, 2) for name in FAMILIES)])
def test_logits_and_gradients_are_those_of_one_piece(name, first, monkeypatch):
    monkeypatch.setattr("peft_surgical.running.pieces._POSITIONS", 4)
    monkeypatch.setattr("peft_surgical.running.pieces._MULTIPLE", 4)
    monkeypatch.setattr("peft_surgical.running.shapes._EACH", 2)
    model = MODELS[name]()
    runner, spans = runner_of(model, first)
    expected = runner.logits(range(4), spans)
    weights = torch.linspace(-1, 1, expected.numel()).reshape(expected.shape)
    trained = [p for i, layer in enumerate(runner.layers) if i >= first for p in layer.parameters()]
    slopes = torch.autograd.grad((expected * weights).sum(), trained)
    before, passes, products = state(model), [], []
    runner.layers[-1].register_forward_hook(lambda *_: passes.append(1))
    runner.head.register_forward_hook(lambda _, __, out: products.append(out.shape[:-1].numel()))
    pieces = runner.read(range(4), spans)
    assert not any(products)
    count, products[:] = len(passes), []
    found = weighed(pieces, weights)
    pieces.back()
    # Rows of 3, 3, 1 and 3 positions; the head gets multiples of 4.
    assert ([len(own) for own in found], products) == ([3, 4, 3], [4, 4, 4])
    assert len(passes) == count
    torch.testing.assert_close(torch.cat(found), expected.detach(), atol=1e-6, rtol=1e-5)
    for parameter, slope in zip(trained, slopes, strict=True):
        torch.testing.assert_close(parameter.grad, slope, atol=1e-5, rtol=1e-4)
    assert [own[:2] for own in state(model)] == [own[:2] for own in before]


def test_a_scale_or_a_cap_is_not_left_out():
    for model in (scaled_model(), multiplied_model(), capped_model()):
        runner, spans = runner_of(model)
        (_, logits), *_ = runner.read(range(4), spans)
        bare = []
        runner.head.register_forward_hook(lambda _, __, out, bare=bare: bare.append(out.flatten(0, -2)))
        runner.logits(range(4), spans)
        assert (logits - bare[-1][: len(logits)]).abs().max() > 1e-3 * bare[-1].abs().max()


def forbid(logits):
    logits[..., 5] = -1e4


def forbid_in_rows(logits):
    logits[:, :, 5] = -1e4


def on_the_head(model, change):
    model.lm_head.register_forward_hook(lambda _, __, logits: change(logits))


def on_the_model(model, change):
    model.register_forward_hook(lambda _, __, out: change(out.logits))


def on_the_decoder(model, _):
    def change(_, __, out):
        # There is no tenth token in a piece.
        out.last_hidden_state[:, 9] *= 2

    model.model.register_forward_hook(change)


@pytest.mark.parametrize("change", [forbid, forbid_in_rows])
@pytest.mark.parametrize("hook", [on_the_head, on_the_model, on_the_decoder])
@pytest.mark.parametrize("first", [0, 2])
def test_hooks_of_somebodys_act_as_in_a_plain_forward(first, hook, change, monkeypatch):
    monkeypatch.setattr("peft_surgical.running.pieces._POSITIONS", 4)
    monkeypatch.setattr("peft_surgical.running.pieces._MULTIPLE", 4)
    # All alike long, and long enough for the hook on a place.
    model, sequences = tiny_model("llama").requires_grad_(False), [(*PREFIX, 3, 4, 5, row) for row in range(6, 10)]
    spans = spans_of(sequences, len(PREFIX))
    hook(model, change)
    runner = SuffixRunner(model, layers_of(model), first, () if hook is on_the_decoder else PREFIX)
    runner.add(sequences)
    runner.layers[2].requires_grad_(True)
    expected = plain(model, sequences, spans)
    weights = torch.linspace(-1, 1, expected.numel()).reshape(expected.shape)
    trained = [*runner.layers[2].parameters()]
    slopes = torch.autograd.grad((expected * weights).sum(), trained)
    torch.testing.assert_close(runner.logits(range(4), spans), expected, atol=2e-5, rtol=1e-4)
    pieces = runner.read(range(4), spans)
    torch.testing.assert_close(torch.cat(weighed(pieces, weights)), expected.detach(), atol=2e-5, rtol=1e-4)
    pieces.back()
    for parameter, slope in zip(trained, slopes, strict=True):
        torch.testing.assert_close(parameter.grad, slope, atol=2e-5, rtol=1e-4)


def test_what_arrives_is_taken_away_and_may_come_again(monkeypatch):
    monkeypatch.setattr("peft_surgical.running.pieces._POSITIONS", 4)
    runner, spans = runner_of(tiny_model("llama"))
    trained = [*runner.layers[0].parameters()]
    pieces = runner.read(range(4), spans)
    weights = torch.linspace(-1, 1, sum(b - a for a, b in spans) * 128).reshape(-1, 128)
    first = weighed(pieces, weights)
    pieces.back(retain_graph=True)
    once = [p.grad.clone() for p in trained]
    pieces.back(retain_graph=True)
    assert all(torch.equal(p.grad, own) for p, own in zip(trained, once, strict=True))
    second = weighed(pieces, weights)
    pieces.back()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for parameter, own in zip(trained, once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * own)


def test_without_gradients_there_is_nothing_to_lead_back():
    runner, spans = runner_of(tiny_model("llama"))
    with torch.no_grad():
        pieces = runner.read(range(4), spans)
        (_, logits), *_ = pieces
        pieces.back()
    assert not logits.requires_grad
    torch.testing.assert_close(logits, runner.logits(range(4), spans).detach(), atol=1e-6, rtol=1e-5)


def without_a_decoder(model, monkeypatch):
    monkeypatch.setattr(model, "get_decoder", lambda: model, raising=False)


def with_a_decoder_that_does_not_run(model, monkeypatch):
    monkeypatch.setattr(model, "get_decoder", lambda: torch.nn.Linear(1, 1), raising=False)


def with_a_decoder_that_holds_the_head(model, monkeypatch):
    whole = copy.copy(model)
    monkeypatch.setattr(model, "get_decoder", lambda: whole, raising=False)


def of_processes(model, monkeypatch):
    monkeypatch.setattr("peft_surgical.running.pieces.is_sharded", lambda _: True)


@pytest.mark.parametrize(
    "change", [without_a_decoder, with_a_decoder_that_does_not_run, with_a_decoder_that_holds_the_head, of_processes]
)
def test_a_model_that_cannot_be_parted_makes_logits_in_one_piece(change, monkeypatch):
    monkeypatch.setattr("peft_surgical.running.pieces._POSITIONS", 4)
    model = tiny_model("llama")
    runner, spans = runner_of(model)
    expected = runner.logits(range(4), spans)
    weights = torch.linspace(-1, 1, expected.numel()).reshape(expected.shape)
    slopes = gradients(model, 0, expected)
    change(model, monkeypatch)
    assert unembedding_of(model) is None or change is with_a_decoder_that_does_not_run
    pieces = runner.read(range(4), spans)
    assert torch.equal(torch.cat(weighed(pieces, weights)), expected)
    pieces.back()
    for parameter, slope in zip(runner.layers.parameters(), slopes, strict=True):
        torch.testing.assert_close(parameter.grad, slope)


def test_a_head_may_read_other_states_than_the_decoder_gives():
    torch.manual_seed(0)
    sizes = {
        name: value for name, value in SIZES.items() if name not in ("num_key_value_heads", "tie_word_embeddings")
    }
    model = ElectraForCausalLM(ElectraConfig(**sizes, embedding_size=16, is_decoder=True)).eval()
    sequences = rows(PREFIX)
    runner, spans = SuffixRunner(model, model.electra.encoder.layer, 0, ()), spans_of(sequences, len(PREFIX))
    expected = runner.logits(runner.add(sequences), spans)
    weights = torch.linspace(-1, 1, expected.numel()).reshape(expected.shape)
    trained = [*runner.layers.parameters()]
    slopes = torch.autograd.grad((expected * weights).sum(), trained)
    pieces = runner.read(range(len(sequences)), spans)
    found = torch.cat(weighed(pieces, weights))
    pieces.back()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for parameter, slope in zip(trained, slopes, strict=True):
        torch.testing.assert_close(parameter.grad, slope, atol=1e-5, rtol=1e-4)


def test_the_model_is_as_before_also_after_an_exception():
    model = tiny_model("llama")
    runner, spans = runner_of(model)
    before = state(model)

    def broken(*_):
        raise RuntimeError("broken")

    for module in (runner.layers[1], runner.head):
        pieces = runner.read(range(4), spans)
        handle = module.register_forward_pre_hook(broken)
        with pytest.raises(RuntimeError, match="broken"):
            runner.read(range(4), spans) if module is not runner.head else [*pieces]
        handle.remove()
        assert state(model) == before


def test_sequences_stay_whole(monkeypatch):
    monkeypatch.setattr("peft_surgical.running.pieces._POSITIONS", 5)
    assert [*_together([3, 2, 1, 9, 1, 5])] == [range(2), range(2, 3), range(3, 4), range(4, 5), range(5, 6)]
    assert [*_together([])] == []
    # One with more than are worth a product is a piece by itself, wherever it stands.
    assert [*_together([99, 98])] == [range(1), range(1, 2)]
    assert [rows for rows, _ in Pieces(torch.zeros(6, 2), [3, 2, 1])] == [range(2), range(2, 3)]


def test_what_arrives_when_pieces_are_looked_at_again_is_added():
    leaf = torch.ones(3, 4, requires_grad=True)
    pieces = Pieces(2 * leaf, [1, 2])
    for factor in (1, 10):
        for _, logits in pieces:
            (factor * logits).sum().backward()
    pieces.back()
    assert torch.equal(leaf.grad, torch.full((3, 4), 22.0))
