"""The settings of methods in a file of results, and the learning rates that a command line gives."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

import peft_surgical as ps

from .baselines import BATCHED, METHODS, Method, described


def check_settings(path: Path, records: Sequence[Mapping[str, Any]], methods: Sequence[Method], model: Any) -> None:
    """Refuses to add to a method's results others that it would reach with other settings, or to give them for these.

    Args:
        path: The file of results.
        records: What it holds.
        methods: With the settings of this run.
        model: The base.

    Raises:
        OutputError: Names the method and a setting that differs, or that the file does not tell.
    """
    wanted = {method.name: flat(described(method, model)) for method in methods}
    for record in records:
        name = record.get("method")
        if name not in wanted or "settings" not in record:
            continue
        held, now = flat(record["settings"]), wanted[name]
        for key in {**now, **held}:
            if key not in held:
                raise ps.OutputError(
                    f"{path} holds rows of {name} that do not say what {key} they were taken with, and this run has"
                    f" {now[key]!r}; name another file."
                )
            if key not in now or held[key] != now[key]:
                raise ps.OutputError(
                    f"{path} holds {name} with {key} {held[key]!r}, and this run has {now.get(key)!r}; name another"
                    " file."
                )


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings in settings by names with dots.

    ```py
    >>> flat({"rank": 8, "recipe": {"steps": 25}})
    {'rank': 8, 'recipe.steps': 25}
    ```
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


def learning_rates(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, float]:
    """Reads `METHOD=LR`."""
    rates = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            rates[name] = float(value)
        except ValueError:
            raise click.BadParameter(f"{text!r} is not of the form METHOD=LR.") from None
        if name not in (known := {**METHODS, **BATCHED}):
            raise click.BadParameter(f"there is no method {name!r}; choose from {', '.join(known)}.")
    return rates


def check_rates(rates: Iterable[str], methods: Container[str]) -> None:
    """Refuses a learning rate of a method that does not run.

    Args:
        rates: The names of the methods that have one.
        methods: The names of those that run.

    Raises:
        SurgicalError: For the first that does not.
    """
    if unused := [name for name in rates if name not in methods]:
        raise ps.SurgicalError(f"a learning rate is given for {unused[0]!r}, which does not run.")
