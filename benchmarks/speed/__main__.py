"""How fast an edit is against what a user would do instead, as ratios measured side by side in one run.

    python -m benchmarks.speed --model demo

What a user would do: `Trainer` with stock (IA)^3 on the same modules, batch 1, 1,000 steps a stage; one
`run_with_hooks` forward a component; an answer at a time. Whatever is scaled up from a part of it is named as such.
`--part` runs some rows only. Prints a table and, as its last line, JSON.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from transformers.utils import logging

import peft_surgical as ps
from peft_surgical.cli.options import SEED

from ..journal import surroundings
from ..localization import FACT
from .beside import beside
from .case import Case, Sizes
from .editing import against_rome, end_to_end, memory, of_one_sentence, one_sentence, own
from .localizing import localization
from .once import once
from .passes import passes
from .scaling import Grid, made_up_fact, scaling, wide_model, word_tokenizer
from .table import lines
from .training import stage_to_the_same_loss, step_at_equal_batch

PARTS = (
    "stage",
    "step",
    "localization",
    "edit",
    "rome",
    "keyed",
    "sentence",
    "memory",
    "passes",
    "beside",
    "once",
    "wide",
    "scaling",
)


def changes(context: click.Context, parameter: click.Parameter, given: str) -> dict[str, Any]:
    """Reads `--recipe`."""
    try:
        changed: dict[str, Any] = dict(json.loads(given))
        # An edit by scales and a keyed one have recipes of their own kinds, and both of them what is changed.
        own = Sizes(changed=changed)
        _ = own.recipes, own.keyed_recipe
    except (TypeError, ValueError) as error:
        raise click.BadParameter(f"{given!r} is no JSON of fields of a recipe: {error}") from None
    return changed


@click.command(help=__doc__.splitlines()[0])
@click.option("--model", "name", default="demo", show_default=True)
@click.option("--fact", "path", default=str(FACT), type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--following",
    default=str(FACT.with_name("romeo_and_juliet.yaml")),
    type=click.Path(exists=True, dir_okay=False),
    help="The fact of the edit that follows.",
)
@click.option("--dtype", default="float32", show_default=True)
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="May be repeated.  [default: all]")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--stage-steps", default=Sizes.stage_steps, show_default=True, help="Steps that a user gives a stage.")
@click.option("--trainer-steps", default=Sizes.trainer_steps, show_default=True, help="Steps measured for its time.")
@click.option("--components", default=Sizes.components, show_default=True, help="How many to run one by one.")
@click.option("--prompts", default=Sizes.prompts, show_default=True, help="Prompts to compare localizations on.")
@click.option("--repeats", default=Sizes.repeats, show_default=True, help="Plain steps to take the median of.")
@click.option("--own-steps", default=Sizes.own_steps, show_default=True, help="Steps of ours to take the mean of.")
@click.option(
    "--recipe",
    "changed",
    default="{}",
    callback=changes,
    help="JSON of fields of our recipes to change, for a quick look.",
)
@click.option("--width", default=3072, show_default=True, help="Of the random Phi-3.")
@click.option("--layers", default=2, show_default=True, help="Of the random Phi-3.")
def main(
    name: str,
    path: str,
    following: str,
    dtype: str,
    parts: tuple[str, ...],
    seed: int,
    changed: dict[str, Any],
    width: int,
    layers: int,
    **sizes: int,
) -> None:
    """Measure, print a table and a line of JSON."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    given, wanted = Sizes(**sizes, changed=changed), parts or PARTS
    found: dict[str, Any] = {}
    try:
        if set(wanted) - {"wide", "scaling", "memory"}:
            fact, next_fact = ps.Fact.from_file(path), ps.Fact.from_file(following)
            model, tokenizer = ps.load_model(name, dtype=dtype)
            found |= measured(Case(model, tokenizer, fact, given, seed, next_fact), wanted)
        if "memory" in wanted:
            found["memory"] = memory(name, path, dtype, changed)
        if "wide" in wanted:
            # Its answers mean nothing, so a few of them to keep will do.
            few = replace(given, changed=changed or {"general": 24})
            wide = Case(wide_model(width, layers, seed), word_tokenizer(), made_up_fact(8, 32), few, seed)
            found |= {f"wide_{part}": value for part, value in measured(wide, ("step", "localization")).items()}
        if "scaling" in wanted:
            found["scaling"] = scaling(Grid(), seed)
    except ps.SurgicalError as error:
        raise click.ClickException(str(error)) from error
    for line in lines(found):
        click.echo(line)
    about = surroundings(torch.device("cpu"))
    about["machine"] |= {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "loaded": Path("/proc/loadavg").read_text().split()[0] if Path("/proc/loadavg").exists() else None,
    }
    asked = {"model": name, "fact": path, "following": following, "dtype": dtype, "seed": seed, "recipe": changed}
    wide_sizes = {"width": width, "layers": layers}
    click.echo(json.dumps({**asked, "sizes": {**sizes, **wide_sizes}, **about, **found}))


def measured(case: Case, parts: tuple[str, ...]) -> dict[str, Any]:
    """The rows about one model; what several of them need is measured once."""
    found: dict[str, Any] = {}
    if "stage" in parts:
        found["stage"] = stage_to_the_same_loss(case)
    if "step" in parts:
        found["step"] = step_at_equal_batch(case)
    if "passes" in parts:
        found["passes"] = passes(case)
    if "beside" in parts:
        found["beside"] = beside(case)
    if "once" in parts:
        found["once"] = once(case)
    if {"localization", "edit"} & set(parts):
        found["localization"] = localization(case)
    if {"rome", "keyed", "sentence"} & set(parts):
        methods = ("rome", "surgical", "surgical_keyed") if "sentence" in parts else ("rome",)
        seconds = of_one_sentence(case, methods)
    if "sentence" in parts:
        found["sentence"] = one_sentence(seconds)
    if {"edit", "rome"} & set(parts):
        edit = own(case)
        if "edit" in parts:
            found["edit"] = {**edit, **end_to_end(case, edit, found["localization"])}
        if "rome" in parts:
            found["rome"] = against_rome(edit, seconds)
    if "keyed" in parts:
        edit = own(case, keyed=True)
        found["keyed"] = {**against_rome(edit, seconds), "edit": edit}
    return found


if __name__ == "__main__":
    main()
