"""Starts and stops web, worker and beat together."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

CHECKOUT = Path(__file__).resolve().parent.parent

#: Environment variables that the commands of this checkout read.
VARIABLES: Final = ("AUTORUN_VAR", "SCAN_PREPROCESSING_VERSION", "DJANGO_SETTINGS_MODULE")

#: Celery's warning at every start as root, which is noise in a demo.
PRIVILEGES: Final = "ignore:You're running the worker with superuser privileges"


def typed(*arguments: str) -> str:
    """The command line that runs `manage.py ARGUMENTS` on the data of this process."""
    environment = [f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name)]
    python = os.path.relpath(sys.executable)
    return shlex.join(["env", *environment, python, "manage.py", *arguments]).removeprefix("env ")


class Processes:
    """Processes by name, which are stopped at the end of the `with` block.

    Each writes `<name>.log` to the directory `logs`, by default to the terminal. A process that
    takes longer than `patience` seconds to stop is killed.
    """

    def __init__(self, *, logs: Path | None = None, patience: float = 15) -> None:
        self.logs = logs
        self.patience = patience
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start_web(self, address: str) -> None:
        self.start("web", "manage.py", "runserver", "--noreload", address)

    def start_worker(self, *, loglevel: str = "INFO", **environment: str) -> None:
        warnings = filter(None, (os.environ.get("PYTHONWARNINGS"), PRIVILEGES))
        self.start(
            "worker",
            *("-m", "celery", "-A", "settings", "worker"),
            # RabbitMQ refuses two workers with the same node name.
            *("-n", f"autorun-{os.getpid()}@%h", "--concurrency", "2", "--loglevel", loglevel),
            **({"PYTHONWARNINGS": ",".join(warnings)} | environment),
        )

    def start_beat(self, **environment: str) -> None:
        self.start("beat", "-m", "celery", "-A", "settings", "beat", "--pidfile=", **environment)

    def start(self, name: str, *arguments: str, **environment: str) -> None:
        """Run Python with `arguments` in the checkout, with additions to the environment."""
        command = [sys.executable, *arguments]
        # SIGQUIT lets a worker finish for a few seconds, return the rest to the queue, and exit.
        surroundings = os.environ | {"REMAP_SIGTERM": "SIGQUIT"} | environment
        with self._open_log(name) as log:
            self._running[name] = subprocess.Popen(  # noqa: S603
                command,
                cwd=CHECKOUT,
                env=surroundings,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C at the terminal reaches only this process, which then stops the others.
                start_new_session=True,
            )

    def ended(self) -> dict[str, int]:
        """Exit codes of processes that exited without being stopped."""
        codes = {name: process.poll() for name, process in self._running.items()}
        return {name: code for name, code in codes.items() if code is not None}

    def stop(self, *names: str) -> None:
        """Stop these processes, or all; a second Ctrl-C stops them at once."""
        stopping = {name: self._running.pop(name) for name in names or tuple(self._running)}
        for process in stopping.values():
            process.terminate()
        deadline = time.monotonic() + self.patience
        try:
            while time.monotonic() < deadline and _any_runs(stopping.values()):
                time.sleep(0.05)
        finally:
            for process in stopping.values():
                _kill_group(process)

    @contextmanager
    def _open_log(self, name: str) -> Iterator[int | None]:
        if self.logs is None:
            yield None
            return
        with (self.logs / f"{name}.log").open("ab") as log:
            yield log.fileno()


def _any_runs(processes: Iterable[subprocess.Popen[bytes]]) -> bool:
    return any(process.poll() is None for process in processes)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # Even if the process itself has exited, because its children belong to the group.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Make SIGTERM and SIGHUP unwind the stack like Ctrl-C, so that `with` blocks are left."""
    signals = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, _interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
