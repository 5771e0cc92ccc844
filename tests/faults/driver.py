"""Starts the processes of a project, ill-treats them, and checks what came of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import Count

from autorun import analysis
from autorun.declare import registry
from autorun.models import Batch, Chunk, Failure, Run, SpilledTrigger
from autorun.runner import QuerySetRunner
from autorun.triggers import delivery
from sample_app.processes import CHECKOUT
from tests.conftest import process_environment
from tests.faultlab.ledger import ENVIRONMENT, Ledger
from tests.faultlab.models import Specimen
from tests.faultlab.runner import declare_all

#: Short enough that a test need not wait for long, long enough for a machine that is busy.
SETTINGS = {"LEASE": 4, "HEARTBEAT": 1, "UPKEEP_INTERVAL": 0.5, "TIMEOUT": 30}


class Process:
    """A Python process of its own process group, and its log."""

    def __init__(
        self,
        name: str,
        arguments: tuple[str, ...],
        environment: dict[str, str],
        *,
        within: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self._within = within
        self.log = Path(environment[ENVIRONMENT]).parent / f"{name}.log"
        self._arguments = arguments
        self._environment = environment
        self.start()

    def start(self) -> None:
        """Begin, or begin again."""
        with self.log.open("ab") as output:
            self._popen = subprocess.Popen(
                [*self._within, sys.executable, *self._arguments],
                cwd=CHECKOUT,
                env=os.environ | self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._popen.pid

    def children(self) -> list[int]:
        """The processes of its pool, and upkeep's."""
        found: list[int] = []
        for path in Path(f"/proc/{self.pid}/task").glob("*/children"):
            with suppress(OSError):  # a thread that has ended
                found += map(int, path.read_text().split())
        return sorted(found)

    def signal(self, number: int) -> None:
        """To the process alone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def signal_all(self, number: int) -> None:
        """To the process and its pool, as to a machine."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """As when its machine is gone."""
        self.signal_all(signal.SIGKILL)
        self._popen.wait(30)

    def freeze(self) -> None:
        self.signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal_all(signal.SIGCONT)

    def wait(self, seconds: float = 60) -> int:
        """Its exit code; a negative one is the signal that ended it."""
        return self._popen.wait(seconds)

    @property
    def has_ended(self) -> bool:
        return self._popen.poll() is not None


@dataclass
class Lab:
    """A project of one runner, with its database, its broker and its processes."""

    directory: Path
    broker: str
    options: dict[str, Any]
    settings: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.directory / "ledger")

    @property
    def runner(self) -> QuerySetRunner:
        return registry.get("faultlab.SpecimenRunner")

    # Processes

    def start(
        self,
        name: str,
        *arguments: str,
        options: dict[str, Any] | None = None,
        within: tuple[str, ...] = (),
        **environment: str,
    ) -> Process:
        """Python with `arguments`; `options` of the runner override the lab's.

        `within` precedes the command, as of a host of its own.
        """
        number = sum(each.name.startswith(name) for each in self.processes) + 1
        surroundings = {
            **process_environment(),
            ENVIRONMENT: str(self.ledger.path),
            "AUTORUN_LAB": json.dumps(self.options | (options or {})),
            "AUTORUN_TEST_SETTINGS": json.dumps(self.settings, default=vars),
            **self.environment,
            **environment,
        }
        process = Process(f"{name}-{number}", arguments, surroundings, within=within)
        self.processes.append(process)
        return process

    def start_worker(
        self,
        *arguments: str,
        concurrency: int = 1,
        waits: bool = True,
        options: dict[str, Any] | None = None,
        within: tuple[str, ...] = (),
        **environment: str,
    ) -> Process:
        """A Celery worker; ready when this returns, unless it is not waited for."""
        worker = self.start(
            "worker",
            *("-m", "celery", "-A", "settings", "worker", "--loglevel", "INFO"),
            *("-n", f"lab{len(self.processes)}-{os.getpid()}@%h"),
            *("--concurrency", str(concurrency), *arguments),
            options=options,
            within=within,
            **environment,
        )
        if waits:
            self.until(lambda: " ready." in worker.log.read_text() or worker.has_ended)
            assert not worker.has_ended, worker.log.read_text()
        return worker

    def start_beat(self) -> Process:
        return self.start("beat", "-m", "celery", "-A", "settings", "beat", "--pidfile=")

    def call(self, step: str, **environment: str) -> Process:
        """`step`, Python code, in a process with Django set up. It waits for its end."""
        code = f"import django; django.setup()\n{step}"
        process = self.start("step", "-c", code, **environment)
        process.wait(60)
        return process

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
        self.processes.clear()

    # Rows

    def save(self, number: int = 1, *, does: str = "", value: str = "v") -> list[Specimen]:
        """Rows, saved one by one."""
        return [Specimen.objects.create(value=f"{value}{n}", does=does) for n in range(number)]

    def write(self, number: int, *, does: str = "", value: str = "v") -> list[Specimen]:
        """Rows that nobody hears of."""
        Specimen.objects.bulk_create(
            [Specimen(value=f"{value}{n}", does=does) for n in range(number)], batch_size=500
        )
        return list(Specimen.objects.order_by("-pk")[:number])

    def open_gate(self) -> None:
        (self.directory / "gate").touch()

    # Waiting

    def until(self, condition: Callable[[], Any], *, seconds: float = 60) -> float:
        """Wait until `condition` holds; how many seconds it took."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > seconds:
                pytest.fail(f"Not within {seconds} s.\n{self.describe()}")
            time.sleep(0.05)
        return time.monotonic() - began

    def until_done(
        self, number: int | None = None, *, seconds: float = 90, supervised: bool = False
    ) -> float:
        """Wait until so many rows (all, by default) have succeeded and nothing is left to do.

        Fails if no attempt ends for `seconds`: how long all take is the machine's affair.
        `supervised` workers that end by themselves are started again, as systemd would.
        """

        def is_done() -> bool:
            for process in self.processes if supervised else ():
                if process.name.startswith("worker") and process.has_ended:
                    process.kill()  # what it left behind
                    process.start()
            return self.is_done(number)

        began = time.monotonic()
        while not is_done():
            before = self.attempts()
            self.until(lambda known=before: is_done() or self.attempts() != known, seconds=seconds)
        return time.monotonic() - began

    def attempts(self) -> int:
        """The number of attempts that have ended so far."""
        return self.runner.progress().succeeded + Failure.objects.count()

    def is_done(self, number: int | None = None) -> bool:
        progress = self.runner.progress()
        return not (
            progress.unfinished
            or progress.succeeded < (number or 0)
            or self.runner.pending().exists()
            or SpilledTrigger.objects.exists()
        )

    def describe(self) -> str:
        """Return what is known, for a test that failed."""
        chunks = Chunk.objects.order_by("pk").values(
            *("pk", "state", "size", "token", "worker", "reason", "publications"),
            *("succeeded", "failed", "moved", "cancelled", "expires_at", "not_before"),
        )
        runs = Run.objects.order_by("-pk").values(
            *("pk", "object_id", "fingerprint", "is_current", "status", "chunk_id", "outputs")
        )
        parts = [f"{self.runner.progress()}", *map(str, chunks[:5])]
        parts += ["...", *map(str, reversed(chunks.reverse()[:10]))]
        parts += [str(run) for run in runs[:5]]
        parts += [f"{row!r}: {self.runner.explain(row)}" for row in self.runner.pending()[:5]]
        parts += [str(trigger) for trigger in SpilledTrigger.objects.values()[:5]]
        parts += [str(batch) for batch in Batch.objects.values()[:5]]
        parts += [f"{each.exception_class} {each.message}" for each in Failure.objects.all()[:5]]
        parts += [
            f"--- {process.log.name}\n{process.log.read_text()[-3000:]}"
            for process in self.processes
        ]
        return "\n".join(parts)

    # What must hold

    def check(self, *, zombies: bool = False) -> None:
        """The invariants, by what the bodies did and by autorun's tables. All must be quiet.

        With `zombies` a worker that lost its lease went on working, as it cannot know.
        """
        runs = Run.objects.filter(is_current=True, node=self.runner.get_node())
        current = {run.object_id: run for run in runs}
        failed = set(Failure.objects.values_list("run_id", flat=True))
        executed = {(each.row, each.value) for each in self.ledger.executions()}
        for row in self.runner.get_base_queryset():
            run = current.get(row.pk)
            assert run is not None, f"row {row.pk} has no run\n{self.describe()}"
            if run.status == Run.Status.SUCCEEDED and run.attempts:
                assert run.outputs == {"value": row.value}, "I1"
                assert (row.pk, row.value) in executed, "I1"
            else:
                assert run.status == Run.Status.SUCCEEDED or run.pk in failed, "I1"
        repeated = Run.objects.filter(is_current=True).values("node", "object_id")
        assert not repeated.annotate(n=Count("pk")).filter(n__gt=1).exists(), "I1"
        if not zombies:
            assert not self.ledger.overlaps(), "I2"
        self.check_counts()

    def check_counts(self) -> None:
        """No orphan, and the counts chunks keep are those that counting gives, at any moment."""
        with snapshot():
            self._compare_counts()

    def _compare_counts(self) -> None:
        finished = Chunk.objects.filter(state=Chunk.State.FINISHED).values("pk")
        pending = Run.objects.filter(status=Run.Status.PENDING)
        assert not pending.filter(chunk_id__in=finished).exists(), "I3"
        assert not pending.exclude(chunk_id__in=Chunk.objects.values("pk")).exists(), "I3"
        progress = self.runner.progress()
        node = self.runner.get_node()
        current = Run.objects.filter(node=node, is_current=True)
        assert progress.succeeded == current.filter(status=Run.Status.SUCCEEDED).count()
        assert progress.failed == current.filter(status=Run.Status.FAILED).count()
        assert progress.unfinished == pending.filter(node=node).count()


@contextmanager
def snapshot() -> Iterator[None]:
    """Everything read in the block is of one moment."""
    isolated = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
    if connection.vendor == "mysql":  # it means the next transaction there
        connection.cursor().execute(isolated)
    with transaction.atomic():
        if connection.vendor == "postgresql":
            connection.cursor().execute(isolated)
        yield


@contextmanager
def lab(
    directory: Path, broker: str, settings: Any, options: dict[str, Any] | None = None
) -> Iterator[Lab]:
    """A lab whose runner is registered in this process, too; everything ends with the block."""
    settings.AUTORUN = dict(SETTINGS)
    made = Lab(directory, broker, options or {}, settings.AUTORUN)
    made.ledger.open()
    classes = declare_all(made.options)
    before = os.environ.get(ENVIRONMENT)
    os.environ[ENVIRONMENT] = str(made.ledger.path)
    with (
        analysis.temporarily_registered(*(each.ANALYSIS for each in classes)),
        registry.registered(*classes),
    ):
        try:
            yield made
            delivery.wait_until_idle()
        finally:
            made.stop()
            os.environ.pop(ENVIRONMENT) if before is None else os.environ.update(
                {ENVIRONMENT: before}
            )
