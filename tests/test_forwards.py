import pytest
import torch
from torch import nn

from peft_surgical.errors import ArchitectureError
from peft_surgical.running.forwards import form_of, forwards, passed_over, passing, read_at, stood_in
from peft_surgical.running.suffix import SuffixRunner
from peft_surgical.running.tails import TailRunner
from peft_surgical.stages import learn

from .staged import FACT, RECIPE, TOKENIZER, config
from .test_suffix import PREFIX, layers_of, plain, rows, spans_of
from .tiny import tiny_model


def test_forwards_are_replaced_in_a_block_and_hooks_stay():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    own = second.forward
    second.forward = lambda x: own(x) + 1  # as a device map hooks in
    mine = vars(second)["forward"]
    seen = []
    first.register_forward_hook(lambda _, __, out: seen.append(out))
    x = torch.ones(1, 2)
    plain = [layer(x) for layer in (first, second)]
    seen.clear()
    with forwards({first: passing(lambda hidden: 2 * hidden), second: lambda *_, **__: "other"}):
        assert torch.equal(first(x, 3, mask=4), 2 * x)
        assert second(x) == "other"
    assert len(seen) == 1
    assert "forward" not in vars(first)
    assert vars(second)["forward"] is mine
    assert all(torch.equal(layer(x), before) for layer, before in zip((first, second), plain, strict=True))


def test_forwards_come_back_after_an_exception():
    layer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="broken"), forwards({layer: passing(abs)}):
        raise RuntimeError("broken")
    assert "forward" not in vars(layer)


@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (2, 4, 8), (6, 8)])
def test_a_head_that_reads_no_state_for_each_token_is_told_of(shape):
    head, mask = nn.Linear(8, 16), torch.ones(2, 3, dtype=torch.bool)
    with read_at(head, mask):
        assert head(torch.zeros(2, 3, 8)).shape == (1, 6, 16)
        with pytest.raises(
            ArchitectureError, match=r"head reads states of shape \[.*8\], which .* of \[2, 3\] tokens"
        ):
            head(torch.zeros(shape))


def test_what_stands_in_for_a_module_has_none_of_its_hooks():
    layer, seen = nn.Linear(2, 2), []
    layer.register_forward_pre_hook(lambda *_: seen.append("before"))
    handle = layer.register_forward_hook(lambda *_: seen.append("behind"))
    hooks = layer._forward_hooks, layer._forward_pre_hooks
    x = torch.ones(1, 2)
    with stood_in({layer: passing(lambda hidden: 2 * hidden)}):
        assert torch.equal(layer(x), 2 * x)
        assert not seen
        handle.remove()
    with pytest.raises(RuntimeError, match="broken"), stood_in({layer: passing(abs)}):
        raise RuntimeError("broken")
    assert (layer._forward_hooks, layer._forward_pre_hooks) == hooks
    layer(x)
    assert seen == ["before"]


def steered(kind, layer, model):
    vector = torch.linspace(-1, 1, model.config.hidden_size)

    def first(states):
        return (states[0] + vector, *states[1:]) if isinstance(states, tuple) else states + vector

    if kind == "behind":
        layers_of(model)[layer].register_forward_hook(lambda _, __, out: first(out))
    else:
        layers_of(model)[layer].register_forward_pre_hook(lambda _, args: first(args))


@pytest.mark.parametrize("kind", ["before", "behind"])
@pytest.mark.parametrize("prefix", [(), PREFIX], ids=["alone", "shared"])
@pytest.mark.parametrize("room", [2**30, 0])
def test_somebodys_hooks_act_once_on_what_enters_the_first_trained_layer(room, prefix, kind):
    sequences = rows(prefix)
    spans = spans_of(sequences, len(prefix))
    for layers in ([0], [1], [2], [0, 1, 2]):
        model = tiny_model("llama")
        for layer in layers:
            steered(kind, layer, model)
        expected = plain(model, sequences, spans)
        runner = SuffixRunner(model, layers_of(model), 2, prefix, room=room)
        tails = TailRunner(model, layers_of(model), 2, room=room)
        runner.add(sequences)
        tails.add(sequences, starts=[len(prefix)] * 4)
        for one in (runner, runner.unshared(), tails):
            torch.testing.assert_close(one.logits(range(4), spans), expected, atol=2e-5, rtol=1e-4)


def test_a_stage_above_a_hook_is_that_of_a_model_with_an_equal_bias():
    hooked, biased = tiny_model("llama"), tiny_model("llama")
    vector = 0.5 * torch.linspace(-1, 1, hooked.config.hidden_size)
    layers_of(hooked)[0].register_forward_hook(lambda _, __, states: states + vector)
    layers_of(biased)[0].mlp.down_proj.bias = nn.Parameter(vector)
    stages = [learn(model, TOKENIZER, FACT, config(["L2.mlp"]), recipe=RECIPE) for model in (hooked, biased)]
    found, expected = (
        {name: value for name, value in stage.model.named_parameters() if "surgical_ia3_delta" in name}
        for stage in stages
    )
    assert found.keys() == expected.keys()
    assert max(value.abs().max() for value in expected.values()) > 0.1
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert stages[0].record.loss == pytest.approx(stages[1].record.loss)


def test_layers_that_are_passed_over_hand_through_what_enters_the_first_of_them():
    model, seen = tiny_model("llama"), []
    layers = layers_of(model)
    ids = torch.tensor([PREFIX])
    layers[0].register_forward_hook(lambda _, __, out: seen.append(out))
    model.model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    steered("before", 1, model)
    steered("behind", 2, model)
    with passed_over(layers, 1):
        model(ids)
    assert torch.equal(*seen)


def test_what_passes_a_layer_by_has_the_form_in_which_another_gives_it():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), None

    x = torch.ones(1, 2)
    for kind, expected in ((nn.Linear, False), (Pair, True)):
        layer, other = kind(2, 2), kind(2, 2)
        with form_of(layer) as in_tuple, forwards({other: passing(lambda hidden: hidden, in_tuple)}):
            layer(x)
            given = other(x)
        assert isinstance(given, tuple) == expected
        assert (given[0] if expected else given) is x
        assert not layer._forward_hooks
