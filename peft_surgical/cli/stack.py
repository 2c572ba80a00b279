"""`peft-surgical stack`: several staged adapters as one."""

from __future__ import annotations

from pathlib import Path

import click

import peft_surgical as ps

from ..adapters.lineage import check_once
from . import checks, options
from .terminal import counted, print_json, print_result


@click.command(short_help="Multiply adapters into one plain (IA)^3 adapter.")
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...", type=options.PATH)
@options.out
@click.option("--overwrite", is_flag=True, help="Replace the output folder if it holds an adapter.")
@options.as_json
@options.quiet
@options.debug
def stack(adapters: tuple[Path, ...], out: Path, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Write the exact product of adapters as one plain (IA)^3 adapter, which stock PEFT loads.

    \b
    Example:
      peft-surgical stack out/unlearn out/learn --out out/both
    """
    checks.output(out, overwrite)
    check_once(adapters)
    edit = ps.stack(list(adapters), out, overwrite=overwrite)
    if as_json:
        print_json({"out": str(out), "modules": len(edit.modules), "scales": edit.n_scales})
    text = (
        f"One plain (IA)^3 adapter in {out}: {counted(edit.n_scales, 'scale')} in"
        f" {counted(len(edit.modules), 'module')}.\n"
        f'Load it with PeftModel.from_pretrained(model, "{out}"), this package installed or not.'
    )
    print_result(text, quiet=quiet, as_json=as_json)
