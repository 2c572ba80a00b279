"""LoRA adapters as matrices to add, to be merged, turned down or made into one without a model that carries them.

`merge` folds them in as it does scales: in float32, rounded once, into a copy of the weights that they touch. What is
added is linear in the second factor, so a part of it is that factor times a number. What several add is what one adds
whose factors are theirs, one behind the other, as PEFT's combination `cat` has it.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor

from ..errors import AdapterError, brief
from ..writing.files import ADAPTER, atomic_directory, write_text
from .adapter_files import CONFIG, read_config, read_weights, target_names, warn_of_unknown, write_adapter
from .bases import hub_id
from .cards import card_below, card_header, card_use, check_card
from .edits import first_known
from .fitting import check_beginning, check_targeted
from .halves import halved
from .lineage import Lineage
from .scale_files import PREFIX, digest_of

KIND = "LORA"
# What makes of the two factors something else than their product, or lets it act on some tokens only.
_OTHERWISE = (
    "modules_to_save",
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "layer_replication",
    "target_parameters",
)


@dataclass(frozen=True)
class LowRank:
    """What a plain LoRA adapter adds to weights.

    Attributes:
        factors: Module name to `A`, `[rank, in]`, and `B`, `[out, rank]`, float32.
        base_model: Where the model came from that it was made for, if that is known.
        revision: Its revision, if that is known.
        name: What messages call it.
        lineage: What its file says of where it comes from.
        scaling: Module name to what the product of its factors is multiplied by; 1 where it is left out.
        fan_in_fan_out: Whether a module stores its weight as (in, out), as GPT-2's do.
        task_type: PEFT's task type, if known.
        settings: The configuration of its file, which is written again where it is saved.
    """

    factors: dict[str, tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]]
    base_model: str | None = None
    revision: str | None = None
    name: str = field(default="the adapter", compare=False)
    lineage: Lineage = field(default=Lineage(), compare=False)
    scaling: Mapping[str, float] = field(default_factory=dict)
    fan_in_fan_out: bool = False
    task_type: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __eq__(self, other: object) -> bool:
        """Whether another one adds the same factors, equally scaled, to the same base."""
        if not isinstance(other, LowRank):
            return NotImplemented
        base = (self.base_model, self.revision, self.fan_in_fan_out, self.task_type)
        if base != (other.base_model, other.revision, other.fan_in_fan_out, other.task_type):
            return False
        return self.factors.keys() == other.factors.keys() and all(
            self.scaling.get(module, 1.0) == other.scaling.get(module, 1.0)
            and all(map(torch.equal, both, other.factors[module]))
            for module, both in self.factors.items()
        )

    def __repr__(self) -> str:
        # A prompt shows what a call returned, and whole matrices say nothing there.
        base = "" if self.base_model is None else f" of {self.base_model!r}"
        return f"LowRank(rank {self.rank} on {len(self.factors)} modules{base})"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LowRank:
        """Reads an adapter folder that holds nothing but the two factors of linear modules.

        Raises:
            AdapterError: If it cannot be read, or holds more than that.

        Warns:
            UserWarning: If the configuration has set something that is not known here.
        """
        path = Path(path)
        config, tensors = read_config(path), read_weights(path)
        if more := [name for name in _OTHERWISE if config.get(name)]:
            raise AdapterError(
                f"{path} has {more[0]}, so it is no plain LoRA adapter, which alone is merged or turned down here;"
                " PEFT's merge_and_unload may merge it."
            )
        check_beginning(path, config)
        warn_of_unknown(path, config, LoraConfig)
        factors, scaling = {}, {}
        for key in [key for key in tensors if key.endswith(".lora_A.weight")]:
            name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            first, second = tensors.pop(key), tensors.pop(key.replace(".lora_A.weight", ".lora_B.weight"), None)
            if second is None or first.ndim != 2 or second.ndim != 2 or len(first) != second.shape[1]:
                raise AdapterError(f"{path} does not hold two factors of one rank for {name}.")
            factors[name], scaling[name] = (first, second), _scaling(path, config, name, len(first))
        if tensors or not factors:
            what = f"holds {next(iter(tensors))}" if tensors else "holds no factors"
            raise AdapterError(
                f"{path} {what}, so it is no plain LoRA adapter, which alone is merged or turned down here; PEFT's"
                " merge_and_unload may merge it."
            )
        check_targeted(path, config, factors)
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
        turned, task = bool(config.get("fan_in_fan_out")), config.get("task_type")
        return cls(factors, base or None, revision, str(path), Lineage.of(path), scaling, turned, task, config)

    @property
    def rank(self) -> int:
        """The largest rank of a module's factors."""
        return max((len(first) for first, _ in self.factors.values()), default=0)

    def times(self, t: float) -> LowRank:
        """What adds `t` times as much: the second factors times `t`, so that 1 is the same and 0 adds nothing.

        Raises:
            AdapterError: If that is more than float32 holds.
        """
        name = f"{t:g} * ({self.name})"
        factors = {module: (first, t * second) for module, (first, second) in self.factors.items()}
        if wrong := next((module for module, (_, second) in factors.items() if not second.isfinite().all()), None):
            raise AdapterError(f"{name} adds more to {wrong} than float32 can hold.")
        return replace(self, factors=factors, name=name, lineage=self.origin().dialled(t))

    def save(self, path: str | os.PathLike[str], *, card: str | None = None, overwrite: bool = False) -> None:
        """Writes a LoRA adapter folder, which stock PEFT loads.

        Args:
            path: The folder; it appears whole or not at all.
            card: Markdown about the adapter for its model card.
            overwrite: Replace the folder if it holds an adapter.

        Raises:
            AdapterError: If `card` is no text, or nothing is added to any module.
            OutputError: If it cannot be written, or holds something and may not be replaced.
        """
        check_card(card)
        if not self.factors:
            raise AdapterError(f"{self.name} adds nothing to any module, so there is nothing to save.")
        with atomic_directory(path, overwrite=overwrite, content=ADAPTER) as folder:
            write_adapter(folder, dict(self.settings or self._made()), self._tensors(), self.lineage)
            write_text(folder / "README.md", self._card(card))

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors of its file."""
        tensors = {
            f"{PREFIX}{module}.lora_{part}.weight": factor
            for module, both in self.factors.items()
            for part, factor in zip("AB", both, strict=True)
        }
        # As PEFT makes factors in float32 and loads into them, they come back as they were.
        return halved(tensors)

    def _made(self) -> dict[str, Any]:
        """A configuration for factors that come from no file."""
        ranks = {module: len(first) for module, (first, _) in self.factors.items()}
        own = {module: f"^{re.escape(module)}" for module in sorted(ranks)}
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.rank,
            target_modules=list(ranks),
            rank_pattern={own[module]: ranks[module] for module in own},
            alpha_pattern={own[module]: ranks[module] * self.scaling.get(module, 1.0) for module in own},
            fan_in_fan_out=self.fan_in_fan_out,
            base_model_name_or_path=self.base_model,
            revision=self.revision,
            task_type=self.task_type,
            inference_mode=True,
        ).to_dict()
        return {**config, "target_modules": target_names(ranks)}

    def _card(self, about: str | None) -> str:
        base = hub_id(self.base_model) or "the base model"
        parts = [
            card_header(self.base_model, self.task_type, "lora"),
            "# An edit",
            *([about.strip()] if about and about.strip() else []),
            f"A LoRA adapter of rank {self.rank} for {base}, on {len(self.factors)} modules.",
            *card_below(self.lineage.after),
            card_use(self.base_model, revision=self.revision),
        ]
        return "\n\n".join(parts) + "\n"

    def origin(self) -> Lineage:
        """What it comes from, with the digest that it would be written with where it was not read from a file."""
        if self.lineage.digest is not None:
            return self.lineage
        return replace(self.lineage, digest=digest_of(self._tensors()))

    def added(self, module: str) -> Float[Tensor, "out in"]:
        """What is added to a module's weight, float32."""
        first, second = self.factors[module]
        # Under the caller's autocast the product would be rounded to half precision.
        with torch.autocast(first.device.type, enabled=False):
            return (self.scaling.get(module, 1.0) * second) @ first


def total(adapters: Sequence[LowRank]) -> LowRank:
    """What some LoRA adapters add together, as one: on each module the factors of all, one behind the other.

    Raises:
        AdapterError: If there are none, or they take a module to have different widths.
    """
    if not adapters:
        raise AdapterError("there is nothing to add up; give at least one adapter.")
    if len(adapters) == 1:
        return adapters[0]
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for adapter in adapters:
        for module, (first, second) in adapter.factors.items():
            second = adapter.scaling.get(module, 1.0) * second
            if module in factors:
                above, beside = factors[module]
                if (above.shape[1], len(beside)) != (first.shape[1], len(second)):
                    raise AdapterError(
                        f"{adapter.name} adds {len(second)} by {first.shape[1]} numbers to {module}, and another"
                        f" adapter {len(beside)} by {above.shape[1]}."
                    )
                first, second = torch.cat([above, first]), torch.cat([beside, second], dim=1)
            factors[module] = (first, second)
    return LowRank(
        factors,
        first_known(adapter.base_model for adapter in adapters),
        first_known(adapter.revision for adapter in adapters),
        name=" + ".join(adapter.name for adapter in adapters),
        lineage=Lineage.of_product([adapter.origin() for adapter in adapters]),
        fan_in_fan_out=any(adapter.fan_in_fan_out for adapter in adapters),
        task_type=first_known(adapter.task_type for adapter in adapters),
    )


def _scaling(path: Path, config: dict[str, Any], module: str, rank: int) -> float:
    key, alpha = "lora_alpha", config.get("lora_alpha")
    own = config.get("alpha_pattern") or {}
    try:
        # As PEFT reads it: the first pattern that the module's name ends with.
        pattern = get_pattern_key(own.keys(), module)
        if pattern in own:
            key, alpha = "alpha_pattern", own[pattern]
    except (AttributeError, TypeError, re.error):
        raise AdapterError(f"alpha_pattern in {path / CONFIG} cannot be {brief(own)}.") from None
    # A whole number may be too large for `math.isfinite`.
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= sys.float_info.max:
        raise AdapterError(f"{key} in {path / CONFIG} cannot be {brief(alpha)}.")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def is_low_rank(path: str | os.PathLike[str]) -> bool:
    """Whether an adapter folder holds a LoRA adapter.

    Raises:
        AdapterError: If its configuration cannot be read.
    """
    return read_config(Path(path)).get("peft_type") == KIND
