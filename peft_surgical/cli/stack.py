"""`peft-surgical stack`: several adapters as one, or one turned down or up."""

from __future__ import annotations

from pathlib import Path

import click

import peft_surgical as ps

from ..adapters.lineage import check_once
from ..counts import counted
from ..writing.inputs import check_inputs_stay
from . import checks, options
from .terminal import print_json, print_result


@click.command(short_help="Make one adapter of several.")
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...", type=options.PATH)
@options.out
@click.option(
    "--dial",
    type=options.DIAL,
    metavar="T",
    help="Turn one adapter, of scales or LoRA, down or up: 0 is no edit, 0.5 half of it, 1 the edit, 1.5 the most.",
)
@click.option("--overwrite", is_flag=True, help="Replace the output folder if it holds an adapter.")
@options.as_json
@options.quiet
@options.debug
def stack(
    adapters: tuple[Path, ...], out: Path, dial: float | None, overwrite: bool, as_json: bool, quiet: bool
) -> None:
    """Write the exact product of adapters as one plain (IA)^3 adapter, or what LoRA adapters add as one of these.

    Stock PEFT loads either. Of both kinds together none can be made; `merge` folds them in, in their order.

    With --dial one adapter is written at a part of its strength; a LoRA adapter, as edit-keyed makes, stays one.

    \b
    Examples:
      peft-surgical stack out/unlearn out/learn --out out/both
      peft-surgical stack out/france/edit out/japan/edit --out out/both
      peft-surgical stack out/edit --dial 0.5 --out out/half
    """
    if dial is not None and len(adapters) > 1:
        raise click.UsageError("--dial turns one adapter; stack several first, and turn what that writes.")
    checks.output(out, overwrite)
    check_once(adapters)
    check_inputs_stay(out, adapters)
    edit = ps.stack(list(adapters) if dial is None else ps.power(adapters[0], dial), out, overwrite=overwrite)
    if isinstance(edit, ps.Edit):
        kind, modules, size = "plain (IA)^3", len(edit.modules), {"scales": edit.n_scales}
        what = counted(edit.n_scales, "scale")
    else:
        kind, modules, size = "LoRA", len(edit.factors), {"rank": edit.rank}
        what = f"rank {edit.rank},"
    if as_json:
        print_json({"out": str(out), "modules": modules, **size})
    text = (
        f"One {kind} adapter in {out}: {what} in {counted(modules, 'module')}.\n"
        f'Load it with PeftModel.from_pretrained(model, "{out}"), this package installed or not.'
    )
    print_result(text, quiet=quiet, as_json=as_json)
