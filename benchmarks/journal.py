"""A file of JSON lines that a benchmark adds to and goes on from: a header first, then one record a line.

Each record is on disk before the next is begun. A line that an interruption cut short is dropped. One process writes a
file at a time: the lines of two would run into each other.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from peft_surgical.dtypes import dtype_name
from peft_surgical.errors import OutputError
from peft_surgical.evaluation import versions
from peft_surgical.running.identity import json_hash
from peft_surgical.writing.files import as_output_error
from peft_surgical.writing.locks import lock

# What a configuration says that changes no answer: where it was read, and by which version it was written.
_NAMES = ("_name_or_path", "transformers_version")


class Journal:
    """The records of one run, in order.

    Args:
        path: The file; begun when it is missing or empty.
        run: What must be the same for records to be comparable; read back from a file that is there.
        about: What is only told: the command, versions, machine, commit. A run that goes on adds its own, and where
            the commit, the versions or the machine are others than those of rows that are there, standard error gets
            a line.
        check: Gets the records that are there before anything is written, and raises where they are not to be gone
            on from.

    Raises:
        OutputError: If the file cannot be written, another run writes it, or it is something else or belongs to a run
            with other values. The file is left as it was.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        run: Mapping[str, Any],
        about: Mapping[str, Any],
        check: Callable[[Sequence[Mapping[str, Any]]], None] = lambda records: None,
    ) -> None:
        self.path = Path(path)
        with as_output_error(path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            try:
                held = lock(self.path)
            except BlockingIOError:
                raise OutputError(f"another run is writing {path}; wait for its end, or name another file.") from None
        # Held for as long as the journal is there, which a failure in here may not wait for.
        release = (lambda: None) if held is None else weakref.finalize(self, os.close, held)
        try:
            self._begin(run, about, check)
        except BaseException:
            release()
            raise

    def _begin(
        self,
        run: Mapping[str, Any],
        about: Mapping[str, Any],
        check: Callable[[Sequence[Mapping[str, Any]]], None],
    ) -> None:
        path, self.records = self.path, read_records(self.path)
        with as_output_error(path):
            self._file = path.open("r+" if self.records else "w", encoding="utf-8")
        if not self.records:
            self.append({"kind": "header", "run": dict(run), **about})
            return
        before, now = self.records[0].get("run", {}), json.loads(json.dumps(dict(run)))
        # A value that is not given is one, too: a run without it goes on from none that has it.
        for key in {**before, **now}:
            if key not in before and now[key] is not None:
                raise OutputError(
                    f"{path} holds a run without {key}, and this run has {key} {now[key]!r}; name another file."
                )
            if before.get(key) != now.get(key):
                raise OutputError(
                    f"{path} holds a run with {key} {before.get(key)!r}, and this run has {now.get(key)!r}; name"
                    " another file."
                )
        check(self.records)
        if others := self._told("commit") - {_told(about, "commit")}:
            told = " and ".join(sorted(map(_named, others)))
            click.echo(f"{path} holds rows of {told}, and this run is of {_named(about.get('commit'))}.", err=True)
        for key in ("versions", "machine"):
            now_told = _told(about, key)
            for other in sorted(told for told in self._told(key) if told not in (None, now_told)):
                click.echo(f"{path} holds rows of the {key} {other}, and this run is of {now_told}.", err=True)
        self._file.writelines(map(_line, self.records))
        self._file.truncate()
        self.append({"kind": "resumed", **about})

    def _told(self, key: str) -> set[str | None]:
        """What is told of all rows under a key of `about`; None where it is not told."""
        found, now = set(), None
        for record in self.records:
            if record["kind"] in ("header", "resumed"):
                now = _told(record, key)
            else:
                found.add(now)
        return found

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a record and puts it on disk."""
        self.records.append(dict(record))
        self._file.write(_line(record))
        self._file.flush()
        os.fsync(self._file.fileno())

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The records of a kind."""
        return [record for record in self.records if record["kind"] == kind]


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file; a last line that was cut short is left out.

    Raises:
        OutputError: If it cannot be read or is not a journal.
    """
    try:
        # What stands behind the last line feed was not finished, perhaps not even its last character.
        *lines, rest = path.read_bytes().split(b"\n")
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error}.") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise OutputError(f"{path}, line {number}: not JSON ({error}).") from error
        if not isinstance(record, dict) or "kind" not in record or (number == 1) != (record["kind"] == "header"):
            raise OutputError(f"{path}, line {number}: this is not a benchmark's file; name another one.")
        records.append(record)
    if not records and rest.strip() and not rest.startswith(b'{"kind": "header"'):
        raise OutputError(f"{path} is not a benchmark's file; name another one.")
    return records


def weights_digest(model: Any) -> str:
    """A hash of a bare model's weights: names do not tell two files of one name apart.

    That of the answers' cache counts the versions' code, too, by which rows of one file may differ.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def configuration_digest(model: Any, tokenizer: Any) -> str:
    """A hash of what else of a checkpoint decides what its model answers: its configuration and its tokenizer."""
    config = model.config.to_dict()
    asked = {key: value for key, value in config.items() if key not in _NAMES}
    # It names tokens at which answers end.
    own = getattr(model, "generation_config", None)
    ends = None if own is None else own.eos_token_id
    template = str(getattr(tokenizer, "chat_template", None))
    return json_hash([asked, ends, sorted(tokenizer.get_vocab().items()), template])


def base_told(name: str, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Which base records are of, named and loaded: what must be the same for them to be comparable."""
    return {
        "model": name,
        "weights_sha256": weights_digest(model),
        "configuration_sha256": configuration_digest(model, tokenizer),
        "dtype": dtype_name(model.dtype),
    }


def run_told(benchmark: str, device: torch.device) -> dict[str, Any]:
    """What is only told of a run: its command line, which a benchmark gets as click's `obj`, and [`surroundings`]."""
    arguments = click.get_current_context().obj or []
    return {"command": shlex.join(["python", "-m", f"benchmarks.{benchmark}", *arguments]), **surroundings(device)}


def surroundings(device: torch.device) -> dict[str, Any]:
    """Commit, versions and the machine, as far as figures depend on them."""
    cuda = device.type == "cuda"
    return {
        "commit": commit(),
        "versions": versions(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if cuda else device.type,
        },
    }


def commit() -> str | None:
    """The commit of this checkout, with `+changes` where a file of it differs; None where there is no git."""
    head, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return head and head + ("+changes" if changes else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _told(about: Mapping[str, Any], key: str) -> str | None:
    value = about.get(key)
    return value if value is None or isinstance(value, str) else json.dumps(value, sort_keys=True)


def _named(commit: str | None) -> str:
    return "no known commit" if commit is None else f"commit {commit}"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
