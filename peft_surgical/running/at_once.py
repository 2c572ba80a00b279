"""Functions that run at the same time, each in a thread of its own with a part of torch's threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Value = TypeVar("Value")
Worker = TypeVar("Worker")

# How many blocks share out torch's threads now, and how many there were before the first of them.
_LOCK = threading.Lock()
_BLOCKS, _THREADS = 0, 1


def deal(
    workers: Sequence[Worker], items: Sequence[Item], run: Callable[[Worker, Iterator[Item]], Value]
) -> list[Value]:
    """Runs items at the same time: of n workers the first takes the first item, the one after n more, and so on.

    Args:
        workers: Such as replicas.
        items: What to run.
        run: Runs some of the items on one of them. When it fails on one, the others get no further items.

    Returns:
        What `run` returned for each worker that got items.

    Raises:
        Exception: As [`at_once`].
    """
    failed = threading.Event()

    def until_one_fails(own: Sequence[Item]) -> Iterator[Item]:
        for item in own:
            if failed.is_set():
                return
            yield item

    def work(worker: Worker, own: Sequence[Item]) -> Value:
        try:
            return run(worker, until_one_fails(own))
        except BaseException:
            failed.set()
            raise

    each = [items[i :: len(workers)] for i in range(len(workers))]
    works = [partial(work, worker, own) for worker, own in zip(workers, each, strict=True) if own]
    return at_once(works, stop=failed.set)


def at_once(functions: Sequence[Callable[[], Value]], stop: Callable[[], Any] = lambda: None) -> list[Value]:
    """Runs functions at the same time, shares torch's threads out among them, and returns what each returned.

    Whether gradients are recorded and denormals flushed is as in the calling thread, which runs the first of them. How
    many threads torch has is the whole process's: others that begin to use it meanwhile have fewer.

    Args:
        functions: What to run.
        stop: Called when this thread is interrupted or its function fails, while others may still run.

    Raises:
        Exception: When all have ended, what the first one that failed, in their order, has raised.
    """
    if len(functions) <= 1:
        return [function() for function in functions]
    flushed = flushes_denormals()
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    others: list[Future[Value]] = [Future() for _ in functions[1:]]
    cancelled = threading.Event()

    def beside(function: Callable[[], Value], future: Future[Value]) -> None:
        if cancelled.is_set():
            return
        try:
            torch.set_flush_denormal(flushed)
            with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
                future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    pairs = zip(functions[1:], others, strict=True)
    threads = [threading.Thread(target=beside, args=pair) for pair in pairs]
    with _shared_out(len(functions)):
        try:
            for thread in threads:
                thread.start()
            first = functions[0]()
            for thread in threads:
                thread.join()
        except BaseException:
            # An interrupt may come while a thread starts, of which only the thread itself knows then.
            cancelled.set()
            stop()
            for thread in threads:
                # What has not begun cannot be waited for, and will not begin.
                with suppress(RuntimeError):
                    thread.join()
            raise
    return [first, *(other.result() for other in others)]


def flushes_denormals() -> bool:
    """Whether this thread treats denormal numbers as zero; torch tells what was set of it by doing it alone."""
    return bool(torch.tensor([1e-39], dtype=torch.float32, device="cpu").mul(0.5) == 0)


@contextmanager
def _shared_out(parts: int) -> Iterator[None]:
    """Leaves each of some threads a part of torch's; this thread has as many as before when the block ends, and when
    the last such block ends new threads do, too."""
    global _BLOCKS, _THREADS
    with _LOCK:
        own = torch.get_num_threads()
        if not _BLOCKS:
            _THREADS = own
        _BLOCKS += 1
        # New threads begin with what is set when they do.
        torch.set_num_threads(max(1, _THREADS // parts))
    try:
        yield
    finally:
        with _LOCK:
            _BLOCKS -= 1
            # Each thread has a number of its own. One that began to use torch within another's block had too few.
            torch.set_num_threads(own if _BLOCKS else _THREADS)
