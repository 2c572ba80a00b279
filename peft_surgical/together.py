"""Several edits of one model, measured with all of them acting: what later ones did to earlier ones.

`Together.save` writes `together.json`; `peft_surgical.reporting` makes the text of a model card of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .facts import Fact
from .measuring.metrics import Figure, stages_to_dict
from .writing.files import write_json

BASE, AFTER, ALL = "base", "after", "all"
"""The states of the model: bare; with a fact's own edit and those before it; with all edits."""


@dataclass(frozen=True)
class FactTogether:
    """One of several edited facts.

    Attributes:
        name: What its folder is called.
        fact: The fact, whole.
        adapter: The folder of its adapter, what that is called and the SHA-256 of its tensors.
        stages: State (`base`, `after` its own edit, `all` edits) to metric to figure, over the prompts that count.
        left_out: `held_out` and `controls`, each how many do not count and why: `about_another` edited fact, or
            `trained_by_another`, as another fact's edit was trained on the prompt or held to it.
        answers: State to `held_out` and `controls`, each all answers in the fact's order.
    """

    name: str
    fact: Fact
    adapter: Mapping[str, str | None]
    stages: Mapping[str, Mapping[str, Figure]]
    left_out: Mapping[str, Mapping[str, int]]
    answers: Mapping[str, Mapping[str, Sequence[str]]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "fact": self.fact.to_dict(),
            "adapter": dict(self.adapter),
            "stages": stages_to_dict(self.stages),
            "left_out": {kind: dict(reasons) for kind, reasons in self.left_out.items()},
            "answers": {
                state: {kind: list(texts) for kind, texts in given.items()} for state, given in self.answers.items()
            },
        }


@dataclass(frozen=True)
class Together:
    """What was measured of several edits of one model, as [`edit_all`] returns it.

    Controls are those that the bare base answers right, in every state.

    Attributes:
        facts: The facts that were edited, in their order.
        pooled: State to metric to figure, over the prompts of all facts that count, which an interval takes for
            independent. A control that several facts have counts once in `control_kept`, by the share of them that
            keep it, so that all states are over the same controls.
        unrelated: KL and perplexity on unrelated text of all edits beside the bare base; empty where none was read.
        failed: What could not be edited, by the name of its folder: why, in a sentence.
        model: The base model's name.
        dtype: The base's dtype.
        seed: The seed of all edits.
        versions: Package and Python versions.
        settings: What else the figures depend on, as JSON: the kind of edit, the recipe, how long answers may be, how
            much unrelated text was asked for, the command, and of the base and its tokenizer what a [`Report`] has,
            with the edits that were merged into it before as `base_edits`.
        seconds: Step to wall-clock seconds: `edits`, what their own reports have, and `together`.
    """

    facts: tuple[FactTogether, ...]
    pooled: Mapping[str, Mapping[str, Figure]]
    unrelated: Mapping[str, Figure]
    failed: Mapping[str, str]
    model: str
    dtype: str
    seed: int
    versions: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        # Hundreds of answers say nothing at a prompt.
        names = ", ".join(one.name for one in self.facts)
        return f"Together({names} in {self.model!r}, {self.dtype})"

    def left_out(self, kind: str, reason: str | None = None) -> int:
        """How many prompts of all facts do not count.

        Args:
            kind: `held_out` or `controls`.
            reason: `about_another` or `trained_by_another`; either when None.
        """
        counts = (one.left_out.get(kind, {}) for one in self.facts)
        return sum(count for each in counts for why, count in each.items() if reason in (None, why))

    def to_dict(self) -> dict[str, Any]:
        """The content of `together.json`."""
        return {
            "model": self.model,
            "dtype": self.dtype,
            "seed": self.seed,
            "versions": dict(self.versions),
            "settings": dict(self.settings),
            "seconds": dict(self.seconds),
            "pooled": stages_to_dict(self.pooled),
            "unrelated": {metric: figure.to_dict() for metric, figure in self.unrelated.items()},
            "failed": dict(self.failed),
            "facts": [one.to_dict() for one in self.facts],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON, whole or not at all.

        Raises:
            OutputError: If its folder does not exist or cannot be written.
        """
        write_json(path, self.to_dict())

    def to_markdown(self) -> str:
        """The facts and the figures, for a model card: `card=` of [`stack`]."""
        from .reporting.joint_card import render_together

        return render_together(self)
