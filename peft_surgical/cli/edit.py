"""`peft-surgical edit`: the whole way, from a fact file to two adapters, their product and the proof."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

import peft_surgical as ps

from ..choice import EDIT_PROJECTIONS, NEURON_PROJECTIONS, check_choice
from ..counts import counted
from ..edit_folder import EDIT, PICTURE, TABLE
from ..editing import EDIT_SCORERS
from ..facts import Fact
from ..profiling import profiled
from ..ranges import Ranges
from ..reporting.summary import summarize
from ..running.sharing import by_all, shard
from ..selection import Selection
from ..sites import PROJECTIONS
from ..staging.recipe_files import recorded
from ..staging.stage import LEARN, UNLEARN
from ..tuner.resolve import Granularity
from . import checks, options
from .allocator import spare_memory
from .launch import launched, sharded
from .loading import check_device, load
from .plans import at_most, file_names, plan, taught
from .recipes import differences, stage_recipes
from .terminal import (
    REPORT_FILES,
    note_left_out_picture,
    on_interrupt,
    print_json,
    print_result,
    this_command,
)

_COUNTED = {"heads": "head", "mlps": "MLP", "budget": "scale"}
_FILES = (
    (f"{UNLEARN}/, {LEARN}/", "the two staged adapters"),
    (f"{EDIT}/", "their product, one plain (IA)^3 adapter that stock PEFT loads"),
    REPORT_FILES,
)


@click.command(short_help="Localize, unlearn, learn, stack, evaluate, report.")
@options.fact
@options.model
@options.out
@options.on
@options.scorer("attribution and lookup")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    help="Components to scale, best first.  [default: the MLPs of all layers]",
)
@options.heads
@options.mlps
@click.option("--budget", type=click.IntRange(min=1), help="Scales at most.")
@click.option(
    "--component",
    "components",
    multiple=True,
    metavar="NAME",
    help="Scale this component, such as L16.mlp or L20.head.3, instead of the best-scored ones; may be repeated.",
)
@click.option(
    "--selection",
    "selection_file",
    type=options.PATH,
    metavar="FILE",
    help="Scale the components of this JSON file instead: a localization.json, a report.json, or one by hand.",
)
@click.option(
    "--granularity",
    type=click.Choice(["component", "module", "neuron"]),
    default="component",
    show_default=True,
    help="What is scaled of a component: its coordinates, its whole modules, or its best neurons.",
)
@click.option(
    "--projection",
    "projections",
    multiple=True,
    type=click.Choice(PROJECTIONS),
    help="Where components are scaled; may be repeated.  [default: z and in; z, post and pre with --neurons]",
)
@click.option("--neurons", type=click.IntRange(min=1), help="With --granularity neuron: how many of each MLP.")
@click.option("--steps", type=click.IntRange(min=1), help="Optimizer steps a stage at most.")
@click.option("--low-memory", is_flag=True, help="Train in smaller passes, none side by side: less memory, more time.")
@options.faithfulness
@options.recipe(
    "fields of `Recipe` below `unlearn` and `learn`, or a report of this command; --steps and --low-memory win over it"
)
@options.retention_tokens
@options.seed
@options.overwrite
@options.profile
@options.dry_run
@options.as_json
@options.quiet
@options.debug
@click.pass_context
def edit(
    context: click.Context,
    fact_file: Path,
    source: options.Source,
    out: Path,
    on: tuple[Path, ...],
    scorers: tuple[str, ...],
    top: int | None,
    heads: int | None,
    mlps: int | None,
    budget: int | None,
    components: tuple[str, ...],
    selection_file: Path | None,
    granularity: Granularity,
    projections: tuple[str, ...],
    neurons: int | None,
    steps: int | None,
    low_memory: bool,
    faithfulness: bool,
    recipe_file: Path | None,
    retention_tokens: int,
    seed: int,
    overwrite: bool,
    profile: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Rewrite one fact, and measure what that did to it and to everything else.

    \b
    Examples:
      peft-surgical edit france.yaml --model demo --out out
      peft-surgical edit fact.yaml --model ./checkpoint --top 5 --seed 1 --out out
      peft-surgical edit fact.yaml --component L16.mlp --component L20.mlp --out out
      peft-surgical edit fact.yaml --selection where/localization.json --out out
      peft-surgical edit japan.yaml --on out/france/edit --out out/japan
    """
    limits = {"top": top, "heads": heads, "mlps": mlps, "budget": budget}
    limited = next((f"--{name}" for name, limit in limits.items() if limit is not None), None)
    by_hand = "--component" if components else "--selection"
    if components and selection_file is not None:
        raise click.UsageError("--component and --selection exclude each other: name components, or a file of them.")
    if limited and (components or selection_file is not None):
        raise click.UsageError(f"{by_hand} and {limited} exclude each other: either you choose, or the scorer does.")
    if (granularity == "neuron") != (neurons is not None) and selection_file is None:
        raise click.UsageError("--granularity neuron and --neurons N go together.")
    if granularity == "module" and projections:
        raise click.UsageError("--projection and --granularity module exclude each other: that scales whole modules.")
    if granularity == "module" and budget is not None:
        raise click.UsageError("--budget and --granularity module exclude each other: components share modules.")
    if sharded() and faithfulness:
        raise click.UsageError(
            "--faithfulness needs the whole model in one process, and the launcher spreads it over several; measure it"
            " with `localize --faithfulness`."
        )
    fact = Fact.from_file(fact_file)
    checks.edit_folder(out, overwrite)
    checks.earlier(on, source, out)
    checks.scorers(scorers)
    selection = checks.selection(components, selection_file)
    checks.projections(projections, selection, limits)
    check_choice(selection, granularity, neurons, projections, **limits)
    recipes = stage_recipes(recipe_file, steps, low_memory) if recipe_file or steps or low_memory else None
    if dry_run:
        check_device(source.device)
        trained = recipes or ps.RECIPES
        how = {
            "granularity": granularity,
            "neurons": neurons,
            "projections": list(projections),
            "steps": steps,
            "on": list(map(str, on)),
            "faithfulness": faithfulness,
            "recipe": {stage: recorded(recipe) for stage, recipe in trained.items()},
        }
        told = differences(trained, ps.RECIPES, recipe_file) if recipe_file else None
        _tell(fact, source.name, scorers, limits, selection, how, told, out, as_json, quiet)
        return
    if low_memory:
        spare_memory(context)
    source = context.with_resource(launched(source))
    model, tokenizer = load(source, quiet=quiet)
    scaled = projections or (EDIT_PROJECTIONS if neurons is None else NEURON_PROJECTIONS)
    by_all(lambda: checks.model_has(model, selection, limits, scaled, neurons))
    on_interrupt(context, out)
    with profiled() as spent:
        localization = None
        if sharded():
            names = list(scorers) or EDIT_SCORERS
            localization = ps.localize(model, tokenizer, fact, names, seed=seed, progress=not quiet)
            shard(model)
        report = ps.edit(
            model,
            tokenizer,
            fact,
            out=out,
            on=on,
            scorers=list(scorers) or None,
            localization=localization,
            **limits,
            selection=selection,
            granularity=granularity,
            neurons=neurons,
            projections=projections or None,
            recipe=recipes,
            seed=seed,
            overwrite=overwrite,
            progress=not quiet,
            faithfulness=faithfulness,
            retention_tokens=retention_tokens,
            command=this_command(context),
        )
    if as_json:
        print_json(report.to_dict())
    if not (pictured := (out / PICTURE).exists()):
        note_left_out_picture(PICTURE, quiet=quiet)
    print_result(summarize(report, out, _files(pictured)), quiet=quiet, as_json=as_json)
    if profile:
        print_result(spent.table(), quiet=quiet, as_json=as_json)


def _files(pictured: bool) -> list[tuple[str, str]]:
    """The rows of the summary; the picture is in them where one is drawn."""
    return [(f"{TABLE}, {PICTURE}" if pictured else TABLE, "the scores of every component"), *_FILES]


def _tell(
    fact: Fact,
    model_name: str,
    scorers: tuple[str, ...],
    limits: Mapping[str, int | None],
    selection: Selection | None,
    how: Mapping[str, Any],
    recipe: str | None,
    out: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """What the command would do, on standard output."""
    written = [files for files, _ in _files(find_spec("matplotlib") is not None)]
    names = list(scorers) or list(EDIT_SCORERS)
    components = [] if selection is None else list(selection.components)
    some = {} if selection is None else dict(selection.neurons or {})
    if as_json:
        print_json(
            {
                "fact": fact.to_dict(),
                "model": model_name,
                "scorers": names,
                **limits,
                "components": components,
                **how,
                "neurons": some or how["neurons"],
                "out": str(out),
                "files": file_names(written),
            }
        )
        return
    parts = (name if name not in some else _some_neurons(name, some[name]) for name in components)
    chosen = ", ".join(parts) or _within(limits, names[0])
    if how["granularity"] == "module":
        chosen += ", whole modules"
    if how["neurons"] is not None:
        chosen += f", {counted(how['neurons'], 'neuron')} of each MLP"
    if how["projections"]:
        chosen += f", at {' and '.join(how['projections'])}"
    done = {
        "localize": f"with {', '.join(names)}, on {counted(len(fact.training.prompts), 'prompt')}",
        "scale": chosen,
        **({"measure": "what they carry together"} if how["faithfulness"] else {}),
        "unlearn": f"to answer{at_most(how['steps'])}: {fact.refusal}",
        "learn": f"to answer{at_most(how['steps'])}: {taught(fact)}",
    }
    if recipe is not None:
        done["recipe"] = recipe
    print_result(plan(fact, model_name, how["on"], done, written, out), quiet=quiet)


def _some_neurons(mlp: str, ranges: Ranges) -> str:
    count = sum(stop - start for start, stop in ranges)
    return f"{counted(count, 'neuron')} of {mlp}"


def _within(limits: Mapping[str, int | None], scorer: str) -> str:
    """The limits in words."""
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if not given:
        return "the MLPs of all layers"
    top = given.pop("top", None)
    best = "components" if top is None else counted(top, "component")
    others = [counted(limit, _COUNTED[name]) for name, limit in given.items()]
    most = f", at most {' and '.join(others)}" if others else ""
    return f"the best {best} by {scorer}{most}"
