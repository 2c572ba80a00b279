"""Loading a model for a command: checks that cost nothing first, then the weights, without the libraries' chatter."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import click
import torch
from transformers.utils import logging as transformers_logging

import peft_surgical as ps

from ..errors import ModelError, first_line
from ..loading import demo
from ..running.sharing import by_all, by_main, is_several
from .options import Source
from .processes import silent
from .terminal import note, passing_note
from .translate import DEBUG

SPREAD = ("auto", "balanced", "sequential")
"""What `--device` takes beside devices: ways to spread a model over all there are, as transformers' `device_map`."""


def load(source: Source, *, quiet: bool) -> tuple[Any, Any]:
    """The model and tokenizer that the options name.

    Raises:
        ModelError: If the device cannot be used or the model cannot be loaded.
    """
    check_device(source.device)
    if source.name == "demo" and is_several():
        # Each of them would fetch and convert it.
        by_main(lambda: _make_demo(quiet))
    return by_all(lambda: _load(source, quiet))


def _load(source: Source, quiet: bool) -> tuple[Any, Any]:
    if source.trust_remote_code:
        tell_trusted(source.name)
    if source.name == "demo" and not quiet and not silent() and demo.is_to_be_fetched():
        # It says so itself, and pip's bar needs the terminal, which is kept from all else that loads.
        demo.demo_folder(converting=quiet_libraries())
    where: dict[str, Any] = {"device_map" if source.device in SPREAD else "device": source.device}
    if source.revision is not None:
        where["revision"] = source.revision
    loading = f"Loading {source.name} …"
    if _debugging():
        # What libraries say meanwhile would stand in the same line.
        note(loading, quiet=quiet)
    with passing_note(loading, quiet=quiet or _debugging()), quiet_libraries():
        return ps.load_model(source.name, dtype=source.dtype, trust_remote_code=source.trust_remote_code, **where)


def _make_demo(quiet: bool) -> None:
    """Fetches and converts the demo model, if it is not there."""
    if quiet:
        with quiet_libraries():
            demo.demo_folder()
    else:
        demo.demo_folder(converting=quiet_libraries())


def tell_trusted(name: str) -> None:
    """Tells whose code may run: a warning, which `--quiet` does not keep back."""
    if not silent():
        click.echo(f"Code that comes with {name} may run, as --trust-remote-code says.", err=True)


def _debugging() -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(DEBUG))


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps transformers' and the hub's progress bars and notices off the terminal, unless `--debug` asks for them."""
    if _debugging():
        yield
        return
    before = transformers_logging.get_verbosity()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    transformers_logging.set_verbosity_error()
    hub.setLevel(logging.ERROR)
    try:
        # Reading a GGUF file has a bar of its own, which asks neither of the two.
        with no_bars(), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        hub.setLevel(hub_level)
        transformers_logging.set_verbosity(before)


@contextmanager
def no_bars() -> Iterator[None]:
    """Keeps transformers' progress bars alone off the terminal, which show in a pipe too."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def check_device(device: str | None) -> None:
    """Refuses a device that this machine, or torch here, does not have.

    Raises:
        ModelError: If it cannot be used.
    """
    if device is None or device in SPREAD:
        return
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ImportError) as error:
        # After the first sentence torch lists its backends.
        reason = first_line(error).partition(". ")[0]
        raise ModelError(f"the device {device!r} cannot be used: {reason}.") from error
    if found.type == "meta":
        raise ModelError(f"the device {device!r} cannot be used: it holds shapes, and no weights.")
