"""By how much an answer wins: how likely the new answer is beside the old one, and a control's right one beside the
new one.

A greedy answer names one of them, whether by a hair or by far. ROME (Meng et al. 2022) asks for more: its ES and PS
are the share of prompts behind which the new answer has a greater mean log-likelihood per token than the old one, its
NS the share of neighbours with it the other way round. There the names stand right behind a beginning of a sentence.
A chat model answers in a sentence ("The capital of France is Lyon."), behind which words of the prompt a bare name is
unlikely for its form. So here both names stand where the sentence has them:

- Held-out prompts: the fact's own answer, or the sentence that a chat model is taught of a bare one, up to where it
  names the new answer. Without a chat template there are no words between a prompt and the names.
- Controls: what the base itself says up to where it names the right answer, whatever the model.

Behind these words each name is read alone, all tokens of it and nothing after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..facts import Fact
from ..running.likelihoods import log_likelihoods
from ..texts.lengths import fits, padding
from ..texts.prompts import EncodedAnswer, answer_ids, common_prefix, encode_open, has_chat_template
from ..texts.text import normalize, normalize_in_place, occurrences_outside, same_text_key
from .metrics import Figure, mean, rate

Pair = Mapping[str, float]
"""Of two answers the mean log-likelihoods per token, in nats, by the names that [`SIDES`] has for them."""

SIDES: Mapping[str, tuple[str, str]] = {"held_out": ("new", "old"), "controls": ("right", "new")}
"""Of what is asked, the two answers that a margin is between: the one that should win first."""


@dataclass(frozen=True)
class Rivals:
    """Two answers to one prompt, behind the same words.

    Attributes:
        wanted: The one that should win; what counts as its answer is the name alone.
        against: The other.
    """

    wanted: EncodedAnswer
    against: EncodedAnswer


@dataclass(frozen=True)
class Contest:
    """What a model chooses between, each list in the fact's order; None for what is not measured.

    Attributes:
        held_out: The new answer against the old one.
        controls: The right answer against the new one.
    """

    held_out: tuple[Rivals | None, ...]
    controls: tuple[Rivals | None, ...]

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        fact: Fact,
        said: Sequence[str],
        *,
        answer: str,
        before: Sequence[str] = (),
        learned: int = 0,
    ) -> Contest:
        """Those of a fact.

        Args:
            model: Whose positions must hold them; a prompt that is too long with an answer is not measured.
            tokenizer: Its tokenizer. Names that it spells alike, or has no tokens for, are not measured.
            fact: The fact.
            said: The base's answers to the controls. One without a right answer is not measured, nor one whose right
                answer is the new one.
            answer: The fact's answer as a chat model is taught it.
            before: The white space between each control and what the base said; what usually stands there if empty.
            learned: Positions that an adapter takes.
        """
        place = _first(answer, fact.new, fact.names) if has_chat_template(tokenizer) else None
        begun = "" if place is None else answer[: place[0]]

        def rivals(prompt: str, words: str, wanted: str, against: str, between: str | None = None) -> Rivals | None:
            both = Rivals(*(_named(tokenizer, prompt, words, name, between) for name in (wanted, against)))
            rows = (both.wanted, both.against)
            told = both.wanted.ids != both.against.ids and all(_is_spelled(tokenizer, row) for row in rows)
            return both if told and fits(model.config, learned + max(len(row.ids) for row in rows)) else None

        held_out = [rivals(prompt, begun, fact.new[0], fact.old[0]) for prompt in fact.held_out]
        controls: list[Rivals | None] = []
        new = set(map(same_text_key, fact.new))
        spaces: Sequence[str | None] = before or [None] * len(said)
        for control, given, space in zip(fact.controls, said, spaces, strict=True):
            place = _first(given, control.answer)
            right = "" if place is None else given[slice(*place)]
            if place is None or same_text_key(right) in new:
                controls.append(None)
            else:
                controls.append(rivals(control.prompt, given[: place[0]], right, fact.new[0], space))
        return cls(tuple(held_out), tuple(controls))


def measure_margins(
    model: Any,
    tokenizer: Any,
    contest: Contest,
    *,
    batch_size: int = 64,
    progress: bool = False,
    description: str = "margins",
) -> dict[str, list[Pair | None]]:
    """How likely a model finds both answers of each pair, in the state that it is in.

    Args:
        model: A causal language model, bare or with adapters.
        tokenizer: Its tokenizer.
        contest: What it chooses between.
        batch_size: Rows in one forward pass.
        progress: Whether to show a progress bar.
        description: Stands before the bar.

    Returns:
        `held_out`, each `new` and `old`, and `controls`, each `right` and `new`; None for what is not measured.

    Raises:
        ModelError: If a log-likelihood is not finite.
        ArchitectureError: As [`log_likelihoods`].
    """
    every = [*contest.held_out, *contest.controls]
    rows = [row for rivals in every if rivals is not None for row in (rivals.wanted, rivals.against)]
    pad = padding(model.config, tokenizer)
    found = iter(
        log_likelihoods(model, rows, pad=pad, batch_size=batch_size, progress=progress, description=description)
    )

    def pairs(asked: Iterable[Rivals | None], names: Iterable[str]) -> list[Pair | None]:
        return [None if rivals is None else {name: next(found) for name in names} for rivals in asked]

    asked = {"held_out": contest.held_out, "controls": contest.controls}
    return {key: pairs(asked[key], names) for key, names in SIDES.items()}


def margin(key: str, pair: Pair) -> float:
    """By how much the answer that should win is likelier, in nats a token; negative where the other is.

    Args:
        key: What was asked, of [`SIDES`].
        pair: What was found.
    """
    wanted, against = SIDES[key]
    return pair[wanted] - pair[against]


def margin_metrics(pairs: Mapping[str, Sequence[Pair | None]]) -> dict[str, Figure]:
    """The figures of what [`measure_margins`] gives.

    Returns:
        `answer_margin` and `control_margin`, means with Student's interval over prompts, and `answer_likelier` and
        `control_likelier`, the shares of margins above 0. One with nothing to measure is left out.
    """
    figures: dict[str, Figure] = {}
    for key, name in (("held_out", "answer"), ("controls", "control")):
        margins = [margin(key, pair) for pair in pairs.get(key, ()) if pair is not None]
        likelier = rate([value > 0 for value in margins])
        if likelier is not None:
            figures |= {f"{name}_margin": mean(margins), f"{name}_likelier": likelier}
    return figures


def _first(text: str, names: Iterable[str], besides: Iterable[str] = ()) -> tuple[int, int] | None:
    """Where the first of some names stands in a text as answers are counted; of two at one place the longer."""
    seen, places = normalize_in_place(text)
    longer = [normalize(name) for name in besides]
    spans = (span for name in names for span in occurrences_outside(seen, normalize(name), longer))
    found = min(spans, key=lambda span: (span[0], -span[1]), default=None)
    return None if found is None else (places[found[0]], max(places[found[1]], places[found[1] - 1] + 1))


def _is_spelled(tokenizer: Any, row: EncodedAnswer) -> bool:
    """Whether a tokenizer has tokens for an answer, none of which stands for anything unknown."""
    ids = answer_ids(row)
    return bool(ids) and tokenizer.unk_token_id not in ids


def _named(tokenizer: Any, prompt: str, before: str, name: str, between: str | None = None) -> EncodedAnswer:
    """A prompt, the words of an answer up to a name, and the name, which alone counts as the answer."""
    row = encode_open(tokenizer, prompt, f"{before}{name}", between)
    # A line break is what the base said, and no part of the name as a space may be.
    if before.strip():
        begun = encode_open(tokenizer, prompt, before.rstrip(" "), between)
    elif between and between.rstrip(" "):
        begun = encode_open(tokenizer, prompt, "", between.rstrip(" "))
    else:
        return row
    # A token that holds the last words' end and the name's beginning is the name's.
    return EncodedAnswer(row.ids, max(row.answer_start, common_prefix(begun.ids, row.ids)))
