"""Several staged adapters, made into one plain (IA)^3 adapter.

Scales multiply, so the stages `unlearn` and `learn`, active one on top of the other, are one adapter with the product
of their scales. `stack` writes it the way PEFT's own (IA)^3 does: it loads on the unedited base with stock PEFT,
without this package, and gives the same logits bit for bit.

    >>> stack(["unlearn", "learn"], "edit")
    >>> PeftModel.from_pretrained(base, "edit")
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace

from .adapters.adapter_files import write_plain
from .adapters.algebra import product
from .adapters.edits import Edit, EditOrPath, several
from .profiling import phase
from .writing.files import ADAPTER, check_output
from .writing.inputs import check_inputs_stay

USE = """## Use

```python
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "path/to/this/folder")
```

To undo the edit, do not load it."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@phase("stack")
def stack(
    adapters: EditOrPath | Iterable[EditOrPath],
    out: str | os.PathLike[str],
    *,
    card: str | None = None,
    overwrite: bool = False,
) -> Edit:
    """Multiplies adapters and writes the product as one plain (IA)^3 adapter folder with a model card.

    Args:
        adapters: Folders of surgical or plain (IA)^3 adapters, or edits, in the order in which they were trained.
        out: The folder to write; it appears whole or not at all.
        card: Markdown about the edit for the model card, such as the fact and what was measured.
        overwrite: Replace the folder if it holds an adapter.

    Returns:
        The product.

    Raises:
        AdapterError: If an adapter cannot be read, the width of a module is not known, or they cannot be multiplied,
            see [`product`].
        OutputError: If `out` cannot be written, is or holds one of the adapters, or holds something else than an
            adapter.
    """
    given: list[EditOrPath] = several(adapters)
    check_inputs_stay(out, given)
    check_output(out, overwrite=overwrite, content=ADAPTER)
    edit = product(given)
    edit = replace(edit, task_type=edit.task_type or "CAUSAL_LM")
    write_plain(edit, out, card=model_card(edit, card), overwrite=overwrite)
    return edit


def model_card(edit: Edit, about: str | None = None) -> str:
    """Returns the README of a plain (IA)^3 adapter.

    Args:
        edit: What the adapter does.
        about: Markdown about the edit.
    """
    base = edit.base_model or "the base model"
    rows = [
        f"| `{name}` | {module.coordinates.side} | {module.coordinates.n} |" for name, module in edit.modules.items()
    ]
    parts = [
        card_header(edit.base_model, edit.task_type, "ia3"),
        "# A surgical edit",
        *([about.strip()] if about and about.strip() else []),
        f"An (IA)³ adapter for {base} that multiplies {edit.n_scales} coordinates of {len(edit.modules)} modules;"
        " every other scale is exactly 1.",
        "\n".join(["| Module | Side | Scales |", "|---|---|---|", *rows]),
        USE,
    ]
    return "\n\n".join(parts) + "\n"


def card_header(base_model: str | None, task_type: str | None, kind: str) -> str:
    """The metadata at the head of a model card, as the hub reads them.

    Args:
        base_model: Where the base model came from.
        task_type: PEFT's.
        kind: PEFT's, as a tag.
    """
    header = ["---", "library_name: peft", "tags:", f"- {kind}", "- peft-surgical"]
    # A path of somebody's machine says nothing to others, and the hub refuses it.
    if base_model and _HUB_ID.fullmatch(base_model) and not os.path.exists(base_model):
        header[1:1] = [f"base_model: {base_model}"]
    if task_type == "CAUSAL_LM":
        header.insert(1, "pipeline_tag: text-generation")
    return "\n".join([*header, "---"])
