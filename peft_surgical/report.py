"""The proof: every figure of an evaluation with its N and interval, and every answer behind it.

`Report.save` writes `report.json`; `peft_surgical.reporting` makes `report.html` and a model card's text of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .counts import counted
from .errors import FactError, ReportError, brief
from .facts import Fact
from .measuring.margins import SIDES
from .measuring.metrics import Figure, check_number, stages_to_dict
from .measuring.soft_forgetting import split_kind
from .writing.files import read_json, why_unread, write_json

# What `evaluate` measures of the base beside it, which is no edit.
_OF_THE_BASE = re.compile(r"base (in \d+ bits|relearned \d+ steps?)")

# Metric, and what a reader calls it.
METRICS = {
    "new_answer_rate": "gives the new answer",
    "old_answer_rate": "gives the old answer",
    "refusal_rate": "says it does not know",
    "answer_margin": "new answer over the old one (nats per token)",
    "answer_likelier": "new answer likelier than the old one",
    "control_kept": "controls still right",
    "control_leak": "controls that now give the new answer",
    "subject_kept": "controls about the subject still right",
    "subject_leak": "controls about the subject that now give the new answer",
    "control_margin": "controls' right answer over the new one (nats per token)",
    "control_likelier": "controls' right answer likelier than the new one",
    "portability": "portability: answers as the new answer has it",
    "portability_alias": "portability by another name of the subject",
    "portability_one_hop": "portability one hop on",
    "portability_reversal": "portability from the answer back to the subject",
    "portability_before": "portability: answers as the old answer had it",
    "probe_new_rate": "probes that give the new answer",
    "probe_old_rate": "probes with the old answer in what is said",
    "probe_both_rate": "probes with both answers in what is said",
    "relearning_recovery": "gives the old answer relearned, ratio to the base relearned alike",
    "kl_per_token": "KL per token on unrelated text (nats)",
    "perplexity_ratio": "perplexity on unrelated text, ratio to the base",
    "fluency": "n-gram entropy of text about the subject (bits x 100)",
    "repetition": "4-grams of text about the subject that it has had before",
}

# Those that are shares; of one kind of probe, too.
RATES = frozenset(METRICS) - {
    "answer_margin",
    "control_margin",
    "relearning_recovery",
    "kl_per_token",
    "perplexity_ratio",
    "fluency",
}


@dataclass(frozen=True)
class Report:
    """What an evaluation measured.

    Attributes:
        fact: The fact, whole.
        model: The base model's name.
        dtype: The base's dtype during evaluation.
        seed: The seed of the run.
        versions: Package and Python versions.
        selection: The components that were edited, best first if they were ranked, with the granularity; empty when
            unknown.
        seconds: Step to wall-clock seconds.
        stages: State (`base`, `unlearned`, `edited`, …) to metric to figure.
        answers: State to `held_out`, `controls`, `probes` and `portability`, each the answers in the fact's
            order; where fluency was measured, to `continuations` too.
        training: Stage to what its training reached; empty when nothing was trained.
        margins: State to `held_out`, each `new` and `old`, and to `controls`, each `right` and `new`: mean
            log-likelihoods per token in nats, in the fact's order; None for what was not measured.
        settings: What else the figures depend on, as JSON: how long answers may be, how much unrelated text was
            asked for (the N of its figures counts the tokens measured), a digest of the chat template (null without
            one), at the command line the command and the adapters, each with the SHA-256 of its tensors; of a model
            with a name its `hub_id`, null where it came from a folder, and the `revision` if one is known; where the
            base carries edits that were merged into it, these as `base_edits`, and where an edited checkpoint was
            measured, what it is as `edited`. Of an edit also what it was made `on` top of, the scorers, the
            projections that were scaled, and the recipe, by stage where there are several, as `--recipe` takes it.
    """

    fact: Fact
    model: str
    dtype: str
    seed: int
    versions: Mapping[str, str]
    selection: Mapping[str, Any]
    seconds: Mapping[str, float]
    stages: Mapping[str, Mapping[str, Figure]]
    answers: Mapping[str, Mapping[str, list[str]]] = field(default_factory=dict)
    training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    margins: Mapping[str, Mapping[str, Sequence[Mapping[str, float] | None]]] = field(default_factory=dict)

    def __repr__(self) -> str:
        # A prompt shows what a call returned, and hundreds of answers say nothing there.
        return f"Report({self.fact.subject!r} in {self.model!r}, {self.dtype}: {', '.join(self.stages)})"

    def to_dict(self) -> dict[str, Any]:
        """The content of `report.json`."""
        return {
            "fact": self.fact.to_dict(),
            "model": self.model,
            "dtype": self.dtype,
            "seed": self.seed,
            "versions": dict(self.versions),
            "selection": dict(self.selection),
            "seconds": dict(self.seconds),
            "stages": stages_to_dict(self.stages),
            "settings": dict(self.settings),
            "training": {stage: dict(record) for stage, record in self.training.items()},
            "answers": {stage: dict(given) for stage, given in self.answers.items()},
            "margins": {
                stage: {key: [pair and dict(pair) for pair in pairs] for key, pairs in given.items()}
                for stage, given in self.margins.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Reads back what [`to_dict`] gave.

        Raises:
            ReportError: If it is not a report.
        """
        try:
            found = {key: _of_kind(data[key], kind) for key, kind in _KINDS.items()}
            answers, training, settings, margins = (
                _of_kind(data.get(key, {}), Mapping) for key in ("answers", "training", "settings", "margins")
            )
            return cls(
                fact=Fact.from_dict(data["fact"]),
                **found,
                stages={
                    stage: {metric: _figure(metric, figure) for metric, figure in figures.items()}
                    for stage, figures in data["stages"].items()
                },
                answers={
                    stage: {
                        key: [_of_kind(text, str) for text in _of_kind(texts, list)] for key, texts in given.items()
                    }
                    for stage, given in answers.items()
                },
                training={stage: _of_kind(record, Mapping) for stage, record in training.items()},
                settings=settings,
                margins={
                    stage: {key: [_pair(key, pair) for pair in _of_kind(pairs, list)] for key, pairs in given.items()}
                    for stage, given in margins.items()
                },
            )
        except FactError as error:
            raise ReportError(f"this is not a report: {error}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise ReportError(f"this is not a report: {error!r}.") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as JSON, whole or not at all.

        Raises:
            OutputError: If its folder does not exist or cannot be written.
        """
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Reads a `report.json`.

        Raises:
            ReportError: If it cannot be read or is not a report.
        """
        try:
            data = read_json(path)
        except (OSError, ValueError) as error:
            raise ReportError(f"{path}: cannot be read as a report ({why_unread(error)}).") from error
        try:
            return cls.from_dict(data)
        except ReportError as error:
            raise ReportError(f"{path}: {error}") from error

    def rows(self) -> list[tuple[str, list[str]]]:
        """The summary table: a row a metric, a cell a stage, `value [low, high]`; none for single kinds of probe."""
        table = []
        for metric, label in METRICS.items():
            found = [figures.get(metric) for figures in self.stages.values()]
            n = next((figure.n for figure in found if figure), None)
            if n is not None:
                table.append((f"{label} (n={n:,})", [_cell(metric, figure) for figure in found]))
        return table

    def verdict(self) -> str:
        """One sentence for a person in a hurry, from the last stage's figures, or from the base's where nothing else
        was asked than the base and what became of it."""
        edits = [name for name in self.stages if not _OF_THE_BASE.fullmatch(name)]
        stage = edits[-1] if edits else ""
        figures = self.stages.get(stage, {})
        new, old = figures.get("new_answer_rate"), figures.get("old_answer_rate")
        base_old = self.stages.get("base", {}).get("old_answer_rate")
        kept = figures.get("control_kept")
        if new is None or old is None or base_old is None:
            return "Nothing was measured."
        asked = counted(new.n, "held-out question")
        said = (
            f"Of {asked}, the {stage} model answers {round(new.value * new.n):,} with {self.fact.new[0]} and "
            f"{round(old.value * old.n):,} with {self.fact.old[0]}"
        )
        if stage != "base":
            others = f"{round(kept.value * kept.n):,} of {kept.n:,} other facts stay right" if kept else None
            said += f" (base: {round(base_old.value * base_old.n):,} with {self.fact.old[0]}); "
            said += others or _unknown_controls(len(self.fact.controls))
        sentence = f"{said}."
        # A base that gives the new answer may carry an edit already, merged.
        if base_old.value < 0.5 and (stage != "base" or new.value <= old.value):
            sentence += f" The base hardly holds the old answer, so there was little of {self.fact.old[0]} to rewrite."
        return sentence

    def to_markdown(self) -> str:
        """The fact, the verdict, the table of figures and what they were measured on, for a model card: `card=` of
        [`stack`].

        Raises:
            ReportError: If the report comes from a file in which something else stands where its edits should.
        """
        from .reporting.card import render_markdown

        return render_markdown(self)

    def _repr_html_(self) -> str:
        """The verdict and the table of figures, for a notebook."""
        from .reporting.page import render_table

        return render_table(self)


def _unknown_controls(count: int) -> str:
    if not count:
        return "the fact has no controls, so what else changed is not known"
    none = "the one control wrong" if count == 1 else f"none of the {count:,} controls right"
    return f"the base answers {none}, so what else changed is not known"


_KINDS: dict[str, type] = {
    "model": str,
    "dtype": str,
    "seed": int,
    "versions": Mapping,
    "selection": Mapping,
    "seconds": Mapping,
}


def _of_kind(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{brief(value)} stands where a {kind.__name__} should")
    return value


def _pair(key: str, pair: Any) -> Mapping[str, float] | None:
    if pair is None:
        return None
    sides = {side: _of_kind(pair, Mapping)[side] for side in SIDES[key]}
    for value in sides.values():
        check_number(value, high=0.0, what="a log-likelihood")
    return sides


def _figure(metric: str, values: Any) -> Figure:
    try:
        return Figure.from_dict(values, share=split_kind(metric)[0] in RATES)
    except TypeError as error:
        raise TypeError(f"{error} of {brief(metric)}") from None


def _cell(metric: str, figure: Figure | None) -> str:
    if figure is None:
        return "–"
    value, low, high = (_number(metric, number) for number in (figure.value, figure.low, figure.high))
    return f"{value} [{low}, {high}]"


def _number(metric: str, value: float) -> str:
    """In two decimals, but a ratio near 1 in four and a divergence by its order of magnitude; never 1 or 0 for a share
    that is not all or nothing."""
    if metric == "kl_per_token":
        return f"{value:.2g}"
    if metric == "perplexity_ratio":
        return f"{value:.4f}"
    text = f"{value:.2f}"
    if metric not in RATES or value in (0, 1):
        return text
    return {"0.00": "<0.01", "1.00": ">0.99"}.get(text, text)
