"""Several edits with all of them acting, in a terminal: a row a fact, the rates over all, and what to know of them."""

from __future__ import annotations

import os

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..texts.text import printable
from ..together import Together
from .joint_card import COLUMNS, POOLED, cells, told
from .summary import figure_text


def summarize_together(together: Together, out: str | os.PathLike[str]) -> RenderableType:
    """The table and the sentences, for `rich` to print.

    Args:
        together: What was measured.
        out: The folder in which the files are.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("fact", overflow="fold")
    for name in COLUMNS.values():
        table.add_column(name, justify="right", overflow="fold")
    for one in together.facts:
        table.add_row(Text(printable(one.name)), *map(Text, cells(one.stages)))
    table.add_section()
    for state, words in POOLED.items():
        figures = together.pooled.get(state, {})
        shown = (figure_text(metric, figures.get(metric), state) for metric in COLUMNS)
        table.add_row(Text(words), *map(Text, shown))
    count = len(together.facts)
    head = f"Right after each fact's edit → with all {f'{count} ' if count != 1 else ''}edits"
    parts: list[RenderableType] = [Text(head, style="bold"), table]
    parts.append(Text("In brackets: 95% intervals, over all facts' prompts.", style="dim"))
    parts += [Text(printable(sentence)) for sentence in told(together)]
    parts.append(Text(f"In {printable(os.fspath(out))}: a folder a fact, edit/ (one adapter of all), together.json"))
    return Group(*parts)
