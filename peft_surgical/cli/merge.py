"""`peft-surgical merge`: an edit folded into the weights, for programs that know no adapters."""

from __future__ import annotations

from pathlib import Path

import click

import peft_surgical as ps

from ..adapters.edits import Edit
from ..adapters.lineage import check_once
from ..adapters.mergeable import read_mergeable
from ..folding import modules_of, steps_of
from ..writing.files import CHECKPOINT, check_output
from ..writing.inputs import check_inputs_stay
from . import checks, options
from .loading import load, no_bars
from .terminal import print_json, print_result


@click.command(short_help="Fold adapters into the weights of a checkpoint.")
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...", type=options.PATH)
@options.model
@options.out
@click.option("--overwrite", is_flag=True, help="Replace the output folder if it holds a checkpoint.")
@options.as_json
@options.quiet
@options.debug
def merge(
    adapters: tuple[Path, ...],
    source: options.Source,
    out: Path,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Fold adapters, in order, into the weights; write a checkpoint that `from_pretrained` loads.

    Takes the (IA)^3 adapters of `edit`, those of `edit-keyed` and any plain LoRA adapters. Small changes vanish in
    half precision; --dtype float32 keeps them. The tokenizer goes with the weights, and so do the base's
    tokenizer.model, configurations of processors, LICENSE and NOTICE files. peft_surgical.json and README.md say
    which edits are in the weights.

    \b
    Examples:
      peft-surgical merge out/unlearn out/learn --model demo --out merged
      peft-surgical merge keyed/edit --model demo --out merged
      peft-surgical merge out/france/edit out/japan/edit --model demo --out merged
    """
    checks.output(out, overwrite)
    check_once(adapters)
    # `demo` is no folder, whatever is called so here.
    check_inputs_stay(out, adapters if source.name == "demo" else [*adapters, source.name])
    check_output(out, overwrite=overwrite, content=CHECKPOINT)
    # Read before the model is: a damaged adapter is told at once.
    steps = steps_of([read_mergeable(adapter) for adapter in adapters])
    model, tokenizer = load(source, quiet=quiet)
    with no_bars():
        ps.merge(model, adapters, out, tokenizer=tokenizer, overwrite=overwrite)
    if as_json:
        scales = [step.n_scales for step in steps if isinstance(step, Edit)]
        sizes = {"modules": len(modules_of(steps))} | ({"scales": sum(scales)} if scales else {})
        print_json({"out": str(out), **sizes})
    print_result(
        f'A checkpoint with the edit folded in: {out}\nLoad it with AutoModelForCausalLM.from_pretrained("{out}").',
        quiet=quiet,
        as_json=as_json,
    )
