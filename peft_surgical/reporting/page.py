"""`report.html`: a report as one page that needs no network and no script.

The page holds all that `report.json` holds, for a person: the verdict, the figures as a plot and a table, where the
edit was made, every prompt with its answers before and after, where the time went, and how to do it again.

```py
>>> html = render_page(Report.load("out/report.json"), picture=Path("out/localization.png").read_bytes())
```

Every text of a fact and every answer is escaped by Jinja2; the markup is only ever in the templates.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2

from ..errors import ReportError, SelectionError, brief
from ..localizing.faithfulness import Faithfulness
from ..measuring.metrics import Figure, check_number
from ..profiling import phase
from ..report import Report
from .page_answers import controls, held_out, portability, probes
from .summary import count, figure_text, groups, is_rate, label, on_top, title
from .weights import revision_told, weights_told

# The shortest axes. A hundred words that are all different have an entropy of 6.6 bits.
_AXES = {
    "answer_margin": (-1.0, 1.0),
    "control_margin": (-1.0, 1.0),
    "kl_per_token": (0.0, 0.01),
    "relearning_recovery": (0.0, 1.0),
    "fluency": (400.0, 700.0),
}


@phase("page")
def render_page(report: Report, *, picture: bytes | None = None) -> str:
    """The page.

    Args:
        report: What was measured.
        picture: `localization.png`, to be put into the page.

    Returns:
        An HTML document.

    Raises:
        ReportError: If the report comes from a file in which something else stands where a number should.
    """
    command = report.settings.get("command")
    return (
        _templates()
        .get_template("report.html.j2")
        .render(
            **_figures(report),
            report=report,
            title=title(report, model=False),
            verdict=report.verdict(),
            weights=weights_told(report),
            revision=revision_told(report),
            on_top=on_top(report),
            picture=None if picture is None else base64.b64encode(picture).decode("ascii"),
            command=command if isinstance(command, str) else None,
            sections=[made for kind in (held_out, controls, portability, probes) if (made := kind(report)).rows],
            components=_components(report),
            carried=_carried(report),
            times=_times(report),
            settings=_settings(report),
        )
    )


def render_table(report: Report) -> str:
    """The figures alone, as a piece of HTML for a notebook."""
    return (
        _templates()
        .get_template("figures.html.j2")
        .render(**_figures(report), title=title(report), verdict=report.verdict(), alone=True)
    )


@dataclass(frozen=True)
class Interval:
    """One state's figure on a plot: positions in percent of the plot's width."""

    stage: str
    at: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Line:
    """One metric: its cells of the table and its intervals on the plot, with the two ends of the plot's axis."""

    label: str
    n: int
    cells: tuple[tuple[str, str], ...]
    intervals: tuple[Interval, ...]
    ends: tuple[str, str]


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("peft_surgical", "data"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    environment.filters["grouped"] = lambda number: f"{_number(number):,}"
    return environment


def _clean(value: Any) -> Any:
    """Control codes and lone surrogates are not allowed in HTML, and a file with them cannot be written."""
    if type(value) is not str:
        return value
    lines = value.replace("\r\n", "\n").replace("\r", "\n")
    return "".join("\ufffd" if _forbidden(char) else char for char in lines)


def _forbidden(char: str) -> bool:
    return (char < " " and char not in "\n\t") or "\x7f" <= char <= "\x9f" or "\ud800" <= char <= "\udfff"


def _figures(report: Report) -> dict[str, Any]:
    stages = list(report.stages)
    lines = [(name, [_line(metric, report) for metric in metrics]) for name, metrics in groups(report.stages)]
    return {"stages": stages, "groups": lines, "tones": {stage: _tone(stage, stages) for stage in stages}}


def _tone(stage: str, stages: Sequence[str]) -> str:
    return stage if stage == "base" else "edited" if stage == stages[-1] else "between"


def _line(metric: str, report: Report) -> Line:
    figures = {stage: given[metric] for stage, given in report.stages.items() if metric in given}
    low, high = _axis(metric, list(figures.values()))
    unit = 100 / (high - low)
    return Line(
        label=label(metric, report),
        n=count(report.stages, metric),
        cells=tuple(_cell(figure_text(metric, figures.get(stage), stage)) for stage in report.stages),
        intervals=tuple(
            Interval(
                stage,
                round((figure.value - low) * unit, 3),
                round((figure.low - low) * unit, 3),
                round((figure.high - low) * unit, 3),
                f"{stage}: {figure_text(metric, figure, stage)}",
            )
            for stage, figure in figures.items()
            if figure_text(metric, figure, stage) != "–"
        ),
        ends=("0%", "100%") if is_rate(metric) else (f"{low:.4g}", f"{high:.4g}"),
    )


def _cell(text: str) -> tuple[str, str]:
    """A figure's value and its interval, which keeps together where a narrow column folds."""
    value, _, interval = text.partition(" ")
    return value, interval


def _axis(metric: str, figures: Sequence[Figure]) -> tuple[float, float]:
    """Rates share an axis from none to all; others have one that holds their intervals and the base's own value.

    It is never so short that a drift of no consequence looks large.
    """
    if is_rate(metric):
        return 0.0, 1.0
    least = _AXES.get(metric, (0.99, 1.01))
    return min(least[0], *(figure.low for figure in figures)), max(least[1], *(figure.high for figure in figures))


def _components(report: Report) -> list[str]:
    names = report.selection.get("components") or ()
    if not isinstance(names, (list, tuple)):
        raise ReportError(f"this is not a report: its components are {brief(names)}.")
    return [str(name) for name in names]


def _carried(report: Report) -> Faithfulness | None:
    """What the components carry together, where that was asked for."""
    found = report.selection.get("faithfulness")
    if isinstance(found, Mapping):
        # A report says what is scaled once.
        found = {"selection": report.selection, **found}
    try:
        return None if found is None else Faithfulness.from_dict(found)
    except SelectionError as error:
        raise ReportError(f"this is not a report: {error}") from error


def _settings(report: Report) -> str:
    """All settings but the command, which stands by itself, as `report.json` has them; empty if there are none."""
    told = {name: value for name, value in report.settings.items() if name != "command"}
    try:
        return json.dumps(told, indent=2, ensure_ascii=False) if told else ""
    except (TypeError, ValueError, RecursionError) as error:
        raise ReportError(f"this is not a report: its settings are {brief(told)}.") from error


def _number(value: Any) -> float | int:
    """A number of a report, whose file may come from anybody."""
    try:
        check_number(value)
    except TypeError as error:
        raise ReportError(f"this is not a report: {error}.") from None
    number: float | int = value
    return number


def _times(report: Report) -> list[tuple[str, float, float, str]]:
    """Step, seconds, share of the longest in percent, and what its training reached."""
    times = {step: _number(seconds) for step, seconds in report.seconds.items()}
    longest = max(times.values(), default=0.0) or 1.0
    rows = []
    for step, seconds in times.items():
        record = report.training.get(step, {})
        note = ""
        if record:
            end = "targets reached" if record.get("reached") else "stopped at the step limit"
            # No step looked at a prompt where there is none.
            loss = record.get("loss")
            reached = "" if loss is None else f"loss {_number(loss):.3f}, "
            note = f"{record.get('steps')} steps, {reached}{end}"
        rows.append((step, seconds, round(100 * (seconds / longest), 1), note))
    return rows
