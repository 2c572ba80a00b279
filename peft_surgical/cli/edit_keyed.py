"""`peft-surgical edit-keyed`: an edit that acts where the subject is named, from a fact file to the proof."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import peft_surgical as ps

from ..counts import counted
from ..edit_folder import EDIT
from ..facts import Fact
from ..keying.other_names import with_other_names
from ..profiling import profiled
from ..reporting.summary import summarize
from ..staging.recipe_files import recorded
from ..staging.stage import LEARN
from . import checks, options
from .allocator import spare_memory
from .launch import launched, sharded
from .loading import check_device, load
from .plans import at_most, file_names, plan, taught
from .recipes import differences, keyed_recipe
from .terminal import REPORT_FILES, on_interrupt, print_json, print_result, this_command

_FILES = (
    (f"{EDIT}/", "the adapter, LoRA that stock PEFT loads"),
    REPORT_FILES,
)


@click.command(name="edit-keyed", short_help="Edit where the subject is named: learn, evaluate, report.")
@options.fact
@options.model
@options.out
@options.on
@click.option(
    "--layer",
    "layers",
    multiple=True,
    type=click.IntRange(min=0),
    help="Rewrite a neuron of this layer's MLP; may be repeated.  [default: 4, a sixth of the layers apart]",
)
@click.option("--steps", type=click.IntRange(min=1), help="Optimizer steps at most.")
@click.option("--low-memory", is_flag=True, help="Train in smaller passes, none side by side.")
@options.recipe("fields of `KeyedRecipe`, or a report of this command; --steps and --low-memory win over it")
@options.retention_tokens
@options.seed
@options.overwrite
@options.profile
@options.dry_run
@options.as_json
@options.quiet
@options.debug
@click.pass_context
def edit_keyed(
    context: click.Context,
    fact_file: Path,
    source: options.Source,
    out: Path,
    on: tuple[Path, ...],
    layers: tuple[int, ...],
    steps: int | None,
    low_memory: bool,
    recipe_file: Path | None,
    retention_tokens: int,
    seed: int,
    overwrite: bool,
    profile: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Rewrite one fact where its subject is named, and measure what that did to it and to everything else.

    Kept more than `edit` on each of nine facts measured, and changes little where the subject has a name that is
    not among the fact's `aliases`. A country has its usual ones and its adjective without them ("French" of France).
    Writes a LoRA adapter that rewrites one neuron in each of four layers, so that it fires at the subject's tokens
    and next to nowhere else, instead of (IA)^3 scales; nothing is localized.

    \b
    Examples:
      peft-surgical edit-keyed france.yaml --model demo --out out/france
      peft-surgical edit-keyed japan.yaml --model demo --on out/france/edit --out out/japan
    """
    with checks.refused_unnamed(not dry_run):
        fact = Fact.from_file(fact_file)
    checks.edit_folder(out, overwrite)
    recipe = keyed_recipe(recipe_file, steps, low_memory)
    checks.earlier(on, source, out)
    if sharded():
        raise click.UsageError("a keyed edit needs the whole model in each process; launch it without --use_fsdp.")
    if dry_run:
        check_device(source.device)
        told = differences({LEARN: recipe}, {LEARN: ps.KeyedRecipe()}, recipe_file) if recipe_file else None
        how = {"layers": list(layers) or None, "steps": steps, "on": list(map(str, on)), "recipe": recorded(recipe)}
        _tell(fact, source.name, how, told, out, as_json, quiet)
        return
    if low_memory:
        spare_memory(context)
    source = context.with_resource(launched(source))
    model, tokenizer = load(source, quiet=quiet)
    on_interrupt(context, out)
    with profiled() as spent:
        report = ps.edit_keyed(
            model,
            tokenizer,
            fact,
            out=out,
            on=on,
            layers=layers or None,
            recipe=recipe,
            seed=seed,
            overwrite=overwrite,
            progress=not quiet,
            retention_tokens=retention_tokens,
            command=this_command(context),
        )
    if as_json:
        print_json(report.to_dict())
    print_result(summarize(report, out, _FILES), quiet=quiet, as_json=as_json)
    if profile:
        print_result(spent.table(), quiet=quiet, as_json=as_json)


def _tell(
    fact: Fact, model_name: str, how: Mapping[str, Any], recipe: str | None, out: Path, as_json: bool, quiet: bool
) -> None:
    """What the command would do, on standard output."""
    written = [files for files, _ in _FILES]
    if as_json:
        files = {"out": str(out), "files": file_names(written)}
        print_json({"fact": fact.to_dict(), "model": model_name, **how, **files})
        return
    layers, steps = how["layers"], how["steps"]
    where = f"layer {' and '.join(map(str, layers))}" if layers else "each of 4 layers, a sixth of the layers apart"
    learned = with_other_names(fact.training) if how["recipe"]["other_names"] else fact.training
    done = {
        "rewrite": f"a neuron of the MLP of {where}, to fire at {', '.join(learned.names)}",
        "learn": f"to answer{at_most(steps)}, on {counted(len(learned.prompts), 'prompt')}: {taught(fact)}",
    }
    if recipe is not None:
        done["recipe"] = recipe
    print_result(plan(fact, model_name, how["on"], done, written, out), quiet=quiet)
