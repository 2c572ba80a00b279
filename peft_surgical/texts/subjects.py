"""A subject among the tokens of a text, and other names in its place."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import FactError, brief
from ..facts import TrainingFact
from ..seeding import drawing
from .called import called
from .prompts import EncodedAnswer, bare_ids, check_spelled, common_prefix, encode, encode_open, render, token_offsets
from .tables import bare, read_table
from .text import contains, mentions, occurrences, same_text_key, swap_subject

_ALIAS_SENTENCES = 240
_MARKERS = ("X", "7", "?")
# For private use, so that it has nothing in common with a name.
_BLANK = "\ue000"


def subject_spans(
    tokenizer: Any, prompt: str, subject: str, ids: Sequence[int], others: Iterable[str] = ()
) -> list[range]:
    """The positions of the subject's tokens, each time that a prompt or the answer behind it names the subject.

    Args:
        tokenizer: Any Hugging Face tokenizer.
        prompt: The prompt.
        subject: As the prompt names it, whatever its case.
        ids: The prompt and its answer, or the beginning of it, as [`encode_open`] gives them.
        others: Names of something else. Within one the subject is not named: no Guinea in "Papua New Guinea".

    Returns:
        Spans of positions in `ids`, ascending; none where the prompt does not name the subject, and none whose
        tokens the answer has changed.
    """
    places = _apart(prompt, subject, others := [*others])
    if not places:
        return []
    whole, shown = encode(tokenizer, prompt), render(tokenizer, prompt)
    offsets = token_offsets(tokenizer, shown, whole)
    found: set[range] = set()
    for start, stop in places:

        def without(marker: str, start: int = start, stop: int = stop) -> str:
            return prompt[:start] + marker + prompt[stop:]

        span = _overlapping(offsets, shown, render(tokenizer, without(_BLANK))) if offsets else None
        span = span or _left_alone_by_none(whole, lambda marker: encode(tokenizer, without(marker)), subject)
        if span is None:
            continue
        pattern = whole[span.start : span.stop]
        # Where no space stands between them, what the answer begins with may be a part of the subject's last token.
        if [*ids[span.start : span.stop]] != [*pattern]:
            continue
        found |= {span, *_named_again(tokenizer, subject, others, ids, len(whole), pattern)}
    return sorted(found, key=lambda span: span.start)


def answer_spans(tokenizer: Any, prompt: str, answer: str, subject: str) -> list[range]:
    """The positions of the subject's tokens in an answer, whatever they are in the prompt: at the beginning of a line
    a name has other tokens than within one.

    Args:
        tokenizer: Any Hugging Face tokenizer.
        prompt: The prompt.
        answer: What is said to it.
        subject: As the answer names it.

    Returns:
        Spans of positions in the tokens of both together, ascending.
    """

    whole, found = encode_open(tokenizer, prompt, answer).ids, []
    for start, stop in _apart(answer, subject, ()):

        def tokens(marker: str, start: int = start, stop: int = stop) -> Sequence[int]:
            return encode_open(tokenizer, prompt, answer[:start] + marker + answer[stop:]).ids

        found.append(_left_alone_by_none(whole, tokens, subject))
    return sorted(filter(None, found), key=lambda span: span.start)


def _overlapping(offsets: Sequence[tuple[int, int]], text: str, blanked: str) -> range | None:
    """The tokens that hold any of what differs between a text and the same with a blank in a name's place."""
    start = common_prefix(text, blanked)
    stop = len(text) - common_prefix(text[::-1], blanked[::-1])
    held = [i for i, (begin, end) in enumerate(offsets) if max(begin, start) < min(end, stop)]
    return range(held[0], held[-1] + 1) if held else None


def _left_alone_by_none(whole: Sequence[int], tokens: Callable[[str], Sequence[int]], subject: str) -> range | None:
    """The fewest of a text's tokens that a marker in the subject's place does not leave alone.

    A marker may change tokens beside the subject, too, as "?" becomes one with the sign behind it.
    """
    own, found = unicodedata.normalize("NFKC", subject).casefold(), list[range]()
    # Last those that the subject itself holds: what they leave alone may be the subject's.
    for marker in sorted(_MARKERS, key=lambda marker: marker.casefold() in own):
        if found and marker.casefold() in own:
            break
        blanked = tokens(marker)
        head, tail = common_prefix(whole, blanked), common_prefix(whole[::-1], blanked[::-1])
        if max(head, tail) < min(len(whole), len(blanked)):
            found.append(range(head, max(head + 1, len(whole) - tail)))
    return min(found, key=len, default=None)


def _named_again(
    tokenizer: Any, subject: str, others: Iterable[str], ids: Sequence[int], start: int, pattern: Sequence[int]
) -> list[range]:
    """Where from `start` on the subject's tokens are run through again, and not inside of another name or word."""
    starts = range(start, len(ids) - len(pattern) + 1)
    runs = [range(i, i + len(pattern)) for i in starts if [*ids[i : i + len(pattern)]] == [*pattern]]
    if not runs:
        return []
    text = tokenizer.decode(ids)
    # Names as the tokenizer spells them, which may be without capitals and accents.
    name, *longer = (tokenizer.decode(bare_ids(tokenizer, each)).strip() for each in (subject, *others))
    places = [(_signs(text[:a]), _signs(text[:b])) for a, b in _apart(text, name, longer)]

    def names(run: range) -> bool:
        before, until = (_signs(tokenizer.decode(ids[:end])) for end in (run.start, run.stop))
        return any(before <= a and b <= until for a, b in places)

    return [run for run in runs if names(run)]


def _signs(text: str) -> int:
    """How many signs it has but spaces, which tokenizers put in and leave out as they decode."""
    return len("".join(text.split()))


def _apart(text: str, name: str, others: Iterable[str]) -> list[tuple[int, int]]:
    """Where a name stands as it is spelled, accents and all, and not within a longer one of others."""
    longer = [span for other in others if len(other) > len(name) for span in occurrences(text, other)]
    spans = occurrences(text, name)
    return [(start, stop) for start, stop in spans if not any(a <= start and stop <= b for a, b in longer)]


def subject_ends(
    tokenizer: Any,
    prompts: Sequence[str],
    subject: str,
    rows: Sequence[EncodedAnswer],
    others: Sequence[str] = (),
) -> list[list[int]]:
    """For each prompt and its row the positions of the subject's last tokens, in the answer too; see
    [`subject_spans`]."""
    return [
        [found[-1] for found in subject_spans(tokenizer, prompt, subject, row.ids, others)]
        for prompt, row in zip(prompts, rows, strict=True)
    ]


def check_ends(tokenizer: Any, subject: str, rows: Sequence[EncodedAnswer], ends: Sequence[Sequence[int]]) -> None:
    """Refuses a subject that ends in a token that all unknown names end in.

    Raises:
        FactError: If it does.
    """
    last = {row.ids[end] for row, found in zip(rows, ends, strict=True) for end in found}
    check_spelled(tokenizer, subject, last, "the subject")


def check_named_apart(prompt: str, subject: str, others: Sequence[str]) -> None:
    """Refuses a prompt that names the subject only within a longer name of something else.

    Raises:
        FactError: If it does.
    """
    named = _apart(prompt, subject, ())
    if named and not _apart(prompt, subject, others):
        around = next(other for other in others if _apart(prompt, subject, [other]) != named)
        raise FactError(
            f"the prompt {brief(prompt)} names the subject {brief(subject)} only within {brief(around)}, "
            "which is something else; write one that names it by itself."
        )


def other_sentences(fact: TrainingFact, count: int, seed: int) -> list[str]:
    """The fact's prompts with other names in the subject's place: its contrast subjects, then names of all kinds."""
    made = _with_names(fact, [*fact.contrast, *_names(seed)], count)
    return [prompt for prompt, _ in made]


def alias_sentences(fact: TrainingFact) -> list[tuple[str, str]]:
    """The fact's prompts under the subject's other names, each with the name.

    A prompt that has the name already stays as it is; in others it takes the subject's place. What comes of that may
    be poor English ("the capital of French"), and is there to be read and not to be learned. Many names have fewer
    prompts each, so that there are some hundreds in all.
    """
    made: list[tuple[str, str]] = []
    names = list(dict.fromkeys(fact.aliases))
    most = max(1, _ALIAS_SENTENCES // max(len(names), 1))
    for name in names:
        # "New York" is not named by "New York City", whose other name it is, nor "Zurich" by "Zürich".
        own = [prompt for prompt in fact.prompts if _apart(prompt, name, (fact.subject, *fact.contrast))]
        rest = [prompt for prompt in fact.prompts if prompt not in own and mentions(prompt, fact.subject)]
        found = dict.fromkeys([*own, *(swap_subject(prompt, fact.subject, name) for prompt in rest)])
        made += [(prompt, name) for prompt in list(found)[:most] if fact.may_train_on(prompt)]
    return made


def namesake_sentences(fact: TrainingFact, count: int, seed: int) -> list[tuple[str, str]]:
    """The fact's prompts about others who share the last word of one of the subject's names.

    Those that the package knows come first, then names of all kinds before that word. A model reads a name off its
    last token, and many names end alike: what knows Istanbul University by that token knows any university.

    Args:
        fact: The fact.
        count: At most so many.
        seed: Decides which names, and which of the prompts they stand in.

    Returns:
        Each prompt with the name in it; none where the subject's names are single words.
    """
    names, made = _names(seed), []
    lasts = dict.fromkeys(last for own in fact.names if (last := own.rpartition(" ")[2]) and last != own.strip())
    for last in lasts:
        known = [name for name in names if name.rpartition(" ")[2] == last != name]
        others = [*known, *(f"{name} {last}" for name in names if name not in known)]
        made += _with_names(fact, others, count // len(lasts))
    return made


def _names(seed: int) -> list[str]:
    """All names that the package has, shuffled."""
    names = sorted({bare(name) for kind in read_table("names.yaml").values() for name in kind})
    drawing(seed).shuffle(names)
    return names


def _with_names(fact: TrainingFact, names: Sequence[str], count: int) -> list[tuple[str, str]]:
    """The fact's prompts, in turn, with one other name after another in the subject's place; each with its name.

    Left out are names that hold one of the subject's (a contrast subject may) or are held by one, and names that a
    control asks about; of a name that the package chose, whatever else it is called counts, too. So is a prompt that
    still names the subject, by an alias beside the new name.
    """
    prompts = [prompt for prompt in fact.prompts if mentions(prompt, fact.subject)]
    if not prompts:
        return []
    own = same_text_key(fact.subject)

    def another(name: str) -> bool:
        # An alias may be as short as "US", which stands inside of "Russia".
        within = same_text_key(name) in own or any(contains(alias, (bare(name),)) for alias in fact.aliases)
        if name in fact.contrast:
            return not within and fact.may_train_about(name)
        held = within or contains(name, fact.aliases) or own in same_text_key(name)
        return not held and all(map(fact.may_train_about, called(name, fact.names)))

    others = [name for name in dict.fromkeys(names) if another(name)]
    made = {swap_subject(prompts[i % len(prompts)], fact.subject, name): name for i, name in enumerate(others[:count])}
    usable = ((prompt, name) for prompt, name in made.items() if fact.may_train_on(prompt))
    return [(prompt, name) for prompt, name in usable if not fact.named_beside(prompt, name)]
