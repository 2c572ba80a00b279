"""No edit at all: what every figure is compared with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from .method import Request


@dataclass(frozen=True)
class Base:
    """Leaves the model as it is."""

    name: ClassVar[str] = "base"

    def recipe(self, model: Any) -> dict[str, Any]:
        """Nothing."""
        return {}

    def edit(self, model: Any, tokenizer: Any, request: Request, seed: int) -> AbstractContextManager[None]:
        """Changes nothing."""
        return nullcontext()
