"""Runs by filter, newest first, without ever counting or sorting millions of them.

What a filter asks for is, but for little, a property of chunks: who planned the run, when, in which
batch, and how many runs ended how. So the few chunks that can hold such runs are found first, and
only their runs are looked at.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import islice
from typing import Any

from django.db.models import F, IntegerField, Q, QuerySet, Sum, Value
from django.utils import timezone

from autorun.models import Batch, Chunk, Failure, Node, Run
from autorun.observe.failures import Member, members_of
from autorun.state.counts import batch_counts
from autorun.state.ids import first_chunk_id_at
from autorun.state.managers import ChunkQuerySet
from autorun.state.parameters import LEAST, SINCE, read_number, read_one_of, read_text, read_time

#: Chunks, and runs in them, that one round looks at; and rounds that filling a page may take.
CHUNKS_AT_ONCE = 500
RUNS_AT_ONCE = 5_000
ROUNDS = 3

#: What lists of runs leave where it is: a scope holds up to 30,000 keys.
LONG = ("outputs", "chunk__batch__scope")

_CURRENT = Q(is_current=True)
_PENDING = Q(status=Run.Status.PENDING)
#: Batches of which nothing is to be told: they looked, and all was done.
EMPTY_SWEEP = Q(trigger=Batch.Trigger.SWEEP, state=Batch.State.FINISHED, planned=0, unprepared=0)


@dataclass(frozen=True)
class State:
    """One state of runs: which chunks may hold some, which of their runs they are, how many."""

    chunks: Q
    runs: Q
    number: Any


def _on_the_way(state: Chunk.State) -> State:
    return State(Q(state=state), _PENDING & _CURRENT, Chunk.runs_left())


#: Among a million chunks that wait, the index finds the few in which anything can have ended.
_STARTED = Q(state__in=(Chunk.State.RUNNING, Chunk.State.FINISHED))

STATES: Mapping[str, State] = {
    "waiting": _on_the_way(Chunk.State.WAITING),
    "queued": _on_the_way(Chunk.State.QUEUED),
    "running": _on_the_way(Chunk.State.RUNNING),
    "parked": _on_the_way(Chunk.State.PARKED),
    "succeeded": State(
        _STARTED & Q(succeeded__gt=0),
        Q(status=Run.Status.SUCCEEDED) & _CURRENT,
        F("succeeded"),
    ),
    "failed": State(
        _STARTED & Q(failed__gt=0), Q(status=Run.Status.FAILED) & _CURRENT, F("failed")
    ),
    "ignored": State(Q(cancelled__gt=0), Q(status=Run.Status.CANCELLED) & _CURRENT, F("cancelled")),
    "cancelled": State(
        Q(cancelled__gt=0), Q(status=Run.Status.CANCELLED, is_current=None), F("cancelled")
    ),
    "superseded": State(
        Q(), Q(is_current=None) & ~Q(status=Run.Status.CANCELLED), F("size") - F("moved")
    ),
}
#: States whose runs are in chunks that are not folded.
UNFOLDED = ("waiting", "queued", "running", "parked", "failed")
#: Of the current runs of a state, or of all: those in the chunks that are folded, by the counts of
#: their node; and those in a chunk.
FOLDED: Mapping[str, tuple[Any, Any]] = {
    "": (
        F("folded_succeeded") + F("folded_failed") + F("folded_ignored"),
        F("size")
        - F("moved")
        - F("superseded_succeeded")
        - F("superseded_failed")
        - F("superseded_cancelled"),
    ),
    "succeeded": (F("folded_succeeded"), F("succeeded") - F("superseded_succeeded")),
    "ignored": (F("folded_ignored"), F("cancelled") - F("superseded_cancelled")),
}
TRIGGERS: Mapping[str, Q] = {
    "save": Q(batch=None, priority=Chunk.Priority.LIVE),
    "sweep": Q(batch__trigger=Batch.Trigger.SWEEP),
    "backfill": Q(batch__trigger=Batch.Trigger.BACKFILL),
    "code": Q(batch__trigger=Batch.Trigger.CODE),
    # A success of what the runner depends on. What was adopted or ignored was never sent.
    "dependency": Q(batch=None)
    & ~Q(priority=Chunk.Priority.LIVE)
    & (~Q(state=Chunk.State.FINISHED) | Q(published_at__isnull=False)),
}


def state_of(run: Run) -> str:
    """The word for a run's state, one of STATES; its chunk should have been loaded with it."""
    if run.status == Run.Status.CANCELLED:
        return "ignored" if run.is_current else "cancelled"
    if not run.is_current:
        return "superseded"
    if run.status == Run.Status.PENDING:
        return Chunk.State(run.chunk.state).name.lower()
    return Run.Status(run.status).name.lower()


@dataclass(frozen=True)
class Cursor:
    """A place in the list: runs of older chunks, or older runs of the same one, come after it.

    In the list of a group of failures it is the id of a failure: those of older ones come after it.
    """

    chunk_id: int
    run_id: int

    def __str__(self) -> str:
        return f"{self.chunk_id}-{self.run_id}"

    @classmethod
    def read(cls, text: str) -> Cursor | None:
        """The cursor that `text` is, or None where it is none."""
        chunk_id, run_id = map(read_number, text.partition("-")[::2])
        return None if chunk_id is None or run_id is None else cls(chunk_id, run_id)


@dataclass(frozen=True)
class Page:
    """Some runs, and where the next ones begin; None at the end.

    A page that is not full, and yet not the last, is one for which a bounded time did not do.
    """

    runs: list[Run]
    after: Cursor | None


@dataclass(frozen=True)
class RunFilter:
    """Which runs: by runner label, state, trigger, exception class, batch, time and row key.

    `since` names how long ago a run may have ended, which is meant as of the time `at`, or as of
    now; unfinished ones are always within. `planned_from` and `planned_until` are times in the
    project's zone, the second of which is not within; they are about when a run was planned, again
    where it is retried. `group` is the key of a group of failures: its runs are the current ones
    whose last attempt so failed.
    """

    runner: str = ""
    state: str = ""
    trigger: str = ""
    exception: str = ""
    batch: int | None = None
    since: str = ""
    row: str = ""
    group: str = ""
    planned_from: str = ""
    planned_until: str = ""
    at: dt.datetime | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> RunFilter:
        """The filter in query parameters; values that `not_understood` names are passed over."""
        return cls(
            runner=read_text(given, "runner"),
            state=read_one_of(STATES, given.get("state")),
            trigger=read_one_of(TRIGGERS, given.get("trigger")),
            exception=read_text(given, "exception"),
            batch=read_number(given.get("batch")),
            since=read_one_of(SINCE, given.get("since")),
            row=read_text(given, "row"),
            group=read_text(given, "group"),
            planned_from=_minute(read_time(given.get("planned_from", ""))),
            planned_until=_minute(read_time(given.get("planned_until", ""))),
        )

    @classmethod
    def not_understood(cls, given: Mapping[str, Any]) -> list[str]:
        """What to say of query parameters that mean nothing, so that nobody takes all for some."""
        read = cls.read(given).written()
        known = {"state": STATES, "trigger": TRIGGERS, "since": SINCE}
        found = []
        for each in fields(cls):
            text = str(given.get(each.name, "")).strip()[:40]
            if not text or each.name in read or each.name == "at":
                continue
            if each.name == "batch":
                found.append(f"“{text}” is no batch: those are numbers.")
            elif each.name in known:
                names = ", ".join(known[each.name])
                found.append(f"There is no {each.name} “{text}”, but {names}.")
            else:
                found.append(f"“{text}” is no time: write 2031-05-04T03:00, for example.")
        return found

    def written(self) -> dict[str, str]:
        """The filter as query parameters; only those that narrow it."""
        known = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "at"}
        return {name: str(value) for name, value in known.items() if value}

    def page(self, after: Cursor | None = None, *, size: int = 50) -> Page:
        """`size` matching runs, with node, chunk and batch; at most 2 * ROUNDS queries."""
        if self.group:
            return self._page_of_group(after, size=size)
        found: list[Run] = []
        related = ("node", "chunk", "chunk__batch")
        for rounds, (runs, cursor) in enumerate(self._rounds(after, wanted=size + 1), start=1):
            found += runs.select_related(*related).defer(*LONG)[: size + 1 - len(found)]
            if len(found) > size:
                return Page(found[:size], _cursor_of(found[size - 1]))
            if rounds == ROUNDS:
                return Page(found, cursor)
        return Page(found, None)

    def each(self) -> Iterator[list[Run]]:
        """All matching runs, a few thousand at a time, with what names their row and no more."""
        names = ("pk", "node_id", "chunk_id", "object_id", "object_key")
        for runs in self._parts():
            after = None
            while some := list(self._after(runs, after).only(*names)[:RUNS_AT_ONCE]):
                yield some
                after = _cursor_of(some[-1])

    def runs(self) -> QuerySet[Run]:
        """All matching runs, for use in another query."""
        is_joined = (self.row or self.exception) or not self._chunk_condition
        return self._runs if is_joined else self._runs.filter(chunk__in=self._chunks)

    def number(self) -> int | None:
        """About how many runs match, as far as that is known without a look at every chunk.

        None where it is not. Without any filter, it is how many current runs there are. Superseded
        runs, which are in the counts of batches and may have been pruned, make it inexact.
        """
        if self.exception or self.row or self.group:
            return None
        # Named one by one, the nodes let the index find the chunks.
        nodes = list(Node.objects.values_list("pk", flat=True))
        open_chunks = self._chunks.filter(node__in=nodes).unfolded()
        if self.state in UNFOLDED:
            return open_chunks.aggregate(n=Sum(STATES[self.state].number))["n"] or 0
        is_narrowed = self.since or self.trigger or self.planned_from or self.planned_until
        if is_narrowed or (self.runner and self.batch is None):
            return None
        if self.batch is not None:
            return self._number_in_batch(self.batch)
        if self.state not in FOLDED:
            return None
        folded, unfolded = FOLDED[self.state]
        in_nodes = Node.objects.aggregate(n=Sum(folded))["n"] or 0
        return in_nodes + (open_chunks.aggregate(n=Sum(unfolded))["n"] or 0)

    def _number_in_batch(self, batch_id: int) -> int | None:
        found = Batch.objects.filter(pk=batch_id)
        found = found.filter(runner=self.runner) if self.runner else found
        counts = batch_counts(found.values_list("pk", flat=True)).get(batch_id)
        if counts is None:
            return 0
        numbers = {
            "": counts.succeeded + counts.failed + counts.cancelled + counts.left,
            "succeeded": counts.succeeded,
            "ignored": counts.cancelled,
            "cancelled": counts.cancelled,
        }
        return numbers.get(self.state)

    def _rounds(
        self, after: Cursor | None, *, wanted: int
    ) -> Iterator[tuple[QuerySet[Run], Cursor | None]]:
        """Querysets of matching runs that follow each other, with the place each ends at."""
        if self.row or self.exception:
            yield self._after(self._runs, after), None
            return
        while True:
            ids, is_last = self._next_chunks(after, wanted=wanted)
            if not ids:
                return
            end = None if is_last else Cursor(ids[-1], 0)
            yield self._after(self._runs.filter(chunk_id__in=ids), after), end
            if is_last:
                return
            after = end

    def _page_of_group(self, after: Cursor | None, *, size: int) -> Page:
        """A page of a group of failures, those that failed last first."""
        members: list[Member] = []
        before = None if after is None else after.chunk_id
        found = self._members(before=before)
        end: int | None = None
        for some, lowest in islice(found, ROUNDS):
            members += some
            end = lowest
            if len(members) > size:
                break
        matching = set(self._among(members).values_list("pk", flat=True))
        shown = [each for each in members if each.run_id in matching]
        if len(shown) > size:
            shown = shown[:size]
            end = shown[-1].failure_id
        ids = [each.run_id for each in shown]
        runs = Run.objects.select_related("node", "chunk", "chunk__batch").defer(*LONG)
        by_id = runs.in_bulk(ids)
        after = None if end is None else Cursor(end, 0)
        return Page([by_id[pk] for pk in ids if pk in by_id], after)

    def _rounds_of_group(self) -> Iterator[tuple[QuerySet[Run], None]]:
        for members, _ in self._members():
            for begin in range(0, len(members), RUNS_AT_ONCE):
                yield self._among(members[begin : begin + RUNS_AT_ONCE]), None

    def _members(self, *, before: int | None = None) -> Iterator[tuple[list[Member], int | None]]:
        return members_of(self.group, self.since, exception_class=self.exception, before=before)

    def _among(self, members: Sequence[Member]) -> QuerySet[Run]:
        """The runs of the members that match all else: when and how they failed is known."""
        others = replace(self, group="", since="", exception="")
        runs = others._runs.filter(pk__in=[each.run_id for each in members])
        is_joined = self.row or not others._chunk_condition
        return runs if is_joined else runs.filter(chunk__in=others._chunks)

    def _parts(self) -> Iterator[QuerySet[Run]]:
        """Querysets that have all matching runs between them."""
        if self.group:
            yield from (runs for runs, _ in self._rounds_of_group())
        elif self.exception:
            yield from self._by_failures()
        else:
            yield from (runs for runs, _ in self._rounds(None, wanted=RUNS_AT_ONCE))

    def _by_failures(self) -> Iterator[QuerySet[Run]]:
        """Querysets of the matching runs with failures of the class, by the ids of the runs.

        Together they look at each failure once; a single one could be of all the runs there are.
        """
        runs = self._failures.order_by("-run_id").values_list("run_id", flat=True).distinct()
        ids = list(runs[:RUNS_AT_ONCE])
        while ids:
            yield self._runs_but_for_failures.filter(pk__in=ids)
            ids = list(runs.filter(run_id__lt=ids[-1])[:RUNS_AT_ONCE])

    def _next_chunks(self, after: Cursor | None, *, wanted: int) -> tuple[list[int], bool]:
        """Chunks that should hold `wanted` matching runs, and whether there are no more."""
        chunks = self._chunks.order_by("-pk")
        if after is not None:
            # Cursor(chunk, 0) is the end of a chunk: no run has the id 0.
            beyond = Q(pk__lte=after.chunk_id) if after.run_id else Q(pk__lt=after.chunk_id)
            chunks = chunks.filter(beyond)
        number = STATES[self.state].number if self.state else Value(1, IntegerField())
        is_countable = bool(self.state) and self.state != "superseded"
        rows = chunks.annotate(_number=number if is_countable else F("size"))
        ids: list[int] = []
        expected = 0
        found = list(rows.values_list("pk", "_number")[: CHUNKS_AT_ONCE + 1])
        most = wanted if is_countable else max(wanted, RUNS_AT_ONCE // 10)
        for chunk_id, runs in found[:CHUNKS_AT_ONCE]:
            ids.append(chunk_id)
            # The chunk the cursor is in may be read to its end already.
            expected += 0 if after is not None and chunk_id == after.chunk_id else runs
            if expected >= most:
                break
        return ids, len(ids) == len(found)

    @staticmethod
    def _after(runs: QuerySet[Run], after: Cursor | None) -> QuerySet[Run]:
        runs = runs.order_by("-chunk_id", "-pk")
        if after is None:
            return runs
        if not after.run_id:
            return runs.filter(chunk_id__lt=after.chunk_id)
        same_chunk = Q(chunk_id=after.chunk_id, pk__lt=after.run_id)
        return runs.filter(Q(chunk_id__lt=after.chunk_id) | same_chunk)

    @cached_property
    def _now(self) -> dt.datetime:
        return self.at or timezone.now()

    @cached_property
    def _chunks(self) -> ChunkQuerySet[Chunk]:
        """The chunks that may hold matching runs."""
        return Chunk.objects.filter(self._chunk_condition)

    @cached_property
    def _chunk_condition(self) -> Q:
        condition = Q()
        if self.runner:
            condition &= Q(runner=self.runner)
        if self.batch is not None:
            condition &= Q(batch_id=self.batch)
        if self.trigger:
            condition &= TRIGGERS[self.trigger]
        if self.state:
            condition &= STATES[self.state].chunks
        # Chunks are made in the order of their ids, which spares an index of the time.
        if when := read_time(self.planned_from):
            condition &= Q(pk__gte=first_chunk_id_at(when))
        if when := read_time(self.planned_until):
            condition &= Q(pk__lt=first_chunk_id_at(when))
        if self.since:
            since = self._now - SINCE[self.since]
            condition &= Q(finished_at__gte=since) | ~Q(state=Chunk.State.FINISHED)
        return condition

    @cached_property
    def _runs(self) -> QuerySet[Run]:
        """The matching runs, where those of `_chunks` alone are looked at."""
        if self.group:
            raise ValueError("The runs of a group of failures are found by `members_of` alone.")
        runs = self._runs_but_for_failures
        if self.exception:
            runs = runs.filter(pk__in=self._failures.values("run_id"))
        return runs

    @cached_property
    def _failures(self) -> QuerySet[Failure]:
        failures = Failure.objects.filter(exception_class=self.exception)
        if self.since:
            failures = failures.filter(failed_at__gte=self._now - SINCE[self.since])
        return failures

    @cached_property
    def _runs_but_for_failures(self) -> QuerySet[Run]:
        runs = Run.objects.all()
        if self.state:
            runs = runs.filter(STATES[self.state].runs)
        if (self.row or self.exception) and self._chunk_condition:
            runs = runs.filter(chunk__in=self._chunks)
        if self.row:
            key = Q(object_id=0, object_key=self.row)
            number = read_number(self.row, least=LEAST)
            if number is not None:
                key |= Q(object_id=number, object_key="")
            # Named one by one, the nodes let the index find the row.
            runs = runs.filter(key, node__in=list(Node.objects.values_list("pk", flat=True)))
        return runs


def _minute(when: dt.datetime | None) -> str:
    """The time as a browser writes it."""
    return "" if when is None else when.replace(tzinfo=None).isoformat(timespec="minutes")


def _cursor_of(run: Run) -> Cursor:
    return Cursor(run.chunk_id, run.pk)
