"""What a stage trains on: the fact's prompts, some of them as people type them, each with its answer."""

from __future__ import annotations

from typing import Any

from ..facts import TrainingFact
from ..texts.lengths import check_row, fits
from ..texts.prompts import EncodedAnswer, check_answer_spelled, encode, encode_answer
from ..texts.wording import variants
from .recipe import Recipe


def training_prompts(fact: TrainingFact, recipe: Recipe) -> list[str]:
    """The prompts that a stage trains on: the fact's, then some of them as people type them."""
    made = dict.fromkeys(prompt for prompt in variants(fact.prompts) if fact.may_train_on(prompt))
    return [*fact.prompts, *[prompt for prompt in made if prompt not in fact.prompts][: recipe.variants]]


def training_rows(
    model: Any, tokenizer: Any, fact: TrainingFact, recipe: Recipe, answer: str
) -> tuple[list[str], list[EncodedAnswer]]:
    """The prompts of [`training_prompts`], and each of them with the answer as a row.

    Made-up prompts that are too long for the model are left out.

    Raises:
        FactError: If the fact's answer is taught and the tokenizer does not know a token of it.
        ModelError: If one of the fact's own is too long.
    """
    if answer == fact.answer:
        check_answer_spelled(tokenizer, fact)
    prompts = training_prompts(fact, recipe)
    rows = [encode_answer(tokenizer, prompt, answer) for prompt in prompts]
    for row in rows[: len(fact.prompts)]:
        check_row(model.config, row.ids)
    fitting = [i for i, row in enumerate(rows) if fits(model.config, len(row.ids))]
    return [prompts[i] for i in fitting], [rows[i] for i in fitting]


def check_retain_fits(model: Any, tokenizer: Any, fact: TrainingFact, recipe: Recipe) -> None:
    """Refuses a prompt to retain that is too long for the model.

    Raises:
        ModelError: If there is one.
    """
    for prompt in fact.retain:
        check_row(model.config, encode(tokenizer, prompt), recipe.retain_tokens)
