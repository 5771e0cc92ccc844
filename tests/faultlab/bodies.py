"""The analysis of the lab. What a row `does`, in words separated by commas, befalls its body:

sleep:2        it takes so many seconds
gate           it waits until the file `gate` is there, beside the ledger
full           the disk is full until then
threads:made   no thread can be made in its process any more, or else started
raise, exit, os_exit, kill, segfault, memory (there is no more), hang, deaf (holds the
               interpreter's lock);
term:self, term:child   its process is told to end, by itself or by a program that it starts
to_sync:5      it waits so many seconds for a coroutine, by asgiref
to_sync_block:5  and the coroutine keeps its loop from running
loop:5         it does so in an event loop of its own
leave:begin    it leaves its connection so: see `tests.faultlab.leftovers`
unrecorded     no failure can be made in its process any more, until the file `gate` is there
query:5, atomic_query:5  it waits for the database, in autocommit or in a transaction
represent:WORD nothing: that befalls what makes its representation
               `raise_once` and so on: the first time only

An async body has words of its own besides, and its `sleep` lets the event loop run:

thread:2       another thread takes so many seconds
orm:query:5    another thread has that come true
swallow        it catches its cancellation
block:2        it keeps its event loop from running for so many seconds
task           it leaves a task that never ends
"""

import asyncio
import ctypes
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asgiref.sync import async_to_sync, sync_to_async
from django.db.models.signals import pre_init

from tests.faultlab import ledger, leftovers


def exercise(specimen: dict[str, Any]) -> dict[str, Any]:
    """Does what the row says, and returns its value."""
    with _written_down(specimen) as words:
        for word in words:
            befall(word)
    return {"value": specimen["value"]}


def exercise_many(specimen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same for many rows in one call."""
    return [exercise(each) for each in specimen]


async def exercise_async(specimen: dict[str, Any]) -> dict[str, Any]:
    """The same as a coroutine."""
    with _written_down(specimen) as words:
        for word in words:
            kind, _, argument = word.partition(":")
            if kind in _DOES_ASYNC:
                await _DOES_ASYNC[kind](argument)
            else:
                befall(word)
    return {"value": specimen["value"]}


@contextmanager
def _written_down(specimen: dict[str, Any]) -> Iterator[Iterator[str]]:
    """The words of the row that apply this time; begin and end are in the ledger."""
    name = uuid.uuid4().hex
    row, value = specimen["pk"], specimen["value"]
    version = json.loads(os.environ.get("AUTORUN_LAB") or "{}").get("VERSION", "1.0")
    ledger.write("begin", id=name, row=row, value=value, version=version)
    try:
        yield _words(row, specimen["does"])
    finally:
        ledger.write("end", id=name, row=row)


def _words(row: int, does: str) -> Iterator[str]:
    for word in filter(None, does.split(",")):
        kind, _, argument = word.partition(":")
        if not kind.endswith("_once"):
            yield word
        elif len(ledger.Ledger(_path()).began(row)) == 1:
            yield f"{kind.removesuffix('_once')}:{argument}"


def befall(word: str) -> None:
    """Has the word come true."""
    kind, _, argument = word.partition(":")
    _DOES[kind](argument)


def _path() -> Path:
    return Path(os.environ[ledger.ENVIRONMENT])


async def _slowly(seconds: float) -> None:
    """Take so many seconds; the ledger tells that it is still there."""
    name = uuid.uuid4().hex
    ledger.write("coroutine", id=name)
    try:
        await asyncio.sleep(seconds)
    finally:
        ledger.write("coroutine_end", id=name)


async def _blocking(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251


def _wait_at_gate(_: str) -> None:
    while not (_path().parent / "gate").exists():
        time.sleep(0.01)


def _find_the_disk_full(_: str) -> None:
    if not (_path().parent / "gate").exists():
        raise OSError(errno.ENOSPC, "No space left on device")


def _refuse_failures(_: str) -> None:
    from autorun.models import Failure

    pre_init.connect(_refuse, sender=Failure)


def _refuse(**_: object) -> None:
    if not (_path().parent / "gate").exists():
        raise TypeError("a receiver for every model")


def _hang(_: str) -> None:
    """Catches whatever is meant to stop it."""
    while True:
        try:
            time.sleep(60)
        except Exception:  # noqa: BLE001
            continue


def _sleep_in_c(_: str) -> None:
    """Other threads do not run meanwhile, and no signal but SIGKILL is heard."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ctypes.PyDLL(None).sleep(60)


def _exhaust_memory(_: str) -> None:
    """Limit the process to the memory it has and 100 MB; the kernel itself would send SIGKILL."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, before[1]))
    try:
        kept = [bytes(10_000_000) for _ in range(100)]
        raise AssertionError(len(kept))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _use_up_threads(how: str) -> None:
    """Other code of this process can start none any more, as if the body had leaked thousands."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    if how == "made":
        sys.excepthook = None  # type: ignore[assignment]
    else:
        threading.Thread.start = refuse  # type: ignore[method-assign]


def _tell_to_end(who: str) -> None:
    """SIGTERM for this process, as a careless clean-up sends it."""
    if who == "child":
        subprocess.run(["/bin/sh", "-c", "kill -TERM $PPID"], check=True)
    else:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)


def _raise(message: str) -> None:
    raise ValueError(message or "as it was told")


async def _swallow(_: str) -> None:
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue


async def _leave_a_task(_: str) -> None:
    _tasks.append(asyncio.create_task(_swallow("")))
    await asyncio.sleep(0.01)


_tasks: list[asyncio.Task[None]] = []

_DOES_ASYNC = {
    "sleep": lambda seconds: asyncio.sleep(float(seconds)),
    "thread": lambda seconds: asyncio.to_thread(time.sleep, float(seconds)),
    "orm": lambda word: sync_to_async(befall)(word),
    "swallow": _swallow,
    "task": _leave_a_task,
}

_DOES = {
    "sleep": lambda seconds: time.sleep(float(seconds)),
    "block": lambda seconds: time.sleep(float(seconds)),
    "to_sync": lambda seconds: async_to_sync(_slowly)(float(seconds)),
    "to_sync_block": lambda seconds: async_to_sync(_blocking)(float(seconds)),
    "loop": lambda seconds: asyncio.run(_slowly(float(seconds))),
    "gate": _wait_at_gate,
    "full": _find_the_disk_full,
    "unrecorded": _refuse_failures,
    "raise": _raise,
    "exit": lambda _: sys.exit(3),
    "os_exit": lambda _: os._exit(3),
    "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda _: os.kill(os.getpid(), signal.SIGSEGV),
    "memory": _exhaust_memory,
    "hang": _hang,
    "threads": _use_up_threads,
    "deaf": _sleep_in_c,
    "term": _tell_to_end,
    "leave": leftovers.leave,
    "query": leftovers.query,
    "atomic_query": leftovers.query_in_a_transaction,
    "represent": lambda _: None,
}
