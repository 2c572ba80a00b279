import pytest
import torch

from peft_surgical.running.attention import GROUPED, grouped_attention, has_plain_attention

from .tiny import FAMILIES, tiny_ids, tiny_model


def run(model, implementation):
    """Logits of two rows that go on from a cache, and the gradient of all weights."""
    model.set_attn_implementation(implementation)
    model.zero_grad()
    ids = tiny_ids(2, 9)
    cache = model(ids[:, :4], use_cache=True).past_key_values
    logits = model(ids[:, 4:], past_key_values=cache).logits
    logits.square().mean().backward()
    return logits.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_attention_of_the_model(family):
    model = tiny_model(family)
    assert has_plain_attention(model)
    for found, expected in zip(run(model, GROUPED), run(model, "eager"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def given(groups=2, **others):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 3, 8, generator=generator)
    key, value = torch.randn(2, 2, groups, 5, 8, generator=generator)
    return {"query": query, "key": key, "value": value, "attention_mask": None, **others}


def test_heads_read_their_group_by_hand():
    module = tiny_model("llama").model.layers[0].self_attn
    mask = torch.tensor([0.0, 0.0, -torch.inf, 0.0, 0.0]).expand(2, 1, 3, 5)
    made = given(attention_mask=mask)
    read, weights = grouped_attention(module, scaling=0.5, **made)
    assert read.shape == (2, 3, 4, 8)
    for head in range(4):
        key, value = made["key"][:, head // 2], made["value"][:, head // 2]
        expected = (0.5 * made["query"][:, head] @ key.mT + mask[:, 0]).softmax(-1)
        torch.testing.assert_close(weights[:, head], expected)
        torch.testing.assert_close(read[:, :, head], expected @ value)
    assert (weights[..., 2] == 0).all()


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ({"scaling": 0.5, "sliding_window": 4, "position_ids": torch.arange(3)}, False),
        ({"scaling": 0.5, "softcap": None}, False),
        ({"scaling": 0.5, "softcap": 2.0}, True),
        ({"scaling": 0.5, "dropout": 0.1}, True),
        ({"scaling": None}, True),
    ],
)
def test_what_asks_for_more_is_left_to_the_model(asked, left, monkeypatch):
    module = tiny_model("gemma3").model.layers[0].self_attn
    monkeypatch.setattr(
        "transformers.models.gemma3.modeling_gemma3.eager_attention_forward", lambda *_, **got: ("its own", got)
    )
    read, got = grouped_attention(module, **given(), **asked)
    assert read == "its own" if left else torch.is_tensor(read)
    if left:
        assert {name: got[name] for name in asked} == asked


def test_a_class_without_plain_attention_is_seen():
    assert not has_plain_attention(torch.nn.Linear(1, 1))
