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
