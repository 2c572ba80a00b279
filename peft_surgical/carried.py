"""Measure what a selection carries together.

    carried = faithfulness(model, tokenizer, fact, loc.top(10))
    carried.faithfulness.own, carried.faithfulness.random

Scores tell what each component does alone; effects of several overlap, mend one another and add up, so that the best
ten need not be the best together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .architectures import check_causal
from .counts import check_counts, check_positive
from .errors import ScorerError, SelectionError, brief
from .facts import Fact, TrainingFact
from .localizing.asked import asked, checked
from .localizing.circuits import kept, random_selections
from .localizing.faithfulness import Carried, Faithfulness
from .profiling import phase
from .progress import tracked
from .selection import Selection
from .sites import ModelShape

DRAWS = 20
"""How many random selections a selection is measured beside."""


@phase("faithfulness")
def faithfulness(
    model: nn.Module,
    tokenizer: Any,
    fact: Fact | TrainingFact,
    selection: Selection,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    prompts: int | None = None,
    least: float = 0.1,
    max_tokens: int = 2048,
    progress: bool = True,
) -> Faithfulness:
    """Measure how much of a fact a selection carries together, beside random selections of the same size.

    `clean` and `corrupted` are the logit of the old answer less that of what the model says to the corrupted prompt,
    in the two runs, as [`localize`] has them. `m(S)` is the same of the clean prompt where all heads and MLPs but
    those of `S` are taken from the corrupted run (heads at `z`, MLPs at `post`, at every position), and those of `S`
    go on computing, from what they then read. For a selection `C` among all components `M`, a prompt has

    - faithfulness `(m(C) - corrupted) / (clean - corrupted)`, as in MIB (Mueller et al., arXiv 2504.13151), and
    - necessity `(clean - m(M without C)) / (clean - corrupted)`, which is 1 less the faithfulness of the complement,
      what Marks et al. (arXiv 2403.19647) call completeness.

    Both may be below 0 or above 1, and their sum need not be 1. They are means over the prompts, where those papers
    divide means. Embeddings are no component and stay the clean prompt's; where the last token is the same in both
    runs, as it nearly always is, taking all components gives the corrupted run's answer. Computed in float32.

    Args:
        model: A Hugging Face causal language model, as for [`localize`]; it is left as it was.
        tokenizer: Its tokenizer.
        fact: The fact; only its training part is used.
        selection: What is kept or taken together; of an MLP with neurons only these.
        draws: How many random selections to measure beside it, of as many heads, MLPs and neurons, drawn evenly from
            all that the model has. None at 0, nor where no other selection is as large, as of all MLPs.
        seed: For the draws, and for the corruption, which is [`localize`]'s with the same seed.
        prompts: Use only the first so many of the fact's prompts.
        least: Prompts whose logit difference the corruption lowers by less than this, in logits, are left out: what
            one divides by would be near 0.
        max_tokens: Bounds the memory above the weights: rows × positions of one forward pass.
        progress: Show a progress bar on a terminal or in a notebook.

    Returns:
        The figures. Where every prompt was left out there are none; the prompts stand in `left_out`.

    Raises:
        SelectionError: When it is no selection, or not of this model.
        ScorerError: When `draws`, `seed` or `max_tokens` is no whole number or out of range.
        FactError: When a prompt has no token that distinguishes the answers or is too short to be corrupted, or
            `prompts` is no positive whole number.
        ModelError: When it is no model or one that [`localize`] refuses, `least` is no finite number above 0, or a
            patched run gives logits that are not finite. `torch.inference_mode()`, which [`localize`] refuses, is none
            of these: this takes no gradients.
        ArchitectureError: When its architecture is not known or its modules are laid out otherwise, or it is no causal
            language model.
    """
    training = checked(model, tokenizer, fact, seed=seed, prompts=prompts, max_tokens=max_tokens)
    check_counts(0, ScorerError, draws=draws)
    check_positive(least=least)
    if not isinstance(selection, Selection):
        raise SelectionError(
            f"a selection must be a Selection, such as loc.top(10) or Selection.from_components gives, not"
            f" {brief(selection)}."
        )
    check_causal(model)
    shape = ModelShape.from_config(model.config)
    selection.check(shape)
    with asked(model, tokenizer, training, seed=seed, prompts=prompts, max_tokens=max_tokens) as started:
        moved = [pair for pair in started.pairs if pair.differences[0] - pair.differences[1] >= least]
        circuits = [selection, *random_selections(selection, shape, draws, seed)]
        alone = without = torch.zeros(0, len(circuits))
        if moved:
            shown = tracked(moved, len(moved), "faithfulness", enabled=progress)
            alone, without = kept(started.precise, shape, shown, circuits, max_tokens)
    return Faithfulness(
        selection=selection,
        faithfulness=Carried.of(alone),
        necessity=Carried.of(1 - without),
        left_out=tuple(pair.prompt for pair in started.pairs if pair not in moved),
        least=float(least),
        seed=seed,
    )
