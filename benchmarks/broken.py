"""A model that an edit has broken: it answers nothing, and the benchmark goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from peft_surgical.errors import NotFiniteError

Answer = TypeVar("Answer")


def unless_broken(answer: Callable[[], Answer], nothing: Answer) -> Answer:
    """What a model answers, or `nothing` where its logits are not finite.

    Args:
        answer: Asks the model.
        nothing: Stands for no answer, of the same form.
    """
    try:
        return answer()
    except NotFiniteError:
        return nothing
