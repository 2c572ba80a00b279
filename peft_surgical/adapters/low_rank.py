"""LoRA adapters as matrices to add, to be merged without a model that carries them.

`merge` folds them in as it does scales: in float32, rounded once, into a copy of the weights that they touch.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor

from ..errors import AdapterError, brief
from .adapter_files import CONFIG, read_config, read_weights, warn_of_unknown
from .fitting import check_beginning, check_targeted
from .lineage import Lineage
from .scale_files import PREFIX

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
    """What an adapter adds to weights.

    Attributes:
        factors: Module name to `A`, `[rank, in]`, and `B`, `[out, rank]`, scaled.
        base_model: Where the model came from that it was made for, if that is known.
        revision: Its revision, if that is known.
        name: What messages call it.
        lineage: What its file says of where it comes from.
    """

    factors: dict[str, tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]]
    base_model: str | None = None
    revision: str | None = None
    name: str = field(default="the adapter", compare=False)
    lineage: Lineage = field(default=Lineage(), compare=False)

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
            raise AdapterError(f"{path} has {more[0]}, which is not merged here; PEFT's merge_and_unload may do it.")
        check_beginning(path, config)
        warn_of_unknown(path, config, LoraConfig)
        factors = {}
        for key in [key for key in tensors if key.endswith(".lora_A.weight")]:
            name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            first, second = tensors.pop(key), tensors.pop(key.replace(".lora_A.weight", ".lora_B.weight"), None)
            if second is None or first.ndim != 2 or second.ndim != 2 or len(first) != second.shape[1]:
                raise AdapterError(f"{path} does not hold two factors of one rank for {name}.")
            factors[name] = (first, _scaling(path, config, name, len(first)) * second)
        if tensors or not factors:
            what = f"holds {next(iter(tensors))}" if tensors else "holds no factors"
            raise AdapterError(f"{path} {what}, so it is not merged here; PEFT's merge_and_unload may.")
        check_targeted(path, config, factors)
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
        return cls(factors, base, revision, name=str(path), lineage=Lineage.of(path))

    def origin(self) -> Lineage:
        """What it comes from; one that was made in memory has no digest."""
        return self.lineage

    def added(self, module: str) -> Float[Tensor, "out in"]:
        """What is added to a module's weight, float32."""
        first, second = self.factors[module]
        # Under the caller's autocast the product would be rounded to half precision.
        with torch.autocast(first.device.type, enabled=False):
            return second @ first


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
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise AdapterError(f"{key} in {path / CONFIG} cannot be {brief(alpha)}.")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def is_low_rank(path: str | os.PathLike[str]) -> bool:
    """Whether an adapter folder holds a LoRA adapter.

    Raises:
        AdapterError: If its configuration cannot be read.
    """
    return read_config(Path(path)).get("peft_type") == KIND
