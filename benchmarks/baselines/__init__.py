"""The methods that the benchmarks compare, one a file, by the names that `--method` takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft_surgical.errors import SurgicalError

from .alphaedit import AlphaEdit
from .base import Base
from .ft import FineTuning
from .ft_l import ConstrainedFineTuning
from .ft_loc import LocalizedFineTuning
from .ia3_all import IA3Everywhere
from .ia3_closed import ClosedFormIA3
from .ia3_stock import StockIA3
from .keyed import Keyed
from .lora import Lora
from .lora_kept import LoraKept
from .memit import Memit
from .method import Batched, Method, Questions, Request, Write, described, settings
from .one_stage import OneStage
from .random_components import RandomComponents
from .rome import Rome
from .rome_code import RomeAsInCode
from .rome_cov import RomeWithCovariance
from .staged import Staged
from .surgical import Surgical
from .surgical_keyed import SurgicalKeyed
from .ultraedit import UltraEdit

__all__ = [
    "BATCHED",
    "METHODS",
    "Batched",
    "Method",
    "Questions",
    "Request",
    "Write",
    "build",
    "build_batched",
    "described",
    "settings",
]

_KINDS: tuple[Any, ...] = (
    Base,
    Surgical,
    SurgicalKeyed,
    Staged,
    Keyed,
    OneStage,
    RandomComponents,
    Rome,
    RomeWithCovariance,
    RomeAsInCode,
    Memit,
    AlphaEdit,
    ConstrainedFineTuning,
    LocalizedFineTuning,
    FineTuning,
    Lora,
    LoraKept,
    IA3Everywhere,
    StockIA3,
    ClosedFormIA3,
)
METHODS: dict[str, Any] = {kind.name: kind for kind in _KINDS}
BATCHED: dict[str, Any] = {kind.name: kind for kind in (Memit, AlphaEdit, UltraEdit)}
"""Those that edit many requests in one model. UltraEdit is not made for one, so it is none of [`METHODS`]."""


def build(name: str, learning_rate: float | None = None) -> Method:
    """The method of that name, with its own learning rate unless another is given.

    Raises:
        SurgicalError: If there is no such method, or it has no learning rate.
    """
    made: Method = _built(METHODS, name, learning_rate)
    return made


def build_batched(name: str, learning_rate: float | None = None) -> Batched:
    """As [`build`], one of [`BATCHED`].

    Raises:
        SurgicalError: If there is no such method, or it edits one request only.
    """
    made: Batched = _built(BATCHED, name, learning_rate)
    return made


def _built(kinds: Mapping[str, Any], name: str, learning_rate: float | None) -> Any:
    if name not in kinds:
        many = " that edits many requests at once" if kinds is BATCHED else ""
        raise SurgicalError(f"there is no method {name!r}{many}; choose from {', '.join(kinds)}.")
    if learning_rate is not None and "learning_rate" not in settings(kinds[name]()):
        raise SurgicalError(f"the method {name!r} has no learning rate.")
    return kinds[name]() if learning_rate is None else kinds[name](learning_rate=learning_rate)
