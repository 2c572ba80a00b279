"""What a model card says of what was measured: a report in Markdown.

```py
>>> card = Report.load("out/report.json").to_markdown()
```

Names come from a fact file, and none of them ends a table or becomes markup.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from ..adapters.bases import hub_id
from ..report import Report
from ..texts.text import printable
from .summary import earlier_edits, on_top, title
from .weights import revision_told, weights_told

# What means something in Markdown; "_" does at the edge of a word.
_SIGNS = re.compile(r"[\\`*\[\]<>|~$&]|(?<![^\W_])_|_(?![^\W_])")
# Of a path, of whatever system.
_PARTS = re.compile(r"[^\\/]+")
# YAML, in which "#" begins a comment.
_METADATA = re.compile(rb"---\r?\n.*?^---[ \t]*\r?$", re.M | re.S)
_TITLE = re.compile(rb"^# .*\n?", re.M)


def render_markdown(report: Report) -> str:
    """The fact, the verdict, the figures and what they were measured on, without a heading.

    A model that is none of the hub's is not named: its path says nothing to others.

    Raises:
        ReportError: If the report comes from a file in which something else stands where its edits should.
    """
    states = [plain(stage) for stage in report.stages]
    versions = {name: plain(version) for name, version in report.versions.items()}
    machine = versions.pop("machine", "")
    packages = ", ".join(f"{plain(name)} {version}" for name, version in versions.items())
    measured = [
        f"{plain(_model(report))} in {plain(report.dtype)}",
        f"seed {report.seed}",
        *([f"on {machine}"] if machine else []),
        *([f"with {packages}"] if packages else []),
    ]
    heads = (["", *states], ["---"] * (len(states) + 1))
    rows = ([label, *figures] for label, figures in report.rows())
    # Without the command, which names files of whoever ran it.
    parts = [
        f"**{plain(title(report, model=False))}**",
        plain(report.verdict()),
        "\n".join(f"| {' | '.join(cells)} |" for cells in (*heads, *rows)),
        *_weights(report),
        f"In brackets: 95% intervals. n: how many prompts or tokens. Measured: {', '.join(measured)}.",
    ]
    return "\n\n".join(parts)


def _model(report: Report) -> str:
    """The model's id on the hub, with its revision."""
    # A report of before that was recorded leaves it to a guess.
    name = report.settings.get("hub_id") if "hub_id" in report.settings else hub_id(report.model)
    return f"{name}{revision_told(report)}" if isinstance(name, str) else "the base model"


def _weights(report: Report) -> list[str]:
    """The paragraph on what the table's columns carry, as it is told elsewhere, with no path of a machine."""
    on = [{"folder": "/".join(_PARTS.findall(folder)[-2:])} for folder in earlier_edits(report)]
    beside = report.settings.get("edited")
    if isinstance(beside, Mapping) and isinstance(name := beside.get("name"), str):
        beside = {**beside, "name": hub_id(name) or "".join(_PARTS.findall(name)[-1:])}
    short = replace(report, settings={**report.settings, "on": on, "edited": beside})
    told = [sentence for sentence in (on_top(short), *weights_told(short)) if sentence]
    return [" ".join(map(plain, told))] if told else []


def with_measured(card: bytes, report: Report) -> bytes:
    """A model card, as it is in its file, with what was measured in a section behind its title; at its end where it
    has lost that."""
    section = f"\n## What was measured\n\n{render_markdown(report)}\n".encode()
    head = _METADATA.match(card)
    if found := _TITLE.search(card, head.end() if head else 0):
        return card[: found.end()] + section + b"\n## The adapter\n" + card[found.end() :]
    return card + section


def plain(text: object) -> str:
    """A text on one line that shows in Markdown as it is."""
    return _SIGNS.sub(r"\\\g<0>", " ".join(printable(str(text)).split()))
