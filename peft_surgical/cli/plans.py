"""What a command would do, told by `--dry-run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from pathlib import Path

from ..counts import counted
from ..facts import Fact
from ..staging.whole_answers import is_bare, whole_answer


def plan(
    fact: Fact, model_name: str, on: Sequence[str], done: Mapping[str, str], written: Sequence[str], out: Path
) -> str:
    """The steps of an edit, a line each.

    Args:
        fact: The fact.
        model_name: What `--model` says.
        on: What `--on` says.
        done: The steps before the evaluation, by their names.
        written: What is written, as it stands in each row of the summary.
        out: Where.
    """
    evaluated: dict[str, Sized] = {
        "held-out prompt": fact.held_out,
        "control": fact.controls,
        "probe": fact.probes,
        "portability question": fact.portability,
    }
    steps = {
        **done,
        "evaluate": f"on {', '.join(counted(len(asked), one) for one, asked in evaluated.items())}",
        "write": f"{', '.join(written)} in {out}",
    }
    lines = [
        f"Would edit {model_name}: {fact.subject}, from {fact.old[0]} to {fact.new[0]}.",
        *([f"  on top of {' and '.join(on)}"] if on else []),
        *(f"  {name:8}  {what}" for name, what in steps.items()),
        "Nothing was loaded or written.",
    ]
    return "\n".join(lines)


def at_most(steps: int | None) -> str:
    """How many steps are taken, if that is limited, to go on with in a sentence."""
    return "" if steps is None else f", in at most {counted(steps, 'step')}"


def taught(fact: Fact) -> str:
    """What the model is taught to answer."""
    if not is_bare(fact):
        return fact.answer
    sentence = whole_answer(fact)
    # Only a model tells whether it has a chat template, and what it says itself.
    chat = "in a sentence of the model's own" if sentence == fact.answer else sentence
    return f"{fact.answer} (with a chat template: {chat})"


def file_names(written: Sequence[str]) -> list[str]:
    """The names alone of what is written."""
    return [name for files in written for name in files.split(", ")]
