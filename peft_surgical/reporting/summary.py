"""A report in a terminal: one table of base, unlearned and edited, the verdict, and where the files are.

```py
>>> from rich.console import Console
>>> Console().print(summarize(report, "out", [("report.html", "every figure and every answer")]))
```

Only text leaves here, never the terminal's control codes that an answer or a fact file may hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..measuring.metrics import Figure
from ..measuring.soft_forgetting import split_kind
from ..report import RATES, Report
from ..texts.text import printable
from .weights import weights_told

_HELD_OUT = (
    "new_answer_rate",
    "old_answer_rate",
    "refusal_rate",
    "answer_margin",
    "answer_likelier",
    "relearning_recovery",
)
# What is asked, and the metrics over it.
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Held-out questions", _HELD_OUT),
    ("Controls (other facts)", ("control_kept", "control_leak", "control_margin", "control_likelier")),
    ("Those that name the subject", ("subject_kept", "subject_leak")),
    (
        "What follows from the fact",
        ("portability", "portability_alias", "portability_one_hop", "portability_reversal", "portability_before"),
    ),
    ("Answers to probes that name", ("probe_new_rate", "probe_old_rate", "probe_both_rate")),
    ("Unrelated text", ("kl_per_token", "perplexity_ratio")),
    ("Text about the subject", ("fluency", "repetition")),
)
# Labels longer than this, which hold a long answer, are folded before the figures are.
_LABEL_WIDTH, _LEAST_LABEL_WIDTH = 30, 20
# More columns than any table needs.
_ROOM = 10_000
# A ratio is read by its distance from 1, a divergence by its order of magnitude.
_DIGITS = {"perplexity_ratio": ".3f", "relearning_recovery": ".2f", "fluency": ".0f"}
# What may be on either side of 0, where a dash between two numbers would be taken for a minus.
_SIGNED = {"answer_margin", "control_margin"}
# From where on decimals tell nothing.
_MANY = 10_000
_FIXED_FOR_BASE = {"control_kept", "control_leak", "subject_kept", "subject_leak", "kl_per_token", "perplexity_ratio"}


def summarize(
    report: Report, out: str | os.PathLike[str] | None = None, files: Sequence[tuple[str, str]] = ()
) -> RenderableType:
    """The summary of a report, for `rich` to print.

    Args:
        report: The report.
        out: The folder in which the files are.
        files: Names of files or folders in it, and what each is.

    Returns:
        A renderable; `rich` leaves colours out where `NO_COLOR` is set or nobody looks.
    """
    parts: list[RenderableType] = [Text(title(report), style="bold")]
    if folded := on_top(report):
        parts.append(Text(folded, style="dim"))
    parts.append(_Figures(report))
    parts.append(Text("In brackets: 95% intervals. n: how many prompts or tokens.", style="dim"))
    parts += [Text(printable(sentence), style="dim") for sentence in weights_told(report)]
    parts += [Text(""), Text(printable(report.verdict()), style="bold")]
    if out is not None and files:
        grid = Table.grid(padding=(0, 2))
        for _ in files[0]:
            grid.add_column(overflow="fold")
        for name, what in files:
            grid.add_row(Text(name), Text(what, style="dim"))
        parts += [Text(""), Text(f"In {printable(os.fspath(out))}:"), Padding(grid, (0, 0, 0, 2))]
    return Group(*parts)


def title(report: Report, *, model: bool = True) -> str:
    """What was edited, in one line; with the model's name unless `model` is false."""
    fact = report.fact
    name = f" ({report.model})" if model and report.model else ""
    return printable(f"{fact.subject}: {fact.old[0]} → {fact.new[0]}{name}")


def earlier_edits(report: Report) -> list[str]:
    """The folders of the edits that an edit was made on top of."""
    found = report.settings.get("on")
    held = [one.get("folder") for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []
    return [folder for folder in held if isinstance(folder, str)]


def on_top(report: Report) -> str | None:
    """What an edit was made on top of, which is in the base that it is measured beside, in a sentence; None where that
    is the model as it was."""
    folders = earlier_edits(report)
    return printable(f"Here base is the model with {' and '.join(folders)} folded in.") if folders else None


def label(metric: str, report: Report) -> str:
    """What a metric counts, in this fact's own words."""
    name, kind = split_kind(metric)
    new, old = report.fact.new[0], report.fact.old[0]
    texts = {
        "new_answer_rate": f"answer {new}",
        "old_answer_rate": f"answer {old}",
        "refusal_rate": "says it does not know",
        "answer_margin": f"{new} over {old}, nats/token",
        "answer_likelier": f"{new} likelier than {old}",
        "control_kept": "still right",
        "control_leak": f"now say {new}",
        "subject_kept": "still right",
        "subject_leak": f"now say {new}",
        "control_margin": f"right over {new}, nats/token",
        "control_likelier": f"right likelier than {new}",
        "portability": "portability",
        "portability_alias": "by another name",
        "portability_one_hop": "one hop on",
        "portability_reversal": "from the answer back",
        "portability_before": "still as before",
        "probe_new_rate": f"{kind}: only new" if kind else f"only {new}",
        "probe_old_rate": f"{kind}: old" if kind else old,
        "probe_both_rate": "both",
        "kl_per_token": "KL to base, nats/token",
        "perplexity_ratio": "perplexity / base's",
        "relearning_recovery": f"{old} relearned / base's",
        "fluency": "n-gram entropy, bits × 100",
        "repetition": "4-grams said before",
    }
    return texts.get(name, name)


def is_rate(metric: str) -> bool:
    """Whether a metric is a share of answers."""
    return split_kind(metric)[0] in RATES


def groups(figures: Mapping[str, Mapping[str, Figure]]) -> list[tuple[str, list[str]]]:
    """What is asked, and the metrics over it that some state has; those over one kind of probe stand last."""
    found = dict.fromkeys(metric for stage in figures.values() for metric in stage if split_kind(metric)[1])
    listed = []
    for name, metrics in GROUPS:
        of_kind = [metric for metric in found if split_kind(metric)[0] in metrics]
        present = [metric for metric in (*metrics, *of_kind) if count(figures, metric)]
        # A base alone is compared with nothing.
        if present and not (list(figures) == ["base"] and set(present) <= _FIXED_FOR_BASE):
            listed.append((name, present))
    return listed


def figure_text(metric: str, figure: Figure | None, stage: str) -> str:
    """A figure with its interval as a person reads it: a rate in percent, anything else in a few digits."""
    if figure is None or (stage == "base" and metric in _FIXED_FOR_BASE):
        # What the base is compared with itself in is 1 or 0 by definition.
        return "–"
    # No space inside the brackets: a narrow terminal folds a cell between value and interval.
    if is_rate(metric):
        return f"{_percent(figure.value)}% [{_percent(figure.low)}–{_percent(figure.high)}]"
    if metric in _SIGNED:
        return f"{figure.value:+.1f} [{figure.low:+.1f}…{figure.high:+.1f}]"
    digits = _DIGITS.get(metric, ".2g") if figure.high < _MANY else ".4g"
    return f"{figure.value:{digits}} [{figure.low:{digits}}–{figure.high:{digits}}]"


def count(figures: Mapping[str, Mapping[str, Figure]], metric: str) -> int:
    """Over how many prompts or tokens a metric is, in the first state that has it."""
    return next((stage[metric].n for stage in figures.values() if metric in stage), 0)


class _Figures:
    """The figures as a table, or where that is too narrow for a figure or an interval to stay whole, as a list."""

    def __init__(self, report: Report) -> None:
        self.states = [printable(state) for state in report.stages]
        self.rows = _rows(report)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        labels = min(_LABEL_WIDTH, max((len(name) for name, _ in self.rows), default=0))
        for folded in range(len(self.states) + 1):
            table = _table(self.states, self.rows, labels, folded)
            # A table is never said to need more than there is, so it is asked with more room than that.
            needed = Measurement.get(console, options.update(max_width=_ROOM), table).maximum
            missing = max(0, needed - options.max_width)
            # Folding the first state, too, would fold nearly every row, so labels give way before that.
            if missing <= (max(0, labels - _LEAST_LABEL_WIDTH) if folded >= len(self.states) - 1 else 0):
                yield _table(self.states, self.rows, labels - missing, folded)
                return
        yield _list(self.states, self.rows)


def _rows(report: Report) -> list[tuple[str, list[str]]]:
    """Names, and what stands beside them: nothing for what is asked; for a metric over how many it is, and figures."""
    rows: list[tuple[str, list[str]]] = []
    for group, present in groups(report.stages):
        rows.append((group, []))
        for metric in present:
            cells = [figure_text(metric, figures.get(metric), stage) for stage, figures in report.stages.items()]
            rows.append((f"  {printable(label(metric, report))}", [f"{count(report.stages, metric):,}", *cells]))
    return rows


def _list(states: Sequence[str], rows: Iterable[tuple[str, list[str]]]) -> RenderableType:
    lines = []
    for name, cells in rows:
        lines.append(Text(f"{name} (n {cells[0]})" if cells else name, style="" if cells else "italic"))
        lines += [Text(f"    {state}: {cell}") for state, cell in zip(states, cells[1:], strict=False)]
    return Group(*lines)


def _table(states: Sequence[str], rows: Sequence[tuple[str, list[str]]], labels: int, folded: int) -> Table:
    """The table, with so many of its states, the last ones, folded between figures and their intervals."""
    # With one space beside the box's own, figures of three states stand beside their labels in 80 columns.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("", width=labels, overflow="fold")
    table.add_column("n", justify="right", no_wrap=True)
    for number, state in enumerate(states, 1):
        last = number == len(states) > 1
        # Left to itself, rich narrows columns below their longest word, and breaks that.
        words = [state, *(word for _, cells in rows for cell in cells[number : number + 1] for word in cell.split())]
        width = max(map(cell_len, words)) if number > len(states) - folded else None
        table.add_column(state, justify="right", width=width, style="bold" if last else "")
    for name, cells in rows:
        table.add_row(Text(name, style="" if cells else "italic"), *map(Text, cells))
    return table


def _percent(share: float) -> str:
    """Whole percent, but never 100 or 0 for what is not all or nothing."""
    rounded = round(100 * share)
    if rounded == 100 and share < 1:
        return ">99"
    return "<1" if rounded == 0 and share > 0 else str(rounded)
