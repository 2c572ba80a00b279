"""A localization as a piece of HTML for a notebook: its best components, ranked, with their scores.

```py
>>> html = render_localization(localization)      # what a notebook shows for `localization` at the end of a cell
```

`Report` has its table from `page.render_table`. Names and messages in a file may come from anybody, so every text is
escaped.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from ..texts.text import printable

if TYPE_CHECKING:
    from .results import Localization

_TOP = 10
_RIGHT = ' style="text-align: right"'


def render_localization(localization: Localization) -> str:
    """The ten best components and what each scorer gives them.

    Args:
        localization: The scores. The best are those of the primary scorer, or of the first that has scores if that one
            failed.

    Returns:
        A heading, a table and a line on what is left out; every text in it is escaped.
    """
    names = (*localization.scorers, *localization.tables)
    scorer = next((name for name in names if name in localization.tables), None)
    title = f"{localization.subject} in {localization.model} ({localization.dtype})"
    parts = [f'<div><strong dir="auto">{_text(title)}</strong></div>']
    if scorer is not None:
        parts += _ranked(localization, scorer)
    parts += [f"<div>{_text(f'{name} has no scores: {why}')}</div>" for name, why in localization.errors.items()]
    return "\n".join(parts)


def _ranked(localization: Localization, scorer: str) -> list[str]:
    header, rows = localization.rows(_TOP, scorer)
    heads = "".join(f'<th scope="col"{"" if n == 1 else _RIGHT}>{_text(name)}</th>' for n, name in enumerate(header))
    body = []
    for rank, component, *scores in rows:
        cells = "".join(f"<td{_RIGHT}>{_text(score)}</td>" for score in scores)
        body.append(f'<tr><td{_RIGHT}>{rank}</td><th scope="row">{_text(component)}</th>{cells}</tr>')
    scored = len(localization.tables[scorer].components)
    return [
        f"<table><thead><tr>{heads}</tr></thead>\n<tbody>{chr(10).join(body)}</tbody></table>",
        f"<div>The best {len(rows)} of {scored:,} components by {_text(scorer)}; larger scores matter more.</div>",
    ]


def _text(text: str) -> str:
    return escape(printable(text))
