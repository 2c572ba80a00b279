"""Tables of answers and of scores from which nothing is cut, however narrow the terminal is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from ..texts.text import printable
from .terminal import plain_table

# Between two columns of `plain_table`.
_GAP = 3
# Narrower columns of text are hard to read.
_LEAST_TEXT, _LEAST_NUMBER = 12, 6


class Answers:
    """Texts side by side, or below each other where columns would be narrow."""

    def __init__(self, heads: Sequence[str], rows: Sequence[Sequence[str]], *, named: bool) -> None:
        """Keeps what is shown, without control codes: it may quote a model.

        Args:
            heads: Of the columns.
            rows: As many texts each.
            named: Whether the first column tells rows apart.
        """
        self.heads = [printable(head) for head in heads]
        self.rows = [[printable(cell) for cell in row] for row in rows]
        self.named = named

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        columns = len(self.heads)
        if options.max_width < columns * _LEAST_TEXT + (columns - 1) * _GAP:
            yield from self._list()
            return
        table = plain_table(show_lines=True)
        for head in self.heads:
            table.add_column(Text(head), overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        yield table

    def _list(self) -> Iterator[RenderableType]:
        for number, row in enumerate(self.rows):
            if number:
                yield Text("")
            if self.named:
                yield Text(row[0])
            for head, cell in list(zip(self.heads, row, strict=True))[self.named :]:
                yield Text(f"{'  ' * self.named}{head}: {cell}")


class Catalogue(Answers):
    """What is installed: names, which are never folded, and beside or below each what is said of it."""

    def __init__(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Keeps what is shown, without control codes: it may come from a plugin.

        Args:
            heads: Of the columns, the names' first.
            rows: As many texts each; an empty one is left out where it would have a line of its own.
        """
        super().__init__(heads, rows, named=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        names = max(cell_len(row[0]) for row in [self.heads, *self.rows])
        if options.max_width < names + (len(self.heads) - 1) * (_GAP + _LEAST_TEXT):
            yield from self._list()
            return
        table = plain_table()
        for number, head in enumerate(self.heads):
            table.add_column(Text(head), no_wrap=not number, overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        yield table

    def _list(self) -> Iterator[RenderableType]:
        for number, (name, *cells) in enumerate(self.rows):
            if number:
                yield Text("")
            yield Text(name)
            yield from (Text(f"  {head}: {cell}") for head, cell in zip(self.heads[1:], cells, strict=True) if cell)


class ScoreTable:
    """The ranked components: the scores of as many scorers as there is room for, whose names are folded if need be."""

    def __init__(self, header: Sequence[str], rows: Sequence[Sequence[str]], elsewhere: str) -> None:
        """Keeps what is shown.

        Args:
            header: `rank`, `component`, and the scorers, the one that ranks first.
            rows: As many texts each.
            elsewhere: Says where the scores are for which there is no room.
        """
        self.elsewhere = elsewhere
        self.header = [printable(name) for name in header]
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        least = [max([_LEAST_NUMBER, *map(len, column)]) for column in zip(*self.rows, strict=True)]
        natural = [max(width, cell_len(name)) for width, name in zip(least, self.header, strict=True)]
        widths = [*natural[:2], *least[2:]]
        count = len(widths)
        while count > 2 and sum(widths[:count]) + (count - 1) * _GAP > options.max_width:
            count -= 1
        if count == 2:
            yield from self._list()
            return
        room = options.max_width - sum(widths[:count]) - (count - 1) * _GAP
        while room > 0 and (folded := [n for n in range(2, count) if widths[n] < natural[n]]):
            widths[min(folded, key=widths.__getitem__)] += 1
            room -= 1
        table = plain_table()
        for number, name in enumerate(self.header[:count]):
            left = number == 1
            table.add_column(Text(name), justify="left" if left else "right", width=widths[number], overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row[:count]))
        yield table
        if count < len(self.header):
            yield Text(f"No room is left for {', '.join(self.header[count:])}; {self.elsewhere}.")

    def _list(self) -> Iterator[RenderableType]:
        for rank, component, *scores in self.rows:
            yield Text(f"{rank}. {component}")
            for name, score in zip(self.header[2:], scores, strict=True):
                yield Text(f"  {name}: {score}")
