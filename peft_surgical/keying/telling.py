"""What a keyed edit tells the subject from, and from which token on it runs a prompt of the fact."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from ..facts import TrainingFact
from ..running.beginnings import shared_prefix
from ..staging.retain import spaced
from ..staging.retained import Rows
from ..texts.prompts import EncodedAnswer, span, unanswered
from ..texts.subjects import subject_ends
from . import naming
from .keys import Marked

# So many of the fact's prompts go with one question that asks something else of the subject.
_ONE_IN = 3


def named_by_any(tokenizer: Any, fact: TrainingFact, prompts: Sequence[str], own: Marked) -> Marked:
    """The fact's rows, in which the subject is marked, with the last tokens of its other names marked too."""
    others = (subject_ends(tokenizer, prompts, name, own.rows, fact.contrast) for name in fact.aliases)
    return Marked(own.rows, [sorted(set(chain(*marks))) for marks in zip(own.marks, *others, strict=True)])


def run_from(named: Marked, held: Sequence[EncodedAnswer]) -> tuple[list[int], int]:
    """The token from which each of the fact's rows is run at every step, and the first that others may be run from.

    It is the first marked token, but no later than the last before the answer. Where no token is marked, it is the
    first after what all rows begin with. What the neurons do before it is left out: the subject is told apart from it.

    Args:
        named: The fact's rows, the subject marked.
        held: What training holds to.

    Returns:
        A token for each of the fact's rows, and the first after what all begin with.
    """
    own = [min(marks[0], span(row)[0]) if marks else None for row, marks in zip(named.rows, named.marks, strict=True)]
    every = [*named.rows, *held]
    prefix = shared_prefix([row.ids for row in every], [span(row)[0] for row in every])
    prefix = min([prefix, *(start for start in own if start is not None)])
    return [prefix if start is None else start for start in own], prefix


def told_apart(
    model: Any,
    tokenizer: Any,
    fact: TrainingFact,
    own: Marked,
    named: Marked,
    starts: Sequence[int],
    kept: Rows,
    *,
    namesakes: int,
    seed: int,
) -> tuple[list[Marked], list[Marked], Marked]:
    """The texts where the subject stands, and those that it is told apart from.

    Of the kept questions about the subject a few are among the first, a third as many as the fact's prompts, and the
    others among neither; what a neuron writes there is trained to make no difference. Told to fire at all of them, it
    would do so whatever is asked of the subject; at none, or told to be shut, it would miss other wordings of the fact
    than those of its prompts. In answers to them only a name by the tokens of its prompt counts; what an answer begins
    with, or another name there, is told apart.

    Args:
        model: The base; a namesake that it has no room for is left out.
        tokenizer: Its tokenizer.
        fact: The fact.
        own: Its own rows, the subject marked.
        named: The same with its other names marked too, from [`named_by_any`].
        starts: From [`run_from`]; what stands before is told apart, too.
        kept: What is kept.
        namesakes: From how many others it is told apart whose names end as the subject's.
        seed: Decides which.

    Returns:
        For each of its names where that stands; kinds of what it is told from, which count alike, all without first
        tokens; and first tokens, unless the subject is one.
    """
    near = kept.rows[: kept.near]
    about = Marked(near, subject_ends(tokenizer, kept.prompts, fact.subject, near, fact.contrast))
    asked = [(row, marks) for row, marks in zip(near, about.marks, strict=True) if marks]
    few = spaced(asked, sum(map(bool, own.marks)) // _ONE_IN)
    fires = Marked([*own.rows, *(row for row, _ in few)], [*own.marks, *(marks for _, marks in few)])
    names = [fires, *naming.under_aliases(model, tokenizer, fact)]
    # What is carried and not kept may be what an evaluation asks, and is not looked at.
    kinds = [
        Marked.whole(near).but_for(named_by_any(tokenizer, fact, kept.prompts, about)),
        Marked.whole(kept.rows[kept.near :]),
        naming.namesakes(model, tokenizer, fact, namesakes, seed),
    ]
    before = [(row.ids, start) for row, start in zip(named.rows, starts, strict=True) if start > 1]
    kinds.append(Marked.whole([unanswered(ids[:start]) for ids, start in before]))
    first = Marked.first_of([*named.rows, *kept.rows], named.marks)
    return [kind for kind in names if any(kind.marks)], [kind for kind in kinds if any(kind.marks)], first
