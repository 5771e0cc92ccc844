"""The time left of a batch, against what it takes in a simulation of its workers."""

import datetime as dt
import heapq
import io
from collections.abc import Iterator

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django.utils.html import strip_tags

from autorun.management.subcommands.terminal import Terminal
from autorun.management.subcommands.watching import time_left_of
from autorun.models import Batch, Chunk
from autorun.observe.activity import activity_by_node, activity_of
from autorun.planning import batches
from autorun.planning.batches import counts
from autorun.runner import QuerySetRunner
from autorun.state.words import duration
from tests.engine import declare, installed
from tests.test_command_line import typed

pytestmark = pytest.mark.django_db

#: Start, end and runs of a chunk, in seconds since the batch started.
Executed = tuple[float, float, int]


@pytest.fixture
def runner() -> Iterator[QuerySetRunner]:
    with installed(declare()):
        yield declare()()


def executed(
    runs: int, *, size: int, workers: int, before: float, after: float, change_at: float
) -> list[Executed]:
    """The chunks of a batch whose runs take `before` seconds, and `after` from `change_at` on."""
    free = [0.0] * workers
    chunks = []
    while runs:
        began = at = heapq.heappop(free)
        taken = min(size, runs)
        for _ in range(taken):
            at += before if at < change_at else after
        chunks.append((began, at, taken))
        heapq.heappush(free, at)
        runs -= taken
    return chunks


def record(runner: QuerySetRunner, chunks: list[Executed], *, at: float) -> tuple[Batch, int]:
    """The batch as the database has it `at` seconds after its start, and its runs left."""
    batch = batches.begin(runner, Batch.Trigger.BACKFILL)
    Batch.objects.filter(pk=batch.pk).update(planned_at=timezone.now(), expires_at=None)
    begun = timezone.now() - dt.timedelta(seconds=at)
    base = {"node": batch.node, "runner": runner.label, "batch": batch}
    known, left = [], 0
    for start, end, runs in chunks:
        done = runs if end <= at else int(runs * max(0.0, at - start) / (end - start))
        left += runs - done
        if start >= at or end < at - 700:
            continue
        chunk = Chunk(**base, size=runs, succeeded=done)
        chunk.started_at = begun + dt.timedelta(seconds=start)
        chunk.state = Chunk.State.FINISHED if end <= at else Chunk.State.RUNNING
        chunk.finished_at = begun + dt.timedelta(seconds=end) if end <= at else None
        chunk.expires_at = None if end <= at else timezone.now() + dt.timedelta(minutes=5)
        known.append(chunk)
    waiting = left - sum(each.size - each.succeeded for each in known)
    Chunk.objects.bulk_create([*known, Chunk(**base, size=waiting, state=Chunk.State.WAITING)])
    return Batch.objects.get(pk=batch.pk), left


STEADY = {"runs": 40_000, "size": 50, "workers": 2, "before": 0.02, "after": 0.02}
SLOWER = {"runs": 20_000, "size": 50, "workers": 2, "before": 0.02, "after": 1.0}
MUCH_SLOWER = {"runs": 1_500, "size": 1, "workers": 4, "before": 0.8, "after": 40.0}
FASTER = {"runs": 6_000, "size": 1, "workers": 2, "before": 2.5, "after": 0.1}


@pytest.mark.parametrize("seconds", [62, 95, 130])  # a run began before the change
@pytest.mark.parametrize("change_at", [0.0, 90.4])
@pytest.mark.parametrize(
    "course", [STEADY, SLOWER, MUCH_SLOWER, FASTER], ids=["steady", "slower", "much", "faster"]
)
@pytest.mark.slow
def test_the_time_left_is_right_a_minute_after_bodies_have_changed(
    course: dict[str, float], change_at: float, seconds: float, runner: QuerySetRunner
) -> None:
    chunks = executed(**course, change_at=change_at)  # type: ignore[arg-type]
    at = change_at + seconds
    takes = max(end for _, end, _ in chunks) - at
    batch, left = record(runner, chunks, at=at)

    told = activity_of(batch).seconds_left(left)
    of_node = activity_by_node([batch.node])[batch.node_id].seconds_left(left)

    assert takes > 30
    assert takes / 1.5 < told < takes * 1.5
    assert of_node == pytest.approx(told, rel=0.05)


@pytest.mark.parametrize("course", [STEADY, SLOWER, FASTER], ids=["steady", "slower", "faster"])
def test_the_time_left_is_right_some_seconds_after_bodies_have_changed(
    course: dict[str, float], runner: QuerySetRunner
) -> None:
    chunks = executed(**course, change_at=90.4)  # type: ignore[arg-type]
    at = 90.4 + 12
    takes = max(end for _, end, _ in chunks) - at
    batch, left = record(runner, chunks, at=at)

    told = activity_of(batch).seconds_left(left)

    assert takes / 2 < told < takes * 2


def test_the_page_the_command_and_watch_tell_one_time_left(
    runner: QuerySetRunner, admin_client: Client
) -> None:
    chunks = executed(900, size=20, workers=2, before=0.5, after=0.5, change_at=0)
    batch, left = record(runner, chunks, at=100)
    seconds = activity_of(batch).seconds_left(left)
    assert seconds is not None
    told = duration(seconds).split()[:2]  # the minutes
    terminal = Terminal(out := io.StringIO())

    page = strip_tags(admin_client.get(reverse("admin:autorun_batch_change", args=[batch.pk])).text)
    card = strip_tags(
        admin_client.get(reverse("admin:autorun_node_runner", args=[runner.label])).text
    )
    status = typed("status", runner.label, "--no-pending")
    terminal.say(time_left_of(batch, counts(batch)))

    assert told == ["2", "min"]
    assert "500 ms each, 2 min" in status
    assert out.getvalue().startswith("2 min")
    assert all("2 min" in each.partition("Time left")[2][:40] for each in (page, card))
    assert "500 ms" in card.partition("Median run")[2][:40]
