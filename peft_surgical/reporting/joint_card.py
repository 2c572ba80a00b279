"""Several edits with all of them acting, as a model card's text."""

from __future__ import annotations

from collections.abc import Mapping

from ..counts import counted
from ..measuring.metrics import Figure
from ..together import AFTER, ALL, BASE, Together
from .card import plain
from .summary import figure_text
from .weights import base_told

COLUMNS = {
    "new_answer_rate": "new answer",
    "old_answer_rate": "old answer",
    "control_kept": "controls kept",
    "control_leak": "leak",
}
"""The rates that are shown, and what they are called."""

POOLED = {AFTER: "each right after its edit", ALL: "with all edits"}
"""The states that rates over all facts are shown of, and what they are called."""

UNRELATED = {"kl_per_token": "KL to base, nats/token", "perplexity_ratio": "perplexity / base's"}


def render_together(together: Together) -> str:
    """The facts, the rates right after each edit and with all edits, and what was left out, without a heading."""
    head = ["fact", *COLUMNS.values()]
    rows = [
        [plain(f"{one.fact.subject}: {one.fact.old[0]} → {one.fact.new[0]}"), *cells(one.stages)]
        for one in together.facts
    ]
    rows += [[words, *pooled(together, state)] for state, words in POOLED.items()]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    count = len(together.facts)
    what = "1 fact was rewritten" if count == 1 else f"{count} facts were rewritten, each on top of those before it"
    parts = [
        f"{what}. Each cell: right after the fact's own edit, and with all edits.",
        "\n".join(lines),
        " ".join(plain(sentence) for sentence in told(together)),
        f"In brackets: 95% intervals. n: how many prompts or tokens. In {plain(together.dtype)}, seed"
        f" {together.seed}.",
    ]
    return "\n\n".join(part for part in parts if part)


def cells(stages: Mapping[str, Mapping[str, Figure]]) -> list[str]:
    """Of each of [`COLUMNS`] how many answers, right after the edit and with all of them, of how many."""
    return [_cell(stages, metric) for metric in COLUMNS]


def _cell(stages: Mapping[str, Mapping[str, Figure]], metric: str) -> str:
    after, now = (stages.get(state, {}).get(metric) for state in (AFTER, ALL))
    if after is None or now is None:
        return "–"
    return f"{_hits(after)} → {_hits(now)} of {now.n}"


def _hits(figure: Figure) -> int:
    return round(figure.value * figure.n)


def pooled(together: Together, state: str) -> list[str]:
    """Of each of [`COLUMNS`] the rate over all facts in a state, with its interval and n."""
    figures = together.pooled.get(state, {})
    return [
        "–" if (figure := figures.get(metric)) is None else f"{figure_text(metric, figure, state)}, n {figure.n:,}"
        for metric in COLUMNS
    ]


def told(together: Together) -> list[str]:
    """Sentences: the edits in the base's weights, what the base says, unrelated text, what does not count, and what
    could not be edited."""
    found = base_told(together.settings)
    if (old := together.pooled.get(BASE, {}).get("old_answer_rate")) is not None:
        found.append(f"The base gives the old answer to {_hits(old)} of {old.n:,} held-out questions.")
    if together.unrelated:
        figures = (
            f"{UNRELATED[metric]} {figure_text(metric, figure, ALL)}" for metric, figure in together.unrelated.items()
        )
        count = next(iter(together.unrelated.values())).n
        found.append(f"On {count:,} tokens of unrelated text, with all edits: {'; '.join(figures)}.")
    about = together.left_out("controls", "about_another")
    trained = together.left_out("controls", "trained_by_another"), together.left_out("held_out")
    if about:
        found.append(f"Left out: {counted(about, 'control')} about what another of these facts changes.")
    if any(trained):
        some = [
            counted(count, what) for count, what in zip(trained, ("control", "held-out prompt"), strict=True) if count
        ]
        found.append(f"Left out: {' and '.join(some)} that another fact's edit was trained on or held to.")
    found += [f"Not edited: {name} ({why.rstrip('.')})." for name, why in together.failed.items()]
    return found
