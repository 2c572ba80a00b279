import pytest
import torch
from torch import nn

from peft_surgical.running.forwards import form_of, forwards, passing


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
