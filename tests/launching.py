"""Scripts and commands in processes of their own, and in two processes of one machine."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.distributed import TCPStore

ROOT = Path(__file__).parent.parent
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

# The first run of a server that has the libraries in memory takes seconds, each further process next to nothing.
PROCESSES = multiprocessing.get_context("forkserver")
IN_MEMORY = ["peft_surgical.cli", "peft_surgical.scorers.logit_drop", "tests.command_line"]
# What localizing and its picture import when they need it.
IN_MEMORY += ["transformer_lens.model_bridge.sources._bridge_builder", "matplotlib.backends.backend_agg"]
PROCESSES.set_forkserver_preload(IN_MEMORY)
# Seconds that a process has to end by itself.
_GRACE = 20


def launch(*arguments, **environment):
    """In two interpreters that torch's launcher starts, as a user does: each imports the libraries by itself."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        [*LAUNCH, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    return SimpleNamespace(returncodes=[result.returncode], stdout=result.stdout, stderr=result.stderr)


def start(arguments, out, err, cwd=ROOT, **environment):
    """A process that runs what `python *arguments` would, with these descriptors as its output, and has begun.

    What Python itself reads of the environment when it begins is not heeded, no module is found beside a script or in
    the current folder, and what is registered for an interpreter's exit is not run. It ends with this process.
    """
    arguments = [str(argument) for argument in arguments]
    # In the place of a descriptor's number, which is another one there.
    streams = [Connection(os.dup(number)) for number in (out, err)]
    process = PROCESSES.Process(
        target=_run, args=(arguments, streams, cwd, {**os.environ, **environment}), daemon=True
    )
    process.start()
    for stream in streams:
        stream.close()
    return process


def _run(arguments, streams, cwd, environment):
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:
        # Read when torch was imported.
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    for number, stream in enumerate(streams, 1):
        os.dup2(stream.fileno(), number)
        stream.close()
    # As an interpreter makes them, which looks at what they lead to.
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.path.insert(0, "")
        exec(arguments[1], {"__name__": "__main__"})
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def launch_forked(*arguments, **environment):
    """Like `launch`, in processes that have the libraries in memory, joined as torch's launcher does it.

    Both have one hash seed, so that they run through a set alike, which interpreters of their own need not. Where one
    has failed the other has seconds to end by itself, and then is ended.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    joined = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "OMP_NUM_THREADS": "1"}
    joined |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    joined |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **environment}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        processes = []
        try:
            for rank in ("0", "1"):
                processes.append(start(arguments, out.fileno(), err.fileno(), **joined, RANK=rank, LOCAL_RANK=rank))
            # Asked once in a turn, as the last one may end between two questions, and nothing is waited for then.
            while running := [process.sentinel for process in processes if process.exitcode is None]:
                failed = any(process.exitcode for process in processes)
                if not wait(running, timeout=_GRACE if failed else None):
                    break
        finally:
            end(processes)
        for stream in (out, err):
            stream.seek(0)
        codes = [process.exitcode for process in processes]
        return SimpleNamespace(returncodes=codes, stdout=out.read(), stderr=err.read())


def end(processes):
    """Ends what still runs, if need be without asking."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_GRACE)
        process.kill()
        process.join()
