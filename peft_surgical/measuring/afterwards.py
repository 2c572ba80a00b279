"""States of a model after what may happen to it: weights rounded to few bits, or a little fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..facts import Fact
from .relearning import relearned_state
from .rounding import rounded_state
from .states import State, within

_EDITED = "edited"


def with_rounded(model: Any, states: Mapping[str, State], bits: Sequence[int]) -> dict[str, State]:
    """Adds base and edited in few bits to states, before the last, which is the one that a report is about.

    Args:
        model: As [`~peft_surgical.measuring.attached.attach`] returns it, or a bare one.
        states: As it returns them; of a bare model `edited` may be that of an edited checkpoint.
        bits: Numbers of bits.

    Raises:
        ModelError: If the model has no weights at hand that could be rounded.
    """
    adapters, checkpoint = _edited_by(model, states)
    rounded: dict[str, State] = {}
    for number in bits:
        rounded[f"base in {number} bits"] = base = rounded_state(model, [], number)
        if adapters:
            rounded[f"edited in {number} bits"] = rounded_state(model, adapters, number)
        elif checkpoint is not None:
            rounded[f"edited in {number} bits"] = within(checkpoint, base)
    return _before_last(states, rounded)


def with_relearned(
    model: Any,
    states: Mapping[str, State],
    tokenizer: Any,
    fact: Fact,
    steps: Sequence[int],
    *,
    seed: int,
    progress: bool,
) -> dict[str, State]:
    """Adds base and edited after a little fine-tuning on the old answer, before the last as [`with_rounded`] does.

    Args:
        model: As for [`with_rounded`].
        states: As for [`with_rounded`].
        tokenizer: The model's.
        fact: Some of its training prompts are relearned.
        steps: Numbers of steps.
        seed: Decides which prompts, and the first values of what is trained.
        progress: Whether to show progress bars.

    Raises:
        ModelError: If the model has no weights at hand that could be fine-tuned, or too few positions.
    """
    adapters, checkpoint = _edited_by(model, states)
    relearned: dict[str, State] = {}
    for number in steps:
        for name in ("base", *([_EDITED] if adapters or checkpoint is not None else [])):
            acting, edited = (adapters, checkpoint) if name == _EDITED else ([], None)
            relearned[f"{name} relearned {number} step{'s' * (number != 1)}"] = relearned_state(
                model, tokenizer, fact, acting, number, seed=seed, progress=progress, edited=edited
            )
    return _before_last(states, relearned)


def _edited_by(model: Any, states: Mapping[str, State]) -> tuple[list[str], State | None]:
    """The adapters that make the edited model, or where there are none the state that does, if any."""
    adapters = list(getattr(model, "peft_config", {}))
    return adapters, None if adapters else states.get(_EDITED)


def _before_last(states: Mapping[str, State], added: Mapping[str, State]) -> dict[str, State]:
    if _EDITED not in states:
        return {**states, **added}
    *first, last = states.items()
    return dict([*first, *added.items(), last])
