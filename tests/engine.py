"""Runners for one test, and a worker that works in the test's own transaction."""

from collections.abc import Sequence
from typing import Any

from celery import current_app

from autorun import testing
from autorun.analysis import Analysis
from autorun.dispatch.messages import EXECUTE
from autorun.dispatch.publishing import Message, redirected
from autorun.execution.execute import SENDINGS, execute
from autorun.models import Chunk, Run
from autorun.runner import QuerySetRunner
from autorun.state.leases import Lease, queued, start
from autorun.testing import registered as installed
from autorun.triggers.delivery import PLAN_SPILLED
from autorun.upkeep.spilled import hand_out_spilled, plan_spilled
from tests.library.models import Document

__all__ = (
    "current_runs",
    "declare",
    "echo",
    "installed",
    "leased",
    "offer",
    "plan_all_spilled",
    "plan_at_once",
    "statuses",
    "work_off",
)


def echo(value: Any, **configuration: Any) -> Any:
    """Returns what it was given."""
    return {"value": value, **configuration}


def declare(function: Any = echo, **options: Any) -> type[QuerySetRunner]:
    """A runner class of Document that runs `function`, with `options` as its attributes."""
    analysis = Analysis(options.pop("TITLE", "Echo"), options.pop("VERSION", "1.0"), function)
    defaults = {
        "DATA_MODEL": Document,
        "ANALYSIS": analysis,
        "INPUT_KEY": "value",
        "INPUT_FIELDS": ("title",),
        "__module__": __name__,
    }
    return type(options.pop("NAME", "EchoRunner"), (QuerySetRunner,), defaults | options)


def work_off(**options: Any) -> int:
    """Execute what is queued and what that releases, as a worker would; how many chunks."""
    return testing.work_off(saved=False, **options)


def plan_at_once(messages: Sequence[Message]) -> None:
    """Stands for a broker whose workers do everything at once, but execute no chunk."""
    for message in messages:
        if message.task != EXECUTE:
            current_app.tasks[message.task].run(*message.args)


def plan_all_spilled() -> int:
    """Hand out the saved rows that wait in the database, and plan them; how many rows."""
    messages: list[Message] = []
    with redirected(messages.extend):
        hand_out_spilled()
    # A thread may send what a test before has saved.
    return sum(plan_spilled(*message.args) for message in messages if message.task == PLAN_SPILLED)


def offer(chunk_id: int) -> None:
    """Have workers look at the chunk until they put it aside."""
    for _ in range(SENDINGS):
        execute(chunk_id)


def leased(runner: type[QuerySetRunner]) -> Lease:
    """Plan the runner's rows, which are of one chunk, and start it."""
    runner().run()
    chunk = queued(Chunk.objects.get(state=Chunk.State.QUEUED).pk)
    lease = chunk and start(chunk)
    assert lease is not None
    return lease


def current_runs() -> dict[int, Run]:
    """The current runs by object id."""
    return {run.object_id: run for run in Run.objects.filter(is_current=True)}


def statuses(**filters: Any) -> list[Run.Status]:
    """The statuses of all runs, in the order they were planned."""
    return [
        Run.Status(status)
        for status in Run.objects.filter(**filters).order_by("pk").values_list("status", flat=True)
    ]
