import pytest

from peft_surgical.running.modes import evaluating

from .adapters import tiny_peft
from .conftest import fingerprint


@pytest.mark.parametrize("mode", [True, False])
def test_each_module_has_its_own_mode_again(mode):
    model = tiny_peft("gpt2").train(mode)
    for module in list(model.modules())[::3]:
        module.training = not mode
    before = fingerprint(model)
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert fingerprint(model) == before
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert fingerprint(model) == before


def test_an_interrupt_on_the_way_in_leaves_each_module_its_own_mode(monkeypatch):
    model = tiny_peft("gpt2").train()
    before = fingerprint(model)

    def half_done():
        model.base_model.eval()
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "eval", half_done)
    with pytest.raises(KeyboardInterrupt), evaluating(model):
        raise AssertionError
    assert fingerprint(model) == before
