"""Attention by plain products, in which heads that read the same keys and values read them together.

transformers' own plain attention repeats keys and values for each head that reads them, and its gradient adds the
copies up again; fused kernels repeat nothing, but their backward pass is the slower one on a processor. This one is
registered with transformers under a name, as its `AttentionInterface` is meant to be used:

```py
>>> model.set_attn_implementation(GROUPED)
```
"""

from __future__ import annotations

import sys
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

GROUPED = "peft_surgical_grouped"

_PLAIN = "eager_attention_forward"

# What models hand to attention that is in the mask already, or that only says what else to return.
_NOT_READ = frozenset(
    {
        "cache_position",
        "is_causal",
        "output_attentions",
        "output_hidden_states",
        "position_ids",
        "sliding_window",
        "use_cache",
    }
)


def grouped_attention(
    module: nn.Module,
    query: Float[Tensor, "batch head token dim"],
    key: Float[Tensor, "batch group position dim"],
    value: Float[Tensor, "batch group position dim"],
    attention_mask: Float[Tensor, "batch 1 token position"] | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Float[Tensor, "batch token head dim"], Float[Tensor, "batch head token position"]]:
    """Softmax attention, the numbers of transformers' `eager_attention_forward` up to rounding.

    Args:
        module: The attention module. Where it asks for more than the arguments here say (dropout, a soft cap, sinks),
            its own plain attention is what runs.
        query: Consecutive heads read the same group.
        key: Keys.
        value: Values.
        attention_mask: Is added to the scores.
        scaling: Factor of the scores.
        dropout: Share of weights that is left out.
        **others: What else models hand over.

    Returns:
        What is read, and the weights.
    """
    if scaling is None or dropout or any(v is not None and name not in _NOT_READ for name, v in others.items()):
        plain = getattr(sys.modules[type(module).__module__], _PLAIN)
        own: tuple[Tensor, Tensor] = plain(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others
        )
        return own
    (rows, heads, tokens, width), (groups, positions) = query.shape, key.shape[1:3]
    # The factor goes to the queries, which are fewer numbers than the scores.
    together = (query * scaling).reshape(rows * groups, heads // groups * tokens, width)
    scores = together @ key.reshape(rows * groups, positions, width).transpose(1, 2)
    scores = scores.view(rows, heads, tokens, positions)
    if attention_mask is not None:
        scores = scores + attention_mask
    # In half precision, too, the kernel computes in float32.
    weights = scores.softmax(-1)
    read = weights.view(*together.shape[:2], positions) @ value.reshape(rows * groups, positions, -1)
    return read.view(rows, heads, tokens, -1).transpose(1, 2).contiguous(), weights


def has_plain_attention(model: nn.Module) -> bool:
    """Whether a model comes with plain attention of the usual name, for what `grouped_attention` leaves to it."""
    return hasattr(sys.modules[type(model).__module__], _PLAIN)


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, eager_mask)
