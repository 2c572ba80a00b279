"""Several adapters, made into one: scales into a plain (IA)^3 adapter, LoRA into LoRA.

Scales multiply, so the stages `unlearn` and `learn`, active one on top of the other, are one adapter with the product
of their scales. `stack` writes it the way PEFT's own (IA)^3 does: it loads on the unedited base with stock PEFT,
without this package, and gives the same logits bit for bit. On a bfloat16 base that holds for `PeftModel` with its
defaults: transformers' own `load_adapter` and PEFT's `low_cpu_mem_usage` round plain scales there.

    >>> stack(["unlearn", "learn"], "edit")
    >>> PeftModel.from_pretrained(base, "edit")

What LoRA adapters add is added up: one adapter with the ranks of all. Of both kinds together no adapter can be made.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar, overload

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .adapters.adapter_files import write_plain
from .adapters.bases import hub_id
from .adapters.cards import card_below, card_header, card_scales, card_use, check_card
from .adapters.edits import Edit, several
from .adapters.lineage import Lineage, warn_of_lineage
from .adapters.low_rank import LowRank
from .adapters.mergeable import Mergeable, read_mergeable
from .errors import AdapterError
from .folding import steps_of
from .profiling import phase
from .writing.files import ADAPTER, check_output
from .writing.inputs import check_inputs_stay

Kind = TypeVar("Kind", Edit, LowRank)


@overload
def stack(
    adapters: Kind | Iterable[Kind], out: str | os.PathLike[str], *, card: str | None = None, overwrite: bool = False
) -> Kind: ...
@overload
def stack(
    adapters: Mergeable | Iterable[Mergeable],
    out: str | os.PathLike[str],
    *,
    card: str | None = None,
    overwrite: bool = False,
) -> Edit | LowRank: ...
def stack(
    adapters: Mergeable | Iterable[Mergeable],
    out: str | os.PathLike[str],
    *,
    card: str | None = None,
    overwrite: bool = False,
) -> Edit | LowRank:
    """Makes one adapter of several and writes it with a model card: scales are multiplied into a plain (IA)^3 adapter,
    and LoRA adapters, as keyed edits are, put together into one with the ranks of all.

    Args:
        adapters: Folders of surgical or plain (IA)^3 adapters, or edits, in the order in which they were trained; or
            those of LoRA adapters.
        out: The folder to write; it appears whole or not at all.
        card: Markdown about the edit for the model card, such as the fact and what was measured.
        overwrite: Replace the folder if it holds an adapter.

    Returns:
        The product, or what the LoRA adapters add together.

    Raises:
        AdapterError: If an adapter cannot be read, the width of a module is not known, they are of both kinds or
            cannot be multiplied, see [`product`], or `card` is no text.
        OutputError: If `out` cannot be written, is or holds one of the adapters, or holds something else than an
            adapter.

    Warns:
        UserWarning: If one of the adapters is a stage that was trained on top of another, which is not given, or is a
            part of another one, or holds weights of the base, such as an output head's, which are left out.
    """
    return stack_above(adapters, out, (), card=card, overwrite=overwrite)


@phase("stack")
def stack_above(
    adapters: Mergeable | Iterable[Mergeable],
    out: str | os.PathLike[str],
    below: Sequence[Lineage],
    *,
    card: str | None = None,
    overwrite: bool = False,
) -> Edit | LowRank:
    """[`stack`] of adapters for a model that has others in its weights, of which they need not be told.

    Args:
        adapters: As for [`stack`].
        out: As for [`stack`].
        below: What is in the weights.
        card: As for [`stack`].
        overwrite: As for [`stack`].

    Returns:
        As [`stack`] does.

    Raises:
        AdapterError: As [`stack`].
        OutputError: As [`stack`].

    Warns:
        UserWarning: As [`stack`], of what is not below either.
    """
    check_card(card)
    given: list[Mergeable] = several(adapters, (Edit, LowRank))
    check_inputs_stay(out, given)
    check_output(out, overwrite=overwrite, content=ADAPTER)
    steps = steps_of([read_mergeable(adapter) for adapter in given])
    if len(steps) > 1:
        raise AdapterError(
            "some adapters hold scales and some are LoRA, and PEFT has no adapter that does both; `merge` folds them"
            " into the weights, in their order."
        )
    # The line of who called `stack`, behind what counts the time.
    warn_of_lineage(given, below, stacklevel=5)
    edit = steps[0]
    if isinstance(edit, LowRank):
        edit.save(out, card=card, overwrite=overwrite)
        return edit
    if edit.task_type is None and _has_head(edit):
        edit = replace(edit, task_type="CAUSAL_LM")
    write_plain(edit, out, card=model_card(edit, card), overwrite=overwrite)
    return edit


def _has_head(edit: Edit) -> bool:
    """Whether the base is a causal language model, by its class, and if that is not known."""
    model = (edit.auto_mapping or {}).get("base_model_class")
    return model is None or model in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def model_card(edit: Edit, about: str | None = None) -> str:
    """Returns the README of a plain (IA)^3 adapter.

    Args:
        edit: What the adapter does.
        about: Markdown about the edit.
    """
    base = hub_id(edit.base_model) or "the base model"
    parts = [
        card_header(edit.base_model, edit.task_type, "ia3"),
        "# A surgical edit",
        *([about.strip()] if about and about.strip() else []),
        f"An (IA)³ adapter for {base} that multiplies {edit.n_scales} coordinates of {len(edit.modules)} modules;"
        " every other scale is exactly 1.",
        *card_below(edit.lineage.after),
        card_scales(edit),
        card_use(edit.base_model, revision=edit.revision),
    ]
    return "\n\n".join(parts) + "\n"
