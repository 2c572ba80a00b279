"""What training keeps: prompts about other things, with the base's own answers to them.

Near the fact: its `retain` prompts, its *neighbours*, the training prompts with the subject swapped for a `contrast`
subject ("the capital of Norway"), where an edit does its first damage, and open questions about its own names. Far
from it: everyday requests and general questions that come with the package. An evaluation reads none of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..facts import TrainingFact
from ..running.generation import generate_ids
from ..seeding import drawing
from ..texts.called import called, is_everyday
from ..texts.prompts import EncodedAnswer, encode
from ..texts.tables import read_data
from ..texts.text import mentions, same_text_key, swap_subject
from ..texts.topics import topic_prompts
from ..texts.wording import variants

# Prompts that are answered at a time: as many as an edit asks are two batches or more, which threads share.
_AT_ONCE = 96
# "Golden Gate Bridge", "The Lord of the Rings", "R2-D2".
_PROPER = re.compile(r"\b[A-Z][\w'\u2019.&-]*(?:\s(?:(?:of|the|de|van|von)\s)*[A-Z][\w'\u2019.&-]*)*")
_WITHIN = re.compile(r"\s(?:of|the|de|van|von)\s(?:the\s)?")
_QUOTES = ('"', "\u201c")
_BEGINS = (".", "?", "!", ":", *_QUOTES)
# A title's small words are part of it: "Call Me by Your Name".
_QUOTED = re.compile('["\u201c]([A-Z][^"\u201c\u201d]*)["\u201d]')
# What begins a request, and seldom stands within one; and what is short for two words.
_REQUEST = re.compile(
    r"any|complete|continue|convert|correct|define|explain|finish|fix|identify|list|quiz|rewrite|suggest|summari[sz]e|"
    r"translate|.+['\u2019](?:t|m|d|re|ll|ve)",
    re.I,
)

Item = TypeVar("Item")


def neighbours(fact: TrainingFact, count: int, seed: int = 0) -> list[str]:
    """Training prompts about other subjects of the same kind.

    Args:
        fact: Its prompts and contrast subjects; prompts that do not name the subject have no neighbour.
        count: How many at most, spread evenly over subjects.
        seed: Which prompts meet which subjects.

    Returns:
        Distinct prompts, without those that name the subject still, elsewhere than within the other name.
    """
    prompts = [prompt for prompt in fact.prompts if mentions(prompt, fact.subject)]
    rng = drawing(seed)
    by_subject = [[(swap_subject(p, fact.subject, name), name) for p in prompts] for name in fact.contrast]
    for made in by_subject:
        rng.shuffle(made)
    rounds = [made[i] for i in range(len(prompts)) for made in by_subject]
    own = {same_text_key(prompt) for prompt in fact.prompts}
    distinct = {same_text_key(made[0]): made for made in rounds if same_text_key(made[0]) not in own}
    return [prompt for prompt, name in distinct.values() if not fact.named_beside(prompt, name)][:count]


def everyday_prompts() -> list[str]:
    """Requests that have to do with no fact: write, explain, translate, count."""
    return _lines("everyday.txt")


def general_prompts() -> list[str]:
    """Short factual questions of many kinds, in no order."""
    return _lines("general.txt")


def _lines(name: str) -> list[str]:
    return [line for line in read_data(name).splitlines() if line.strip()]


def carried_prompts(general: int, everyday: int | None = None) -> list[str]:
    """What the package carries to be kept by an edit of any fact: so many of its everyday requests, evenly spaced, all
    when None, and of its general questions."""
    requests = everyday_prompts()
    # Like requests stand together.
    return [*spaced(requests, len(requests) if everyday is None else everyday), *general_prompts()[:general]]


def carried_beside(fact: TrainingFact, general: int, everyday: int | None = None) -> list[str]:
    """Those of [`carried_prompts`] that name neither the fact's subject nor what a control names.

    The package cannot know which fact is edited, and must not hold the model to it; nor may a question of its own ask
    in other words what a control asks.
    """
    return [
        prompt
        for prompt in carried_prompts(general, everyday)
        if not fact.named_in(prompt) and not names_asked(fact, prompt)
    ]


def names_asked(fact: TrainingFact, prompt: str) -> bool:
    """Whether a prompt has a name, or what else that is called, that a control names."""
    said = (other for name in _proper_names(prompt) for other in called(name, fact.names))
    return not all(map(fact.may_train_about, said))


def _proper_names(prompt: str) -> list[str]:
    """The names in a prompt: runs of words with capitals, their parts between words as "of", and titles in quotation
    marks.

    A sentence's first word has a capital anyway: alone it is a name unless texts hold it without one, and a run stands
    with and without it.
    """
    found = [title for title in _QUOTED.findall(prompt) if " " in title or _tells(title)]
    for place in _PROPER.finditer(prompt):
        name = place[0]
        before = prompt[: place.start()].rstrip()[-1:]
        if not before or before in _BEGINS:
            first, _, name = name.partition(" ")
            if name:
                found.append(f"{first} {name}")
            elif before not in _QUOTES and _tells(first):
                name = first
        found += [part for part in map(_bare, (name, *_WITHIN.split(name))) if len(part) > 1]
    return found


def _bare(name: str) -> str:
    return re.sub("['\u2019]s?$", "", name.rstrip("."))


def _tells(first: str) -> bool:
    """Whether a word has its capital for being a name, and not only for being the first."""
    word = _bare(first)
    return not is_everyday(word.casefold()) and not _REQUEST.fullmatch(word)


def spaced(items: Sequence[Item], count: int) -> list[Item]:
    """So many of some items, evenly spaced; all where there are no more."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def retain_prompts(
    fact: TrainingFact,
    neighbour_count: int,
    general_count: int,
    seed: int = 0,
    besides: Sequence[str] = (),
    everyday_count: int | None = None,
) -> tuple[list[str], list[str]]:
    """All prompts whose base behaviour training keeps.

    Args:
        fact: The fact.
        neighbour_count: How many [`neighbours`] at most; half as many are asked once more as people type them.
        general_count: How many of the general questions.
        seed: As for [`neighbours`].
        besides: More prompts near the fact.
        everyday_count: How many of the everyday requests; all when None.

    Returns:
        Those near the fact and those far from it.
    """
    made = neighbours(fact, neighbour_count, seed)
    near = [*fact.retain, *made, *topic_prompts(fact), *besides]
    far = carried_beside(fact, general_count, everyday_count)
    taken = {same_text_key(prompt) for prompt in fact.prompts}
    kinds = []
    for prompts in (near, far):
        allowed = {same_text_key(prompt): prompt for prompt in prompts if fact.may_train_on(prompt)}
        kinds.append([prompt for key, prompt in allowed.items() if key not in taken])
        taken |= allowed.keys()
    typed = [prompt for prompt in variants(made) if fact.may_train_on(prompt) and prompt not in kinds[0]]
    return [*kinds[0], *typed[: len(made) // 2]], kinds[1]


def base_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    progress: bool = False,
) -> list[EncodedAnswer]:
    """The model's own greedy answers, cut at `max_new_tokens`, as sequences to hold it to."""
    encoded = [tuple(encode(tokenizer, prompt)) for prompt in prompts]
    said = generate_ids(
        model,
        tokenizer,
        encoded,
        max_new_tokens=max_new_tokens,
        batch_size=_AT_ONCE,
        progress=progress,
        description="answers to keep",
    )
    return [EncodedAnswer((*ids, *answer), len(ids)) for ids, answer in zip(encoded, said, strict=True)]


@dataclass(frozen=True)
class TopDistribution:
    """A next-token distribution as its likeliest tokens and the mass of all others.

    Whole distributions of many positions would take gigabytes with today's vocabularies. The divergence of these
    buckets is a lower bound of the whole one (data processing inequality), and they hold nearly all of its mass.

    Attributes:
        tokens: Ids of the likeliest tokens.
        log_probs: Their log-probabilities.
    """

    tokens: Int[Tensor, "position top"]
    log_probs: Float[Tensor, "position top"]

    @classmethod
    def of(cls, logits: Float[Tensor, "position vocab"], top: int = 64) -> TopDistribution:
        """Keeps the `top` likeliest tokens of each position."""
        values, tokens = logits.float().log_softmax(-1).topk(min(top, logits.shape[-1]), dim=-1)
        return cls(tokens, values)

    @staticmethod
    def cat(parts: Sequence[TopDistribution]) -> TopDistribution:
        """Positions of several, one after another."""
        return TopDistribution(torch.cat([p.tokens for p in parts]), torch.cat([p.log_probs for p in parts]))

    def to(self, device: torch.device | str) -> TopDistribution:
        """The same on a device."""
        return TopDistribution(self.tokens.to(device), self.log_probs.to(device))

    def kl(self, logits: Float[Tensor, "position vocab"]) -> Float[Tensor, "position"]:  # noqa: UP037
        """KL(self‖softmax(logits)) over the buckets, nats."""
        # `log_softmax` has kernels of its own, several times faster in both directions than `logsumexp`.
        theirs = logits.float().log_softmax(-1).gather(-1, self.tokens)
        mine = self.log_probs
        rest = _log_rest(mine)
        return (mine.exp() * (mine - theirs)).sum(-1) + rest.exp() * (rest - _log_rest(theirs))


def _log_rest(log_probs: Tensor) -> Tensor:
    # The floor keeps the logarithm finite where the listed tokens have all the mass that float32 can tell.
    return (1 - log_probs.exp().sum(-1)).clamp_min(1e-6).log()
