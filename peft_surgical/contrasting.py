"""Other subjects of the same kind for a fact that names none: an edit does its first damage to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .drafting.others import others_of, propose_others, swappable
from .drafting.reading import read_prompt
from .errors import FactError, ModelError
from .facts import TrainingFact
from .prompts import mentions

MOST = 12


def contrasted(model: Any, tokenizer: Any, fact: TrainingFact) -> TrainingFact:
    """The fact with `contrast` subjects, its own where it has any.

    Others come from the package's tables where they know what kind of thing the subject is, else the model is asked
    for things like it.

    Args:
        model: Asked greedily.
        tokenizer: Its tokenizer.
        fact: Its first prompt that names the subject says what is asked of it.

    Returns:
        The fact; as it was where no prompt can be read, nothing of the kind is known, or the model has too few
        positions to be asked.
    """
    prompt = next((prompt for prompt in fact.prompts if mentions(prompt, fact.subject)), None)
    if fact.contrast or prompt is None:
        return fact
    try:
        reading = read_prompt(prompt, fact.subject, fact.old, fact.new)
    except FactError:
        return fact
    answers = (*fact.old, *fact.new)
    names = others_of(reading, answers)
    if not names:
        try:
            names = propose_others(model, tokenizer, reading, answers)
        except ModelError:
            return fact
    return replace(fact, contrast=tuple(swappable(reading, names)[:MOST]))
