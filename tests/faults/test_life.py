"""The life of rows, with whatever can happen to them in any order, and what must hold throughout.

Workers are threads with connections of their own. A body waits until the machine says what becomes
of it, so everything happens one thing at a time, in an order that a seed repeats:
`pytest tests/faults/test_life.py --hypothesis-seed=7`; AUTORUN_LIFE_EXAMPLES is how many lives.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import pytest
from celery import current_app
from django.db import connections, transaction
from django.db.models import Q
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from autorun import tasks
from autorun.control import interventions
from autorun.control.interventions import cancel_runner
from autorun.declare import nodes
from autorun.dispatch.messages import EXECUTE
from autorun.dispatch.publishing import Message, redirected
from autorun.dispatch.releasing import release_everywhere
from autorun.exceptions import BrokerUnavailable, NotApplicable, RetryLater
from autorun.execution.execute import execute
from autorun.execution.work import Work
from autorun.models import Batch, Chunk, Failure, Node, Pulse, Run, SpilledTrigger
from autorun.planning import batches, on_demand, planner, statements
from autorun.planning.reasons import SELECTIONS, Selection
from autorun.runner import QuerySetRunner
from autorun.state.clock import from_now
from autorun.state.counts import IS_POSTPONED, Progress
from autorun.state.managers import RETIRED, ChunkQuerySet, RunQuerySet
from autorun.state.probes import POINTS
from autorun.triggers import delivery
from autorun.upkeep import rounds
from autorun.upkeep.folding import prune
from autorun.upkeep.rescue import rescue_expired
from tests.crashes import Crash, armed
from tests.engine import declare, installed
from tests.library.models import Document

EXAMPLES = int(os.environ.get("AUTORUN_LIFE_EXAMPLES", "25"))
STEPS = int(os.environ.get("AUTORUN_LIFE_STEPS", "40"))
#: Less than the rows there may be, so that not all of them are let out at once.
WINDOW = 3
MOST_ROWS = 3

#: Few, so that rows change back often.
titles = st.sampled_from("ab")
numbers = st.integers(min_value=0, max_value=1_000)
planning_points = st.sampled_from(
    [None, None] + [name for name in POINTS if name.startswith(("plan.", "backfill.", "dispatch."))]
)
finishing_points = st.sampled_from(
    [name for name in POINTS if name.startswith(("finish.", "dispatch."))]
)
starting_points = st.sampled_from([None] * 4 + ["start.leased", "start.assigned"])
verdicts = st.sampled_from(["succeed", "succeed", "fail", "not applicable", "later"])

#: Titles of the rows for which the runner's hook raises.
unreadable: set[str] = set()


class Worker(threading.Thread):
    """Does what a message says; every body waits to be told what becomes of it."""

    def __init__(self, task: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.task = task
        #: The chunk it is at.
        self.chunk_id = 0
        self.row: dict[str, Any] | None = None
        self.error: BaseException | None = None
        self.has_crashed = False
        self.verdict = ""
        self._waits = threading.Event()
        self._goes_on = threading.Event()

    def run(self) -> None:
        try:
            self.task()
        except Crash:
            self.has_crashed = True
        except BaseException as error:  # noqa: BLE001
            self.error = error
        finally:
            connections.close_all()
            self.row = None
            self._waits.set()

    def begin(self) -> None:
        self.start()
        self._wait()

    def body(self, row: dict[str, Any]) -> Any:
        self.row = row
        self._waits.set()
        assert self._goes_on.wait(30)
        self._goes_on.clear()
        self.row = None
        if self.verdict == "fail":
            raise ValueError(row["title"])
        if self.verdict == "not applicable":
            raise NotApplicable(row["title"])
        if self.verdict == "later":
            raise RetryLater(30)
        return {"title": row["title"]}

    def go_on(self, verdict: str) -> None:
        """Let the body end, and wait for the next one or for the end of the chunk."""
        self.verdict = verdict
        self._waits.clear()
        self._goes_on.set()
        self._wait()

    def _wait(self) -> None:
        assert self._waits.wait(30)
        if self.row is None:
            self.join(30)
            if self.error is not None:
                raise self.error


@pytest.fixture
def _noted_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers know which chunk they are at."""
    assign = Work.assign

    def noted(work: Work) -> None:
        worker = threading.current_thread()
        assert isinstance(worker, Worker)
        worker.chunk_id = work.lease.chunk.pk
        assign(work)

    monkeypatch.setattr(Work, "assign", noted)


def body(value: dict[str, Any]) -> Any:
    worker = threading.current_thread()
    assert isinstance(worker, Worker)
    return worker.body(value)


def represent(_runner: QuerySetRunner, row: Document) -> dict[str, Any]:
    if row.title in unreadable:
        raise ValueError(f"{row.title} cannot be read")
    return {"pk": row.pk, "title": row.title}


Runner = declare(
    body,
    TITLE="Life",
    NAME="LifeRunner",
    BASE_QUERY=~Q(state="hidden"),
    BATCH_SIZE=2,
    MAX_ATTEMPTS=2,
    RETRY_BACKOFF=1,
    get_instance_representation=represent,
)


class Life(RuleBasedStateMachine):
    """A project's changes to its rows, and the faults it meets."""

    def __init__(self) -> None:
        super().__init__()
        for model in (Failure, Run, Chunk, Batch, SpilledTrigger, Pulse, Node):
            model.objects.all().delete()
        Document.objects.all().delete()
        nodes.forget_nodes()
        unreadable.clear()
        self.runner = Runner()
        self.runner.get_node()
        self.workers: list[Worker] = []
        self.messages: list[Message] = []
        #: Keys of the rows that were saved or deleted, by label.
        self.saved: delivery.Saved = {}
        self.unheard: set[int] = set()
        #: Keys of deleted rows, some of which come back, of all that were ever deleted, and of rows
        #: that have once succeeded.
        self.deleted: set[int] = set()
        self.ever_deleted: set[int] = set()
        self.successful: set[int] = set()
        #: The chunk and status of each run, and of those that are pruned.
        self.runs: dict[int, list[int]] = {}
        self.pruned: list[list[int]] = []
        self.refusing = False
        self.stack = ExitStack()
        self.stack.enter_context(redirected(self.publish))
        #: The runs of each batch that have left it, as their rows were saved while they waited.
        self.overtaken: Counter[int] = Counter()
        move = partial(self.note_overtaken, planner.move_ahead)
        self.stack.enter_context(mock.patch.object(planner, "move_ahead", move))

    # What stands for the broker

    def publish(self, messages: Sequence[Message]) -> None:
        """Saved rows stay in the memory of the process that saved them."""
        for message in messages:
            if message.task == delivery.PLAN:
                label, keys, *_ = message.args
                self.saved.setdefault(label, set()).update(keys)
            elif self.refusing:
                raise BrokerUnavailable("refused")
            else:
                self.messages.append(message)

    # Few rules with many kinds each: Hypothesis leaves out rules at random, and a life without
    # workers, or without rows, has nothing to tell.

    @initialize(given=st.lists(titles, min_size=1, max_size=4))
    def first_rows(self, given: list[str]) -> None:
        for title in given:
            Document.objects.create(title=title)

    @rule(
        kind=st.sampled_from(
            ["change"] * 5
            + ["create", "hide", "hide", "write", "delete", "return", "reuse", "bulk_create"]
        ),
        number=numbers,
        title=titles,
        is_heard=st.booleans(),
    )
    def rows(self, kind: str, number: int, title: str, is_heard: bool) -> None:
        """Somebody writes a row: one that is worked on, if there is one and the number is odd."""
        row = self.a_row(number)
        if row is None or (kind == "create" and Document.objects.count() < MOST_ROWS):
            Document.objects.create(title=title)
        elif kind == "change":
            row.title = title
            row.save()
        elif kind == "hide":
            row.state = "" if row.state else "hidden"
            row.save()
        elif kind == "write":
            Document.objects.filter(pk=row.pk).update(title=title)
            self.unheard.add(row.pk)
        elif kind == "delete":
            self.deleted.add(row.pk)
            self.ever_deleted.add(row.pk)
            row.delete()
        elif kind == "return" and self.deleted:
            Document.objects.create(pk=self.deleted.pop(), title=title)
        elif kind == "reuse":
            pk = row.pk
            self.ever_deleted.add(pk)
            row.delete()
            Document.objects.create(pk=pk, title=title)
        elif kind == "bulk_create":
            self.rows_appear(title)
        if is_heard:
            self.plan_saved(None)

    @rule(number=numbers, title=titles)
    def row_is_done(self, number: int, title: str) -> None:
        """A row is saved, and all that is under way succeeds.

        Single steps hardly ever take one row there and back: a, b and a again, each of them done.
        """
        row = self.a_row(number)
        if row is None:
            return
        row.title = title
        row.save()
        self.plan_saved(None)
        for _ in range(MOST_ROWS):
            messages, self.messages = self.messages, []
            for message in messages:
                self.receive(message)
            while self.workers:
                self.go_on(self.workers[0], "succeed")

    @rule(kind=st.sampled_from(["plan", "plan", "spill", "lose"]), point=planning_points)
    def saved_rows(self, kind: str, point: str | None) -> None:
        """Plan, spill or lose the saves that have not been delivered yet."""
        if kind == "plan":
            self.plan_saved(point)
        elif kind == "spill" and self.saved:
            saved, self.saved = self.saved, {}
            delivery.spill(saved)
        else:
            self.unheard |= self.saved_keys()
            self.saved = {}

    @rule(
        kind=st.sampled_from(["sweep", "backfill", "force", "retry", "adopt", "ignore"]),
        point=planning_points,
        number=numbers,
        only=st.sampled_from([None, *SELECTIONS]),
        limit=st.sampled_from([None, 1, 2]),
        window=st.sampled_from([None, 2]),
        before=st.sampled_from(["", "changed", "new"]),
        after=st.sampled_from(["", "", "cancel", "pause"]),
    )
    def planning(
        self,
        kind: str,
        point: str | None,
        number: int,
        only: str | None,
        limit: int | None,
        window: int | None,
        before: str,
        after: str,
    ) -> None:
        """Somebody looks at all rows: mostly some were written silently before."""
        if before == "changed":
            Document.objects.update(title="ab"[number % 2])
            self.unheard |= set(Document.objects.values_list("pk", flat=True))
        elif before == "new":
            self.rows_appear("ab"[number % 2])
        steps = {
            "sweep": self.sweep,
            "backfill": lambda: self.runner.backfill(only=only, limit=limit, window=window),
            "force": lambda: self.runner.backfill(force=True, limit=limit, window=window),
            "retry": self.runner.retry,
            "adopt": self.adopt,
            "ignore": lambda: self.runner.ignore(Document.objects.filter(title="ab"[number % 2])),
        }
        self.crashes(point, steps[kind])
        if after and Batch.objects.exclude(state=Batch.State.FINISHED).exists():
            self.batch(kind=after, number=-1)

    @rule(
        number=numbers,
        title=titles,
        done=st.integers(min_value=0, max_value=1),
        kind=st.sampled_from(["batch", "runner", "runs"]),
    )
    def everything_again(self, number: int, title: str, done: int, kind: str) -> None:
        """All rows are forced, perhaps after a change; some are done when the rest is cancelled."""
        row = self.a_row(number)
        if row is not None and number % 3 == 0:
            row.title = title
            row.save()
            self.plan_saved(None)
        batch = self.runner.backfill(force=True)
        for message in self.messages[:done]:
            self.receive(message)
        self.cancel(kind, batch, number)

    @precondition(lambda self: Batch.objects.exclude(state=Batch.State.FINISHED).exists())
    @rule(kind=st.sampled_from(["cancel", "pause", "resume"]), number=numbers)
    def batch(self, kind: str, number: int) -> None:
        found = list(Batch.objects.exclude(state=Batch.State.FINISHED).order_by("pk"))
        batch = found[number % len(found)]
        if kind == "cancel":
            self.cancel("batch", batch, number)
        elif kind == "pause":
            batches.pause(batch)
        else:
            batches.resume(batch)

    @precondition(lambda self: self.messages)
    @rule(
        number=numbers,
        kind=st.sampled_from(["one", "one", "again", "all"]),
        point=starting_points,
    )
    def deliver(self, number: int, kind: str, point: str | None) -> None:
        """Workers get messages; one may die before its first body."""
        message = self.messages[number % len(self.messages)]
        if kind == "all":
            messages, self.messages = self.messages, []
            for each in messages:
                self.receive(each)
            return
        if kind == "one":
            self.messages.remove(message)
        self.crashes(point, partial(self.receive, message))

    @precondition(lambda self: self.workers)
    @rule(number=numbers, verdict=verdicts)
    def body_ends(self, number: int, verdict: str) -> None:
        self.go_on(self.workers[number % len(self.workers)], verdict)

    @precondition(lambda self: self.workers)
    @rule(
        number=numbers,
        kind=st.sampled_from(["crash", "crash", "freeze", "cancel"]),
        verdict=verdicts,
        point=finishing_points,
    )
    def worker_dies(self, number: int, kind: str, verdict: str, point: str) -> None:
        """Or its lease runs out, and it goes on before the rescue or after it.

        Or its run is to be cancelled, which it learns when it records what it has done.
        """
        worker = self.workers[number % len(self.workers)]
        if kind == "crash":
            rows = Run.objects.filter(chunk_id=worker.chunk_id).values_list("object_id", flat=True)
            # What its end would have given rise to is left to the sweep, too.
            self.unheard |= set(rows)
            with armed(point):
                self.go_on(worker, verdict)
        elif kind == "cancel":
            assert worker.row is not None
            key = worker.row["pk"]
            of_worker = Run.objects.pending().filter(chunk_id=worker.chunk_id, object_id=key)
            interventions.cancel_runs([list(of_worker)])
            self.unheard.add(key)
        else:
            running = Chunk.objects.filter(pk=worker.chunk_id, state=Chunk.State.RUNNING)
            running.update(expires_at=from_now(-1))

    @rule(
        kind=st.sampled_from(["rescue", "release", "keep up", "time", "time", "prune", "spilled"]),
        point=st.sampled_from(
            [
                None,
                None,
                *("rescue.taken", "rescue.recorded", "spilled.planned", "upkeep.counted"),
                *("finish.updated", "finish.moved", "dispatch.claimed", "dispatch.unsent"),
            ]
        ),
    )
    def upkeep(self, kind: str, point: str | None) -> None:
        steps = {
            "rescue": lambda: rescue_expired(at_most=10),
            "release": release_everywhere,
            "keep up": lambda: rounds.upkeep(in_any_case=True),
            "time": self.time_passes,
            "prune": self.prune,
            "spilled": self.plan_spilled,
        }
        self.crashes(point, steps[kind])

    @rule(
        kind=st.sampled_from(["goes", "comes", "comes", "forgets", "breaks", "heals"]), title=titles
    )
    def surroundings(self, kind: str, title: str) -> None:
        """The broker goes, comes or forgets; the runner's hook breaks for some rows, or heals."""
        if kind == "breaks":
            unreadable.add(title)
        elif kind == "heals":
            unreadable.clear()
        elif kind == "forgets":
            self.messages.clear()
        else:
            self.refusing = kind == "goes"

    # What must hold

    @invariant()
    def counts_are_what_counting_gives(self) -> None:
        states = Chunk.State
        node = self.runner.get_node()
        runs = Run.objects.filter(node=node)
        postponed = set(Chunk.objects.filter(IS_POSTPONED).values_list("pk", flat=True))
        state_of = dict(Chunk.objects.values_list("pk", "state"))
        state_of |= dict.fromkeys(postponed, "postponed")
        unfinished = Counter(
            state_of[chunk_id]
            for chunk_id in runs.filter(status=Run.Status.PENDING).values_list(
                "chunk_id", flat=True
            )
        )
        ended = Counter(runs.filter(is_current=True).values_list("status", flat=True))
        counted = Progress(
            succeeded=ended[Run.Status.SUCCEEDED],
            failed=ended[Run.Status.FAILED],
            ignored=ended[Run.Status.CANCELLED],
            not_applicable=ended[Run.Status.NOT_APPLICABLE],
            postponed=unfinished["postponed"],
            waiting=unfinished[states.WAITING],
            queued=unfinished[states.QUEUED],
            running=unfinished[states.RUNNING],
            parked=unfinished[states.PARKED],
        )

        assert unfinished[states.FINISHED] == 0, "a run that nobody will ever run"
        assert self.runner.progress() == counted

    @invariant()
    def chunks_add_up(self) -> None:
        """The counts of a chunk include its runs that are pruned."""
        runs_now = {pk: place for pk, *place in Run.objects.values_list("pk", "chunk_id", "status")}
        self.pruned += [place for pk, place in self.runs.items() if pk not in runs_now]
        self.runs = runs_now
        by_chunk: dict[int, Counter[int]] = {}
        chunks = Chunk.objects.annotate(left=Chunk.RUNS_LEFT)
        kept = set(chunks.values_list("pk", flat=True))
        self.pruned = [place for place in self.pruned if place[0] in kept]
        for chunk_id, status in [*runs_now.values(), *self.pruned]:
            by_chunk.setdefault(chunk_id, Counter())[status] += 1
        for chunk in chunks:
            runs = by_chunk.pop(chunk.pk, Counter())
            apart = chunk.not_applicable
            counted = (chunk.succeeded, chunk.failed, chunk.cancelled - apart, apart, chunk.left)
            statuses = Run.Status
            assert counted == (
                runs[statuses.SUCCEEDED],
                runs[statuses.FAILED],
                runs[statuses.CANCELLED],
                runs[statuses.NOT_APPLICABLE],
                runs[statuses.PENDING],
            )
        assert not by_chunk, "runs in chunks that do not exist"

    def note_overtaken(
        self, move: Callable[..., int], run_ids: Sequence[int], **options: Any
    ) -> int:
        runs = Run.objects.filter(pk__in=run_ids)
        before = {each.pk: each.chunk for each in runs.select_related("chunk")}
        moved = move(run_ids, **options)
        left = Counter(
            before[pk].batch_id
            for pk, chunk_id in runs.values_list("pk", "chunk_id")
            if chunk_id != before[pk].pk
        )
        transaction.on_commit(lambda: self.overtaken.update(left))
        return moved

    @invariant()
    def batches_add_up(self) -> None:
        for batch in Batch.objects.all():
            counts = batches.counts(batch)
            assert counts.total + self.overtaken[batch.pk] == batch.planned
            assert batch.limit is None or batch.planned <= batch.limit

    @invariant()
    def no_row_is_worked_on_twice_at_once(self) -> None:
        live = Chunk.objects.filter(state=Chunk.State.RUNNING, expires_at__gt=from_now(0))
        chunk_ids = set(live.values_list("pk", flat=True))
        rows = [
            worker.row["pk"]
            for worker in self.workers
            if worker.chunk_id in chunk_ids and worker.row is not None
        ]
        assert len(rows) == len(set(rows)), rows

    @invariant()
    def outputs_belong_to_the_input(self) -> None:
        done = Run.objects.succeeded().unretired().filter(attempts__gt=0)
        fingerprints: dict[str, set[str]] = {}
        for outputs, fingerprint in done.values_list("outputs", "fingerprint"):
            fingerprints.setdefault(outputs["title"], set()).add(str(fingerprint))
        assert all(len(found) == 1 for found in fingerprints.values()), fingerprints

    @invariant()
    def no_row_loses_its_last_success(self) -> None:
        """Whatever was asked for again, failed, cancelled or pruned, unless it was deleted."""
        succeeded = Run.objects.succeeded().unretired()
        now = set(succeeded.values_list("object_id", flat=True))

        assert self.successful - self.ever_deleted <= now
        self.successful = now

    @invariant()
    def whoever_is_pending_is_known(self) -> None:
        """A row that was heard of is done, or on its way, or waits for one of those who heal."""
        known = self.unheard | self.saved_keys()
        for keys in SpilledTrigger.objects.values_list("keys", flat=True):
            known |= set(keys)
        if Batch.objects.filter(state=Batch.State.RUNNING, planned_at=None).exists():
            return
        ended = Run.objects.filter(is_current=True).exclude(status=Run.Status.PENDING)
        under_way = Run.objects.filter(status=Run.Status.PENDING).values("object_id")
        done = set(ended.exclude(object_id__in=under_way).values_list("object_id", flat=True))
        pending = set(self.runner.pending().values_list("pk", flat=True))
        assert not (pending & done) - known, "changed, heard of, and left to the next sweep"

    @invariant()
    def the_window_holds(self) -> None:
        """For what is released: a lone row may be started beside it, one to a worker's process."""
        chunks = Chunk.objects.filter(state__in=(Chunk.State.QUEUED, Chunk.State.RUNNING))
        chunks = chunks.exclude(published_at=None)
        sizes = list(chunks.annotate(left=Chunk.RUNS_LEFT).values_list("left", flat=True))
        assert len(sizes) <= 1 or sum(sizes) <= WINDOW

    def teardown(self) -> None:
        """All quiet at last: every row that anybody heard of is done, and after a sweep all are."""
        try:
            self.refusing = False
            unreadable.clear()
            Batch.objects.filter(state=Batch.State.PAUSED).update(
                state=Batch.State.RUNNING, expires_at=from_now(-1)
            )
            self.come_to_rest()
            pending = set(self.runner.pending().values_list("pk", flat=True))
            assert pending <= self.unheard, "saved, and left to the next sweep"
            on_demand.sweep_now(self.runner)
            self.come_to_rest()
            self.all_is_done()
        finally:
            self.stop_workers()
            self.stack.close()

    def come_to_rest(self) -> None:
        for _ in range(100):
            if self.saved:
                self.plan_saved(None)
            while self.workers:
                self.go_on(self.workers[0], "succeed")
            self.time_passes()
            rounds.upkeep(in_any_case=True)
            messages, self.messages = self.messages, []
            for message in messages:
                self.receive(message)
            self.check()
            unfinished = Chunk.objects.unfinished().exists()
            if not (messages or self.workers or self.saved or unfinished):
                return
        raise AssertionError("It does not come to rest.")

    def check(self) -> None:
        self.counts_are_what_counting_gives()
        self.chunks_add_up()
        self.batches_add_up()
        self.no_row_is_worked_on_twice_at_once()
        self.outputs_belong_to_the_input()
        self.no_row_loses_its_last_success()
        self.the_window_holds()
        self.whoever_is_pending_is_known()

    def all_is_done(self) -> None:
        left = list(self.runner.pending())
        assert not left, [str(self.runner.explain(row)) for row in left]
        assert not Run.objects.filter(status=Run.Status.PENDING).exists()
        assert not SpilledTrigger.objects.exists()
        assert not Batch.objects.filter(state=Batch.State.RUNNING).exists()
        current = {run.object_id: run for run in Run.objects.filter(is_current=True)}
        for row in self.runner.get_base_queryset():
            run = current[row.pk]
            if run.status == Run.Status.SUCCEEDED and run.attempts:
                assert run.outputs == {"title": row.title}
            elif run.status == Run.Status.FAILED:
                assert Failure.objects.filter(run=run).exists()

    # Helpers

    def a_row(self, number: int) -> Document | None:
        at_work = [worker.row["pk"] for worker in self.workers if worker.row]
        rows = list(Document.objects.order_by("pk"))
        if at_work and number % 2:
            return Document.objects.filter(pk=at_work[number % len(at_work)]).first()
        return rows[number % len(rows)] if rows else None

    def rows_appear(self, title: str) -> None:
        """Two more rows, unless there are many, of which nobody hears."""
        if Document.objects.count() < MOST_ROWS:
            Document.objects.bulk_create([Document(title=title), Document(title="a")])
            self.unheard |= set(Document.objects.order_by("-pk").values_list("pk", flat=True)[:2])

    def plan_saved(self, point: str | None) -> None:
        saved = self.saved
        keys, self.saved = self.saved_keys(), {}
        # Deletions first, by their labels: others may have the keys.
        plans = [
            partial(tasks.plan, label, sorted(of_label), time.time())
            for label, of_label in sorted(saved.items())
        ]
        if any(self.crashes(point, partial(self.work_on, plan)) for plan in plans):
            # The parent of the process that died has them planned.
            delivery.spill(saved)
        else:
            self.unheard -= keys

    def saved_keys(self) -> set[int]:
        return set().union(*self.saved.values())

    def cancel(self, kind: str, batch: Batch, number: int) -> None:
        """Cancel; what was current before is so again, if it is of use, and nothing else changes.

        That is a run that is still executed, else the last result for the same input.
        """
        pending = Run.objects.pending().filter(chunk__in=Chunk.objects.unstarted())
        if kind == "batch":
            pending = pending.filter(chunk__batch=batch)
        if kind == "runs":
            some = pending.order_by("pk").values_list("pk", flat=True)[: 1 + number % 3]
            pending = pending.filter(pk__in=list(some))
        expected = dict(Run.objects.current().values_list("object_id", "pk"))
        cancelled = list(pending.filter(is_current=True))
        for run in cancelled:
            of_row = Run.objects.filter(object_id=run.object_id, is_current=None).order_by("-pk")
            done = (Run.Status.SUCCEEDED, Run.Status.FAILED, Run.Status.NOT_APPLICABLE)
            ended = of_row.filter(fingerprint=run.fingerprint, status__in=done)
            executed = of_row.filter(
                status=Run.Status.PENDING, chunk__state=Chunk.State.RUNNING
            ).first()
            earlier = executed or ended.first()
            expected.pop(run.object_id)
            if earlier is not None and earlier.fingerprint != RETIRED:
                expected[run.object_id] = earlier.pk

        if kind == "batch":
            batches.cancel(batch)
        elif kind == "runner":
            cancel_runner(self.runner.label)
        else:
            interventions.cancel_runs([list(pending)])

        assert dict(Run.objects.current().values_list("object_id", "pk")) == expected
        # A row without an earlier result is pending, and a sweep's to find.
        self.unheard |= set(Document.objects.values_list("pk", flat=True))

    def adopt(self) -> None:
        """The rows that are adopted keep the outputs of their last success."""
        succeeded = Run.objects.succeeded().unretired().order_by("pk")
        last = dict(succeeded.values_list("object_id", "outputs"))
        before = set(Run.objects.values_list("pk", flat=True))

        self.runner.adopt()

        adopted = Run.objects.exclude(pk__in=before).filter(status=Run.Status.SUCCEEDED)
        for object_id, outputs in adopted.values_list("object_id", "outputs"):
            assert outputs == last.get(object_id)

    def plan_spilled(self) -> None:
        """Upkeep hands saved rows that wait in the database to workers, who plan them."""
        rounds.upkeep(in_any_case=True)
        handed_out = [each for each in self.messages if each.task != EXECUTE]
        self.messages = [each for each in self.messages if each.task == EXECUTE]
        for message in handed_out:
            self.receive(message)

    def prune(self) -> None:
        """All that is history is old."""
        for model in (Run, Chunk, Batch):
            model.objects.exclude(finished_at=None).update(finished_at=from_now(-100 * 24 * 3600))
        prune()

    def sweep(self) -> None:
        if on_demand.sweep_now(self.runner) is not None:
            self.unheard.clear()

    def time_passes(self) -> None:
        """Retries are due, messages are taken for lost, and who has died is missed."""
        Chunk.objects.exclude(not_before=None).update(not_before=from_now(-1))
        Chunk.objects.filter(state=Chunk.State.QUEUED).update(published_at=from_now(-100_000))
        for model in (Batch, SpilledTrigger):
            model.objects.exclude(expires_at=None).update(expires_at=from_now(-1))
        alive = [worker.chunk_id for worker in self.workers]
        gone = Chunk.objects.filter(state=Chunk.State.RUNNING).exclude(pk__in=alive)
        gone.update(expires_at=from_now(-1))

    def crashes(self, point: str | None, step: Any) -> bool:
        """Do something, perhaps with a crash in the middle of it; whether there was one."""
        if point is None:
            step()
            return False
        with armed(point):
            try:
                step()
            except Crash:
                return True
        return False

    def receive(self, message: Message) -> None:
        if message.task == EXECUTE:
            self.work_on(partial(execute, *message.args))
        else:
            current_app.tasks[message.task].run(*message.args)

    def work_on(self, task: Callable[[], object]) -> None:
        worker = Worker(task)
        worker.begin()
        if worker.is_alive():
            self.workers.append(worker)
        elif worker.has_crashed:
            raise Crash

    def go_on(self, worker: Worker, verdict: str) -> None:
        worker.go_on(verdict)
        if not worker.is_alive():
            self.workers.remove(worker)

    def stop_workers(self) -> None:
        for worker in self.workers:
            while worker.is_alive():
                worker.go_on("succeed")


@pytest.mark.faults(7, 9, 10, 15, 18, 45)
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_noted_chunks")
def test_rows_live_through_anything(settings):
    settings.AUTORUN = {"WINDOW": WINDOW, "TIMEOUT": None}
    with installed(Runner):
        run_state_machine_as_test(Life, settings=_of_hypothesis())


def forget_what_changed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """An input that has succeeded at any time counts as done: a, b and a again."""
    has_succeeded = (
        "EXISTS (SELECT 1 FROM autorun_run AS o WHERE o.node_id = r.node_id "
        "AND o.object_id = r.object_id AND o.fingerprint = d.f "
        f"AND o.status = {Run.Status.SUCCEEDED:d})"
    )
    changed = "r.fingerprint <> d.f"
    sound = statements.redo_condition

    def condition(selection: Selection) -> str | None:
        found = sound(selection)
        return found and found.replace(changed, f"{changed} AND NOT {has_succeeded}")

    monkeypatch.setattr(statements, "redo_condition", condition)


def start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that is delivered again starts its chunk again."""
    receive = Life.receive

    def restart(life: Life, message: Message) -> None:
        if message.task == EXECUTE:
            running = Chunk.objects.filter(pk=message.args[0], state=Chunk.State.RUNNING)
            running.update(state=Chunk.State.QUEUED)
        receive(life, message)

    monkeypatch.setattr(Life, "receive", restart)


def miscount(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results that are current again are still counted as superseded."""
    changed = ChunkQuerySet.update

    def update(self: Any, **columns: Any) -> int:
        is_again = columns and all(name.startswith("superseded_") for name in columns)
        return 0 if is_again else changed(self, **columns)

    monkeypatch.setattr(ChunkQuerySet, "update", update)


def leave_nothing_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled run does not give its place back."""
    miscount(monkeypatch)
    changed = RunQuerySet.update

    def update(self: Any, **columns: Any) -> int:
        return 0 if columns == {"is_current": True} else changed(self, **columns)

    monkeypatch.setattr(RunQuerySet, "update", update)


@pytest.mark.faults(15, 45)
@pytest.mark.slow
@pytest.mark.once
@pytest.mark.timeout(1800)
@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_noted_chunks")
@pytest.mark.parametrize(
    "plant",
    [forget_what_changed_back, leave_nothing_current, start_again, miscount],
)
def test_lives_find_a_defect_that_is_planted(monkeypatch, settings, plant):
    settings.AUTORUN = {"WINDOW": WINDOW, "TIMEOUT": None}
    plant(monkeypatch)
    without_shrinking = _of_hypothesis(
        max_examples=300, phases=[Phase.generate], report_multiple_bugs=False
    )
    with installed(Runner), pytest.raises(AssertionError):
        run_state_machine_as_test(Life, settings=without_shrinking)


def _of_hypothesis(**options: Any) -> settings:
    ordinary = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    return settings(ordinary, **options)
