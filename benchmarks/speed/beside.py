"""What running rows side by side, a thread each, gains over threads that share every operation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from peft_surgical.running.generation import generate_answers
from peft_surgical.running.replicas import replicate, without_replicas

from .case import Case, timed
from .training import learn, unstopped


def beside(case: Case) -> dict[str, Any]:
    """Seconds of training steps, of measuring what to keep before them, and of answers to held-out prompts and
    controls, as they are and with all threads on every operation."""
    prompts = [*case.fact.held_out, *(control.prompt for control in case.fact.controls)]
    found: dict[str, Any] = {"replicas": len(replicate(case.model)), "answers": {}, "before": {}, "steps": {}}
    ways: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "seconds": nullcontext,
        "other_seconds": without_replicas,
    }
    recipe = unstopped(case)
    for name, way in ways.items():
        with way():
            stage, seconds = timed(learn, case, recipe)
            found["steps"][name] = stage.record.seconds
            # What the base answers, the curvature, and what little is besides.
            found["before"][name] = seconds - stage.record.seconds
            _, found["answers"][name] = timed(generate_answers, case.model, case.tokenizer, prompts, batch_size=64)
    for row in ("steps", "before", "answers"):
        found[row]["ratio"] = found[row]["other_seconds"] / found[row]["seconds"]
    return found
