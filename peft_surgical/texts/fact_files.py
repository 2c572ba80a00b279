"""From a fact file to plain, checked values: YAML or JSON, text and lists only, every complaint with its place.

What a file could do to its reader is refused before it happens: size, depth, tags, and aliases, which unfold
exponentially.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import FactError, brief
from ..writing.files import KeyTwiceError, no_key_twice

MAX_BYTES = 10_000_000
MAX_VALUES = 500_000
MAX_DEPTH = 20
_PLAIN_TAGS = (None, "!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
# "number #5": behind a space and before a letter or digit it is rarely meant for a comment.
_CUT = re.compile(r"[ \t]+#(?=[^\s#])")
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_plain_file(path: str | os.PathLike[str], of: str) -> Any:
    """Parses a YAML or JSON file into mappings, lists and texts, numbers as the words that they were written as.

    Args:
        path: The file.
        of: What it holds, in a word, for what is said of it.

    Raises:
        FactError: If it cannot be read, or is not YAML.
    """
    path = Path(path)
    text = _read_text(path, of)
    if text.lstrip().startswith("{"):
        # JSON is YAML too, all but its surrogate escapes ("\ud83d\ude00").
        try:
            # Numbers stay the words that they were written as, NaN and Infinity too.
            words: dict[str, Any] = dict.fromkeys(("parse_int", "parse_float", "parse_constant"), str)
            return json.loads(text, object_pairs_hook=no_key_twice, **words)
        except KeyTwiceError as error:
            raise FactError(f"{path}: {error}.") from error
        except (ValueError, RecursionError):
            pass
    try:
        _check_events(text, path, of)
        return yaml.load(text, Loader=_Loader)
    except FactError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not readable"
        context = getattr(error, "context", None)
        raise FactError(f"{path}: is not valid YAML{where}: {f'{context}, ' if context else ''}{problem}.") from error


def _read_text(path: Path, of: str) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FactError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise FactError(f"{str(path)!r} cannot be the name of a file.") from error
    if len(content) > MAX_BYTES:
        raise FactError(f"{path}: a {of} file may have {MAX_BYTES:,} bytes at most.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FactError(f"{path}: is not UTF-8 text.") from error


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML in which a key may stand only once and plain words stay words (`No`, `1066`, `2024-01-01`).

    PyYAML's own scanner ends an unquoted text at a question mark inside [] and {}; libyaml, which its wheels carry,
    does not, and questions are what a fact file holds.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {brief(key.value)} stands twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


# An answer such as `1066` or Norway's `No` is meant as text wherever a fact file has a scalar.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _check_events(text: str, path: Path, of: str) -> None:
    """Refuses what no fact has, and no recipe, before a parser that recurses and shares meets it."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
        line = event.start_mark.line + 1
        if number > MAX_VALUES:
            raise FactError(f"{path}: has more than {MAX_VALUES:,} values, which no {of} needs.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise FactError(f"{path}: is nested more than {MAX_DEPTH} levels deep in line {line}; a {of} needs three.")
        if isinstance(event, yaml.AliasEvent):
            name = event.anchor[:80]
            raise FactError(
                f"{path}: line {line} refers to *{name}; write the text out, or quote it if it begins with *."
            )
        # In a list: behind a key's own text a comment is likely.
        listed = isinstance(event, yaml.ScalarEvent) and depth > 1 and bool(event.value) and not event.style
        if listed and _CUT.match(text, event.end_mark.index):
            raise FactError(
                f"{path}: line {event.end_mark.line + 1} has a # behind a space, where YAML takes what follows for a"
                " comment; quote the text, or put a space behind the #."
            )
        if isinstance(event, yaml.ScalarEvent) and event.anchor:
            # YAML takes the word for the text's name, and the text loses it.
            raise FactError(f"{path}: line {line} has a text that begins with &{event.anchor[:80]}; quote it.")
        if getattr(event, "tag", None) not in _PLAIN_TAGS:
            raise FactError(f"{path}: line {line} has the tag {brief(event.tag)}; a {of} holds plain texts and lists.")


class Reader:
    """Turns the values of a parsed file into typed ones; every complaint names the file, the key and the value."""

    def __init__(self, data: Any, source: str | None) -> None:
        self.source = source
        if not isinstance(data, Mapping):
            raise self.error(f"a fact is a mapping of keys to values, not {_kind(data)}.")
        self.data = data

    def error(self, message: str) -> FactError:
        """A complaint that begins with the file."""
        return complaint(message, self.source)

    def check_keys(self, known: list[str], required: tuple[str, ...]) -> None:
        """Refuses keys that are not known and the absence of required ones."""
        for key in self.data:
            if key not in known:
                raise self.error(f"unknown key {brief(key)}; the keys are {', '.join(known)}.")
        for key in required:
            if key not in self.data:
                raise self.error(f"the key {key!r} is missing.")

    def text(self, key: str) -> str:
        """The text under a key; empty when the key is absent."""
        return self._string(self.data[key], repr(key)) if key in self.data else ""

    def texts(self, key: str) -> tuple[str, ...]:
        """The list of texts under a key; empty when the key is absent."""
        return self._strings(self.data[key], repr(key)) if key in self.data else ()

    def controls(self) -> list[tuple[str, tuple[str, ...]]]:
        """The prompts and right answers under `controls`."""
        return [
            (
                self._string(item["prompt"], f"'prompt' in item {i} of 'controls'"),
                self._names(item["answer"], f"'answer' in item {i} of 'controls'"),
            )
            for i, item in self._records("controls", ("prompt", "answer"))
        ]

    def probes(self) -> list[tuple[str, str]]:
        """The prompts and kinds under `probes`."""
        return [
            (
                self._string(item["prompt"], f"'prompt' in item {i} of 'probes'"),
                self._string(item["kind"], f"'kind' in item {i} of 'probes'"),
            )
            for i, item in self._records("probes", ("prompt", "kind"))
        ]

    def portability(self) -> list[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
        """The prompts, kinds, right answers and answers right before under `portability`."""
        found = []
        for i, item in self._records("portability", ("kind", "prompt", "answer"), ("before",)):
            where = f"in item {i} of 'portability'"
            before = self._names(item["before"], f"'before' {where}") if "before" in item else ()
            prompt, kind = (self._string(item[key], f"{key!r} {where}") for key in ("prompt", "kind"))
            found.append((prompt, kind, self._names(item["answer"], f"'answer' {where}"), before))
        return found

    def _string(self, value: Any, where: str) -> str:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                value = str(value)
            except ValueError as error:
                raise self.error(f"{where} is a number too long to be a text.") from error
        if not isinstance(value, str):
            quote = "; quote it, since a colon and a space make a mapping of it" if isinstance(value, Mapping) else ""
            raise self.error(f"{where} must be text, not {_kind(value)}{quote}.")
        if not value.strip():
            raise self.error(f"{where} is empty text.")
        return cleaned(value, where, self.source)

    def _strings(self, value: Any, where: str) -> tuple[str, ...]:
        if not isinstance(value, (list, tuple)):
            raise self.error(f"{where} must be a list of texts, not {_kind(value)}.")
        if not value:
            raise self.error(f"{where} is an empty list.")
        return tuple(self._string(item, f"item {i} of {where}") for i, item in enumerate(value, 1))

    def _names(self, value: Any, where: str) -> tuple[str, ...]:
        """A list of texts, which may be written as its one text."""
        return self._strings(value, where) if isinstance(value, (list, tuple)) else (self._string(value, where),)

    def _records(
        self, key: str, keys: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> list[tuple[int, Mapping[str, Any]]]:
        value = self.data.get(key, [])
        if not isinstance(value, (list, tuple)) or (key in self.data and not value):
            form = f"{{{', '.join(f'{name}: …' for name in keys)}}}"
            raise self.error(f"{key!r} must be a list of {form} that is not empty, not {_kind(value)}.")
        for i, item in enumerate(value, 1):
            needed = f"{', '.join(map(repr, keys[:-1]))} and {keys[-1]!r}"
            needed += "".join(f", and {name!r} where wanted" for name in optional)
            if not isinstance(item, Mapping):
                raise self.error(f"item {i} of {key!r} must have the keys {needed}, not be {_kind(item)}.")
            wrong = [f"lacks {name!r}" for name in keys if name not in item]
            wrong += [f"has the unknown key {brief(name)}" for name in item if name not in {*keys, *optional}]
            if wrong:
                raise self.error(f"item {i} of {key!r} {wrong[0]}; its keys are {needed}.")
        return list(enumerate(value, 1))


def cleaned(text: str, where: str, source: str | None) -> str:
    """The text as everything here compares it: canonically composed, without white space around it.

    Raises:
        FactError: If it is not Unicode text.
    """
    if not isinstance(text, str):
        raise complaint(f"{where} must be text, not {brief(text)}.", source)
    if _SURROGATE.search(text):
        raise complaint(f"{where} is not valid Unicode: {text[:40]!a} has half of a surrogate pair.", source)
    return unicodedata.normalize("NFC", text.strip())


def complaint(message: str, source: str | None) -> FactError:
    """The error of a fact: `message`, after the file it is about where there is one."""
    return FactError(f"{source}: {message}" if source else message[:1].upper() + message[1:])


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {brief(value)}"
