"""What it gains to run once what prompts begin with, and to let heads of a group read their keys together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any
from unittest.mock import patch

from peft_surgical.running import computing
from peft_surgical.running.suffix import SuffixRunner

from .case import Case, timed
from .training import learn, unstopped


def once(case: Case) -> dict[str, Any]:
    """Seconds of training steps and of measuring what to keep before them: as they are, with the shared beginning in
    every pass of a step and every row of the curvature, and with transformers' plain attention. The better of two
    rounds, after one that is not counted: the first also prepares the products of each shape."""
    found: dict[str, Any] = {"prefix": {}, "attention": {}}
    recipe = unstopped(case)
    ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "": nullcontext,
        "prefix": _prefix_in_every_pass,
        "attention": lambda: patch.object(computing, "has_plain_attention", lambda _: False),
    }
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for name in ["", *ways, *ways]:
        with ways[name]():
            stage, whole = timed(learn, case, recipe)
        # What the base answers, the curvature, and what little is besides.
        rounds[name].append({"steps": stage.record.seconds, "before": whole - stage.record.seconds})
    seconds = {name: {row: min(own[row] for own in made[-2:]) for row in made[0]} for name, made in rounds.items()}
    for name, own in found.items():
        for row, other in seconds[name].items():
            own[row] = {"seconds": seconds[""][row], "other_seconds": other, "ratio": other / seconds[""][row]}
    return found


def _prefix_in_every_pass() -> AbstractContextManager[Any]:
    ways = ExitStack()
    ways.enter_context(patch.object(SuffixRunner, "prefix_once", lambda *_, **__: nullcontext()))
    ways.enter_context(patch.object(SuffixRunner, "tells_rows_apart", lambda *_: False))
    return ways
