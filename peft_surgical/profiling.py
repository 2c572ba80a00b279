"""Where a run's time went: named phases, nested as the calls were.

```py
>>> with profiled() as profile:
...     edit(model, tokenizer, fact, out="out")
>>> print(profile.table())
```

A phase costs next to nothing while nobody profiles. It serves as a decorator, too: `@phase("curvature")`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

_INDENT = 2


@dataclass
class Profile:
    """Wall-clock times of phases.

    Attributes:
        total: Seconds of the whole; 0 until it has ended.
        seconds: Path of phase names, outermost first, to seconds, those of the phases inside included. In the order in
            which the phases were first entered.
        calls: The same to how often the phase was entered.
    """

    total: float = 0.0
    seconds: dict[tuple[str, ...], float] = field(default_factory=dict)
    calls: dict[tuple[str, ...], int] = field(default_factory=dict)
    _path: tuple[str, ...] = ()

    def rest(self, path: tuple[str, ...] = ()) -> float:
        """Seconds of a phase that no phase inside it accounts for; of the whole when `path` is empty."""
        inside = sum(value for key, value in self.seconds.items() if key[:-1] == path)
        return (self.seconds[path] if path else self.total) - inside

    def table(self) -> str:
        """A line a phase: seconds, share of the whole, calls; what is inside a phase is indented below it."""
        rows = list(self._rows(()))
        width = max(len(label) for label, *_ in rows)
        return "\n".join(
            f"{label:{width}}  {seconds:8.2f} s  {seconds / (self.total or 1):6.1%}  {calls}".rstrip()
            for label, seconds, calls in rows
        )

    def _rows(self, path: tuple[str, ...]) -> Iterator[tuple[str, float, str]]:
        inside = [key for key in self.seconds if key[:-1] == path]
        for key in inside:
            yield " " * _INDENT * len(path) + key[-1], self.seconds[key], _times(self.calls[key])
            yield from self._rows(key)
        if inside or not path:
            yield " " * _INDENT * len(path) + "everything else", self.rest(path), ""
        if not path:
            yield "total", self.total, ""


_CURRENT: ContextVar[Profile | None] = ContextVar("profile", default=None)


@contextmanager
def profiled() -> Iterator[Profile]:
    """Takes down the phases entered in a block."""
    profile = Profile()
    token = _CURRENT.set(profile)
    started = _now()
    try:
        yield profile
    finally:
        profile.total = _now() - started
        _CURRENT.reset(token)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Counts a block's time under a name, and under the phases around it."""
    profile = _CURRENT.get()
    if profile is None:
        yield
        return
    outside = profile._path
    profile._path = path = (*outside, name)
    profile.seconds.setdefault(path, 0.0)
    profile.calls.setdefault(path, 0)
    started = _now()
    try:
        yield
    finally:
        profile.seconds[path] += _now() - started
        profile.calls[path] += 1
        profile._path = outside


def _now() -> float:
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and _is_in_use(torch.get_device_module(accelerator.type)):
        # What a call has only asked the accelerator for would be counted under the next one.
        torch.accelerator.synchronize()
    return time.perf_counter()


def _is_in_use(module: Any) -> bool:
    # Apple's has no beginning that could be told. To ask the others whether they are there would begin it.
    return bool(getattr(module, "is_initialized", module.is_available)())


def _times(calls: int) -> str:
    return "" if calls == 1 else f"{calls} times"
