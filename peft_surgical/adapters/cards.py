"""What the model cards of adapters have in common, and what that of a checkpoint says of edits in its weights.

A path of somebody's machine says nothing to others, and the hub refuses it: a card names a base by its id or not at
all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData

from ..errors import AdapterError, brief
from .bases import cached_commit, hub_id

if TYPE_CHECKING:
    from .edits import Edit

# An adapter of somebody else's may name modules so that a table ends, or more than that.
_UNLIKE_A_NAME = re.compile(r"[^\w.-]")
_UNLIKE_A_PATH = re.compile(r"[^\w./ -]")
_BEGIN, _END = "<!-- peft-surgical: edits -->", "<!-- peft-surgical: end of edits -->"
# The lines of a section, of which somebody has taken the end mark away.
_LINES = re.compile(rb"## Edits in these weights\s+This is .*\n\s*(?:\d+\. .*\n\s*)+To undo .*")
_SHOWN = 12


def clean(text: Any) -> str:
    """A name as it may stand in a line of a card: one of somebody else's may end a table or a piece of code."""
    return _UNLIKE_A_PATH.sub("?", str(text))


def check_card(card: object) -> None:
    """Refuses what is no text of a card, such as the path of one.

    Raises:
        AdapterError: If it is neither a text nor None.
    """
    if not isinstance(card, str | None):
        raise AdapterError(f"a card must be text in Markdown, or None, not {brief(card)}.")


def card_header(base_model: str | None, task_type: str | None, kind: str) -> str:
    """The metadata at the head of a model card, as the hub reads them.

    Args:
        base_model: Where the base model came from.
        task_type: PEFT's.
        kind: PEFT's, as a tag.
    """
    header = ModelCardData(
        base_model=hub_id(base_model),
        library_name="peft",
        pipeline_tag="text-generation" if task_type == "CAUSAL_LM" else None,
        tags=[kind, "peft-surgical"],
    )
    return "\n".join(["---", header.to_yaml(), "---"])


def card_scales(edit: Edit) -> str:
    """The table that says what an adapter scales."""
    rows = [
        f"| `{_UNLIKE_A_NAME.sub('?', name)}` | {module.coordinates.side} | {module.coordinates.n} |"
        for name, module in sorted(edit.modules.items(), key=lambda item: _numbered(item[0]))
    ]
    return "\n".join(["| Module | Side | Scales |", "|---|---|---|", *rows])


def card_below(names: Sequence[str]) -> list[str]:
    """The paragraph that says what an adapter was trained on top of; none where that is nothing.

    Args:
        names: What those adapters are called.
    """
    if not names:
        return []
    called = " and ".join(f"`{clean(name)}`" for name in dict.fromkeys(names))
    return [
        f"It was trained on top of {called} and is made for a model on which that acts, too: load that first, beside"
        " this one and of the same kind, and let both act (`model.base_model.set_adapter([...])`), or merge it into"
        " the base."
    ]


def _numbered(name: str) -> list[tuple[int, str]]:
    """A key by which layer 9 comes before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


def card_use(base_model: str | None, stages: Sequence[str] = (), revision: str | None = None) -> str:
    """The section that says how to load an adapter, to be copied as it stands where the base has an id.

    Args:
        base_model: Where the base model came from.
        stages: Names of the stages that act together, of which this adapter is the last; none for an adapter that is
            an edit by itself and of a type that PEFT knows.
        revision: Of the base model, where it is not the main one.
    """
    base = hub_id(base_model)
    where = _quoted(base or "path/to/the/base")
    if base and (revision := revision or cached_commit(base_model)):
        where += f", revision={_quoted(revision)}"
    lines = [
        *(["import peft_surgical as ps"] if stages else []),
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({where})  # or where the weights that were edited are",
    ]
    if stages:
        first, *others = stages
        folders = [*(f"path/to/{stage}" for stage in stages[:-1]), "path/to/this/folder"]
        named = f"adapter_name={_quoted(first)}"
        lines.append(f"model = PeftModel.from_pretrained(base, {_quoted(folders[0])}, {named})")
        for folder, stage in zip(folders[1:], others, strict=True):
            lines.append(f"model.load_adapter({_quoted(folder)}, {_quoted(stage)})")
        lines.append(f"ps.activate(model, [{', '.join(map(_quoted, stages))}])")
    else:
        lines.append('model = PeftModel.from_pretrained(base, "path/to/this/folder")')
    code = "\n".join(lines)
    undone = "load none of them" if len(stages) > 1 else "do not load it"
    return f"## Use\n\n```python\n{code}\n```\n\nTo undo the edit, {undone}."


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def card_with_edits(kept: bytes, edits: Sequence[Mapping[str, Any]], file: str) -> bytes:
    """The card of a checkpoint with the section of the edits in its weights.

    Args:
        kept: The card as it was, in which the section takes the place of an earlier one, or stands below the rest;
            empty for a whole new one.
        edits: What is told of them, oldest first; one at least.
        file: The name of the file that has it whole.
    """
    section = f"{_BEGIN}\n{_section(edits, file)}\n{_END}\n".encode()
    before, found, after = kept.partition(_BEGIN.encode())
    if found:
        _, ended, below = after.partition(_END.encode())
        return before + section + (below if ended else _LINES.sub(b"", after, count=1)).lstrip()
    if kept.strip():
        return kept.rstrip() + b"\n\n" + section
    base = edits[0]["base"]
    header = ModelCardData(base_model=_recorded_id(base), library_name="transformers", tags=["peft-surgical"])
    return f"---\n{header.to_yaml()}\n---\n\n# {clean(base.get('name') or 'A model')}, edited\n\n".encode() + section


def _recorded_id(base: Mapping[str, Any]) -> str | None:
    """The hub id of the base of a merge, as the record has it."""
    name = base.get("name")
    # A record that does not say which it is may have the name of a folder, which is some other model's id.
    found = base["hub_id"] if "hub_id" in base else name if isinstance(name, str) and "/" in name else None
    return hub_id(found) if isinstance(found, str) else None


def _section(edits: Sequence[Mapping[str, Any]], file: str) -> str:
    name, revision = (edits[0]["base"].get(key) for key in ("name", "revision"))
    base = f"`{clean(name)}`" if name else "the base"
    base += f" (revision `{clean(revision)}`)" if revision else ""
    one = len(edits) == 1
    rows = [
        f"{number}. {_with_digests(edit['adapters'])}, merged in {clean(edit.get('dtype'))}"
        for number, edit in enumerate(edits, 1)
    ]
    return "\n".join(
        [
            "## Edits in these weights",
            "",
            f"This is {base} with {'this edit' if one else 'these edits'} folded into its weights by peft-surgical:",
            "",
            *rows,
            "",
            f"To undo {'it' if one else 'them'}, use {base} itself: nothing takes an edit out of merged weights. The"
            f" whole digests are in `{file}`.",
        ]
    )


def _with_digests(adapters: Sequence[Mapping[str, Any]]) -> str:
    told = []
    for adapter in adapters:
        digest = adapter.get("sha256")
        told.append(f"`{clean(adapter['name'])}`" + (f" (SHA-256 `{clean(digest)[:_SHOWN]}…`)" if digest else ""))
    return " and ".join(told)
