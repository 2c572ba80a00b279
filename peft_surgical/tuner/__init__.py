"""Surgical (IA)^3 as a PEFT method, laid out as PEFT lays out its own: `config`, `layer`, `model`.

Importing this package makes the method known to PEFT and transformers, so that `get_peft_model`,
`PeftModel.from_pretrained`, `inject_adapter_in_model` and transformers' `load_adapter` work with it. PEFT's own list
of methods, the enum `PeftType`, is not touched: the method has an enum of its own, and PEFT finds it by its value.
"""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from .activation import activate
from .config import SurgicalIA3Config, SurgicalPeftType
from .coordinates import Coordinates
from .layer import Linear, SurgicalIA3Layer
from .model import SurgicalIA3Model
from .unloading import unload

__all__ = [
    "Coordinates",
    "Linear",
    "SurgicalIA3Config",
    "SurgicalIA3Layer",
    "SurgicalIA3Model",
    "SurgicalPeftType",
    "activate",
    "unload",
]

PEFT_TYPE_TO_CONFIG_MAPPING[SurgicalPeftType.SURGICAL_IA3] = SurgicalIA3Config
PEFT_TYPE_TO_TUNER_MAPPING[SurgicalPeftType.SURGICAL_IA3] = SurgicalIA3Model
PEFT_TYPE_TO_PREFIX_MAPPING[SurgicalPeftType.SURGICAL_IA3] = SurgicalIA3Model.prefix
