"""Writes `docs/reference/python.md` and `docs/reference/command.md` from docstrings and `--help`.

    python docs/build_reference.py

`tests/test_docs.py` fails where what is checked in is not what this writes.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

import peft_surgical as ps
from peft_surgical import hookspecs
from peft_surgical.adapters import mergeable
from peft_surgical.cli import cli
from peft_surgical.drafting import ways
from peft_surgical.measuring import checkpoints
from peft_surgical.tuner.resolve import GRANULARITIES

FOLDER = Path(__file__).parent / "reference"
WIDTH = 100
NOTE = "<!-- Written by docs/build_reference.py; edit the docstrings instead. -->"

# The public names that are neither a class nor a function have no docstring that `inspect` finds.
VALUES = {
    "PAPER_SELECTION": lambda: _stated(inspect.getmodule(ps.Selection), "PAPER_SELECTION"),
    "RECIPES": lambda: _stated(inspect.getmodule(ps.unlearn), "RECIPES"),
    "EditOrPath": lambda: _stated(inspect.getmodule(ps.Edit), "EditOrPath"),
    "EditedModel": lambda: _stated(checkpoints, "EditedModel"),
    "Mergeable": lambda: _stated(mergeable, "Mergeable"),
    "Register": lambda: _stated(hookspecs, "Register"),
    "Scorer": lambda: _stated(inspect.getmodule(ps.ScorerContext), "Scorer"),
    "State": lambda: _stated(inspect.getmodule(ps.adapter_state), "State"),
    "Way": lambda: _stated(ways, "Way"),
    "hookimpl": lambda: "Marks a plugin's `register_scorers`, see [The hook](#the-hook).",
}
_SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Warns):")
_ENTRY = re.compile(r"(\*{0,2}[\w.]+): (.*)", re.DOTALL)
_REFERENCE = re.compile(r"\[`([\w.]+)`\](?:\([^)\s]*\)|\[[\w.]*\])?")


def python() -> str:
    """The reference of the public Python names."""
    public = {name: getattr(ps, name) for name in ps.__all__}
    errors = {name for name, value in public.items() if inspect.isclass(value) and issubclass(value, Exception)}
    groups = {
        "Functions": [name for name, value in public.items() if inspect.isfunction(value)],
        "Classes": [name for name, value in public.items() if inspect.isclass(value) and name not in errors],
        "Errors and warnings": sorted(errors),
        "Values and types": sorted(VALUES),
    }
    parts = [NOTE, "# Python", "Everything public is in `peft_surgical`, which the examples import as `ps`."]
    for title, names in groups.items():
        parts.append(f"**{title}:** " + ", ".join(f"[`{name}`](#{_anchor(name)})" for name in names))
    for title, names in groups.items():
        parts += [f"## {title}", *(part for name in names for part in _entry(name, public[name]))]
    parts += ["## The hook", _code(_signature("register_scorers", hookspecs.register_scorers))]
    parts += [_markdown(inspect.getdoc(hookspecs.register_scorers) or "")]
    return "\n\n".join(parts) + "\n"


def command() -> str:
    """The reference of the command: what each `--help` prints."""
    status = "0 on success, 2 for wrong usage or input (one line on standard error), 1 for a fault of this package"
    ends = "130 after Ctrl-C, 141 where nobody reads what it prints any more, as in `| head`"
    parts = [NOTE, "# Command", f"What `--help` prints. Exit status: {status}, {ends}."]
    group = _context(cli, "peft-surgical")
    parts += ["## peft-surgical", _code(cli.get_help(group), "text")]
    for name, found in cli.commands.items():
        parts += [f"## {name}", _code(found.get_help(_context(found, name, group)), "text")]
    return "\n\n".join(parts) + "\n"


PAGES: dict[str, Callable[[], str]] = {"python.md": python, "command.md": command}


def _context(found: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    """As click makes it to print a help, but for the terminal's width."""
    settings = {**found.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    return found.context_class(found, info_name=name, parent=parent, **settings)


def _entry(name: str, value: Any) -> Iterator[str]:
    """A public name: heading, signature, docstring and, of a class, its own public members."""
    yield f"### {'class ' if _is_plain_class(value) else ''}{name}"
    if name in VALUES:
        yield VALUES[name]()
        return
    signature = _signature(name, value)
    if signature:
        yield _code(signature)
    yield _markdown(inspect.getdoc(value) or "")
    if not inspect.isclass(value):
        return
    for member, raw in vars(value).items():
        function = raw.__func__ if isinstance(raw, (classmethod, staticmethod)) else raw
        is_property = isinstance(raw, property)
        if member.startswith("_") or not (inspect.isfunction(function) or is_property) or not function.__doc__:
            continue
        yield f"#### {name}.{member}"
        if not is_property:
            yield _code(_signature(f"{name}.{member}", function, bound=not isinstance(raw, staticmethod)))
        yield _markdown(inspect.getdoc(function) or "")


def _is_plain_class(value: Any) -> bool:
    return inspect.isclass(value) and not issubclass(value, Exception)


def _anchor(name: str) -> str:
    return f"class-{name.lower()}" if _is_plain_class(getattr(ps, name)) else name.lower()


def _signature(name: str, value: Any, *, bound: bool = False) -> str:
    """A signature as it is written; of a class its own fields only, since PEFT's differ from version to version."""
    if inspect.isclass(value) and not dataclasses.is_dataclass(value) and not issubclass(value, tuple):
        return ""
    own = inspect.get_annotations(value) if inspect.isclass(value) else None
    signature = inspect.signature(value)
    parameters = list(signature.parameters.values())[bound:]
    written, starred = [], False
    for parameter in parameters:
        if own is not None and parameter.name not in own:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            written.append("*")
        starred = starred or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        written.append(_parameter(parameter))
    result = "" if own is not None or signature.return_annotation is inspect.Signature.empty else " -> "
    if result:
        given = _type(signature.return_annotation)
        # What `contextmanager` wraps yields once; who calls it gets a context.
        context = inspect.isgeneratorfunction(inspect.unwrap(value)) and not inspect.isgeneratorfunction(value)
        result += given.replace("Iterator", "AbstractContextManager", 1) if context else given
    line = f"{name}({', '.join(written)}){result}"
    if len(line) <= WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {each},\n" for each in written) + f"){result}"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = stars + parameter.name
    typed = parameter.annotation is not parameter.empty
    if typed:
        text += f": {_type(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        default = _double(repr(parameter.default))
        # A default made anew for each object has no value to show.
        shown = "..." if default.startswith("<") else default
        text += f" = {shown}" if typed else f"={shown}"
    return text


def _type(annotation: Any) -> str:
    # A NamedTuple's annotations arrive as references to what they say.
    annotation = getattr(annotation, "__forward_arg__", annotation)
    if annotation == "Granularity":
        # A reader has no use for a name that the package does not export.
        return f"Literal[{', '.join(map(repr, GRANULARITIES))}]"
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _markdown(doc: str) -> str:
    """A docstring of Google's style as Markdown."""
    doc = _REFERENCE.sub(_linked, doc)
    parts = []
    for part in _paragraphs(doc):
        first, _, rest = part.partition("\n")
        section = _SECTION.fullmatch(first)
        if section is None:
            parts.append(part)
            continue
        entries = [" ".join(entry.split()) for entry in re.split(r"\n(?=\S)", textwrap.dedent(rest))]
        parts.append(f"**{section[1]}**")
        if section[1] in ("Returns", "Yields"):
            parts.append(" ".join(entries))
        else:
            parts.append("\n".join(_item(entry) for entry in entries))
    return "\n\n".join(parts)


def _paragraphs(doc: str) -> list[str]:
    """A docstring's paragraphs; a section of it, and a block of code, is one, blank lines and all."""
    found: list[str] = []
    fenced = False
    for part in re.split(r"\n\s*\n", doc.strip()):
        if fenced or (found and part.startswith("    ") and _SECTION.match(found[-1])):
            found[-1] += f"\n\n{part}"
        else:
            found.append(part)
        fenced ^= part.count("```") % 2 == 1
    return found


def _item(entry: str) -> str:
    match = _ENTRY.fullmatch(entry)
    return f"- {entry}" if match is None else f"- `{match[1]}`: {match[2]}"


def _linked(match: re.Match[str]) -> str:
    name = match[1].removeprefix("peft_surgical.")
    return f"[`{name}`](#{_anchor(name)})" if name in ps.__all__ else f"`{name}`"


def _stated(module: Any, name: str) -> str:
    """The value and the text below a module's assignment."""
    body = ast.parse(inspect.getsource(module)).body
    for statement, below in pairwise(body):
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        if isinstance(statement, ast.Assign | ast.AnnAssign) and ast.unparse(targets[0]) == name:
            text = ast.literal_eval(below.value) if isinstance(below, ast.Expr) else ""
            return f"{_code(_double(ast.unparse(statement)))}\n\n{_markdown(text)}"
    raise LookupError(f"{name} is not assigned in {module.__name__}.")


def _double(code: str) -> str:
    """With the quotation marks that the sources have."""
    return code if '"' in code else code.replace("'", '"')


def _code(text: str, language: str = "python") -> str:
    return f"```{language}\n{text}\n```"


if __name__ == "__main__":
    for page, build in PAGES.items():
        (FOLDER / page).write_text(build(), encoding="utf-8")
