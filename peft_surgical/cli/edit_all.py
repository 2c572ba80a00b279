"""`peft-surgical edit-all`: many facts in one model, each on top of those before it, and what they do together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import and_
from pathlib import Path
from typing import Any

import click

import peft_surgical as ps

from ..counts import counted
from ..edit_folder import EDIT, TOGETHER
from ..errors import SurgicalError
from ..joint.fact_set import check_facts, folder_names, read_facts
from ..joint.resuming import Planned, planned
from ..many import settings_of
from ..profiling import profiled
from ..reporting.joint_table import summarize_together
from ..staging.recipe import Recipe
from ..staging.stage import LEARN
from . import checks, options
from .allocator import spare_memory
from .loading import check_device, load
from .plans import at_most
from .recipes import differences, keyed_recipe, stage_recipes
from .terminal import note, on_interrupt, print_json, print_result, this_command


@click.command(name="edit-all", short_help="Edit many facts, each on top of the others; measure all together.")
@click.argument("fact_files", nargs=-1, required=True, metavar="FACT...", type=options.PATH)
@options.model
@options.out
@click.option("--scales", is_flag=True, help="Edit as `edit` does, by scales; else as `edit-keyed` does.")
@click.option("--steps", type=click.IntRange(min=1), help="Optimizer steps at most, by scales a stage.")
@click.option("--low-memory", is_flag=True, help="Train in smaller passes, none side by side.")
@options.recipe("what `edit-keyed`, or with --scales `edit`, takes; --steps and --low-memory win over it")
@options.retention_tokens
@options.seed
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace other edits that are in the facts' folders; those that would be made the same again stay.",
)
@options.profile
@options.dry_run
@options.as_json
@options.quiet
@options.debug
@click.pass_context
def edit_all(
    context: click.Context,
    fact_files: tuple[Path, ...],
    source: options.Source,
    out: Path,
    scales: bool,
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
    """Rewrite many facts in one model, and measure each with all edits acting.

    Each fact is edited on top of those before it, into a folder of its own in --out, called as its file. One adapter
    of all is in edit/, and together.json says what later edits did to earlier ones.

    A finished edit that would be made the same again is taken as it is: run the same command again to go on after an
    interrupt, or with more facts at the end. A fact that cannot be edited is left out, and the status is 2.

    \b
    Examples:
      peft-surgical edit-all france.yaml japan.yaml iphone.yaml --model demo --out out/all
      peft-surgical edit-all facts/*.yaml --model ./checkpoint --scales --out out/all
    """
    with checks.refused_unnamed(not dry_run and not scales):
        facts = check_facts(read_facts(fact_files))
    recipe: ps.KeyedRecipe | Mapping[str, Recipe] = (
        stage_recipes(recipe_file, steps, low_memory) if scales else keyed_recipe(recipe_file, steps, low_memory)
    )
    settings, _ = settings_of(not scales, recipe, seed, retention_tokens)
    names = folder_names(facts)
    plans = planned(out, facts, names, settings, overwrite=overwrite, how=checks.HOW)
    if dry_run:
        check_device(source.device)
        trained = _trained(recipe, steps, recipe_file)
        _tell(plans, source.name, settings.keyed, settings.recipe, trained, out, as_json, quiet)
        return
    if low_memory:
        spare_memory(context)
    model, tokenizer = load(source, quiet=quiet)
    # Here, too, it is told how a command allows it.
    planned(out, facts, names, settings, overwrite=overwrite, model=model, tokenizer=tokenizer, how=checks.HOW)
    on_interrupt(context, out, goes_on=True)
    with profiled() as spent:
        together = ps.edit_all(
            model,
            tokenizer,
            facts,
            out=out,
            keyed=not scales,
            recipe=recipe,
            seed=seed,
            overwrite=overwrite,
            progress=not quiet,
            retention_tokens=retention_tokens,
            command=this_command(context),
            tell=lambda line: note(line, quiet=quiet),
        )
    if as_json:
        print_json(together.to_dict())
    print_result(summarize_together(together, out), quiet=quiet, as_json=as_json)
    if profile:
        print_result(spent.table(), quiet=quiet, as_json=as_json)
    if together.failed:
        told = " ".join(f"{name}: {why}" for name, why in together.failed.items())
        raise SurgicalError(f"{len(together.failed)} of {counted(len(facts), 'fact')} could not be edited. {told}")


def _trained(recipe: ps.KeyedRecipe | Mapping[str, Recipe], steps: int | None, path: Path | None) -> dict[str, str]:
    """How each fact is trained, in words by the steps of an edit."""
    recipes, own = (
        ({LEARN: recipe}, {LEARN: ps.KeyedRecipe()}) if isinstance(recipe, ps.KeyedRecipe) else (recipe, ps.RECIPES)
    )
    told = {stage: f"each fact{at_most(steps)}" for stage in recipes}
    return told if path is None else told | {"recipe": differences(recipes, own, path)}


def _tell(
    plans: Sequence[Planned],
    model_name: str,
    keyed: bool,
    recipe: Mapping[str, Any],
    trained: Mapping[str, str],
    out: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """What the command would do, on standard output."""
    # Whether a later one is taken depends on what becomes of those before it.
    there = [*accumulate((plan.finished is not None for plan in plans), and_)]
    if as_json:
        facts = [
            {"name": plan.name, "fact": plan.fact.to_dict(), "finished": finished}
            for plan, finished in zip(plans, there, strict=True)
        ]
        files = [*(f"{plan.name}/" for plan in plans), f"{EDIT}/", TOGETHER]
        print_json(
            {"model": model_name, "facts": facts, "keyed": keyed, "recipe": dict(recipe), "out": str(out)}
            | {"files": files}
        )
        return
    kind = "keyed edits" if keyed else "edits by scales"
    lines = [f"Would edit {model_name}: {counted(len(plans), 'fact')}, each on top of those before it, by {kind}."]
    for plan, finished in zip(plans, there, strict=True):
        fact = plan.fact
        what = f"{fact.subject}, from {fact.old[0]} to {fact.new[0]}"
        lines.append(f"  {plan.name}/  {what}{' (is there, and stays)' if finished else ''}")
    asked = sum(len(plan.fact.held_out) for plan in plans), sum(len(plan.fact.controls) for plan in plans)
    lines += [
        *(f"  {name:9}  {what}" for name, what in trained.items()),
        f"  together   on {counted(asked[0], 'held-out prompt')}, {counted(asked[1], 'control')}",
        f"  write      {EDIT}/, {TOGETHER} in {out}",
        "Nothing was loaded or written.",
    ]
    print_result("\n".join(lines), quiet=quiet)
