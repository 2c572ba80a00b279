import pytest
import torch

from peft_surgical.errors import ModelError
from peft_surgical.localizing.bridge import left_as_found, wrap

from .tiny import FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_nobodys_random_numbers_are_drawn(family):
    model, before = tiny_model(family), torch.get_rng_state()
    wrap(model)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_models_weights_are_not_copied(family):
    model = tiny_model(family)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    copied = [p for p in wrap(model).parameters() if p.untyped_storage().data_ptr() not in own]
    # TransformerLens splits GPT-NeoX's, and this much and no more is copied.
    split = [p for name, p in model.named_parameters() if "query_key_value" in name]
    assert bool(split) == (family == "gpt_neox")
    assert sum(p.numel() for p in copied) == sum(p.numel() for p in split)


def test_a_model_whose_keys_and_values_transformer_lens_would_not_see_is_refused(monkeypatch):
    model = tiny_model("llama")

    def forward(self, input_ids=None, cache=None, **kwargs):
        raise AssertionError("nothing is run")

    monkeypatch.setattr(type(model), "forward", forward)
    with pytest.raises(ModelError, match=r"transformer-lens 4\..* and transformers 5\..* do not fit together"):
        wrap(model)


def test_what_a_block_of_code_leaves_in_the_model_is_taken_away():
    bridge = wrap(tiny_model("opt"))
    point = bridge.hook_dict["blocks.0.hook_in"]
    point.add_hook(lambda tensor, hook: None)

    def hooks():
        return [handle for point in bridge.hook_points() for handle in (*point.fwd_hooks, *point.bwd_hooks)]

    before = hooks()
    # TransformerLens's own, without which hooks of OPT's MLPs do not fire.
    assert any(handle.is_permanent for handle in before)
    with torch.no_grad():
        with left_as_found(bridge):
            point.add_hook(lambda tensor, hook: None)
            point.add_perma_hook(lambda tensor, hook: None)
            point.add_hook(lambda tensor, hook: None, dir="bwd")
            torch.set_grad_enabled(True)
        assert not torch.is_grad_enabled()
    assert hooks() == before
    assert len(point._forward_hooks) == 1
