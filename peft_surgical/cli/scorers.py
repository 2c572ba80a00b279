"""`peft-surgical scorers`: what can localize a fact, and whose code that is."""

from __future__ import annotations

import math
import sys
from contextlib import redirect_stdout

import click

from .. import plugins
from .options import as_json as json_option
from .options import debug
from .tables import Catalogue
from .terminal import print_json, print_result


@click.command(short_help="List the installed scorers.")
@json_option
@debug
def scorers(as_json: bool) -> None:
    """List the installed scorers: what each reads, its options, and the package it comes from.

    Scorers of other packages are code of theirs, which runs as soon as scorers are looked up, also to be listed.

    \b
    Example:
      peft-surgical scorers
    """
    with redirect_stdout(sys.stderr):  # what a plugin prints as it is imported is no part of the list
        catalogue = plugins.load_scorers()
    installed = [item for _, item in sorted(catalogue.scorers.items())]
    if as_json:
        print_json(
            [
                {
                    "name": item.name,
                    "reads": item.reads,
                    "options": {name: _as_json(o) for name, o in item.options.items() if _is_plain(o)},
                    "distribution": item.distribution,
                    "code": item.code,
                }
                for item in installed
            ]
        )
        return
    rows = []
    for item in installed:
        options = ", ".join(f"{name}={default}" for name, default in item.options.items())
        rows.append([item.name, item.reads, options, item.distribution])
    print_result(Catalogue(["scorer", "reads", "options", "from"], rows))
    lines = [
        f"  {plugin.name} of {plugin.distribution}: {plugin.code}, {plugin.file or 'without a file'}"
        f"{' (left out)' if plugin.fault else ''}"
        for plugin in catalogue.plugins
    ]
    print_result("\n".join(["", "Code of other packages that runs:", *(lines or ["  none"])]))


def _as_json(value: object) -> object:
    # JSON has no infinity; as text it is what an option is given as.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))
