"""Runs by filter, newest first, without ever counting or sorting millions of them.

Most conditions are about the chunk: its runner, its batch, its time, its counts. So the few chunks
that can hold matching runs are found first, and only their runs are read.
"""

import datetime as dt
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self
from uuid import UUID

from django.db.models import F, IntegerField, Q, QuerySet, Sum, Value
from django.utils import timezone
from django.utils.translation import gettext as _

from autorun.models import Batch, Chunk, Failure, Node, Run
from autorun.observe.group_runs import GroupRuns
from autorun.observe.run_states import FOLDED, LONG, NAMES, STATES, UNFOLDED, Cursor, Page
from autorun.state.counts import batch_counts, crowded
from autorun.state.managers import ChunkQuerySet
from autorun.state.origins import ORIGINS
from autorun.state.parameters import LEAST, SINCE, read_number, read_one_of, read_text, read_time

#: Chunks, and runs in them, that one round reads; and rounds that a page may take.
CHUNKS_AT_ONCE = 500
RUNS_AT_ONCE = 5_000
ROUNDS = 3
#: Runs among which the slowest are found.
MOST_COMPARED = 20_000

#: Batches that lists leave out: sweeps, and written rows, of which none was to be planned.
_OF_ITSELF = (Batch.Trigger.SWEEP, Batch.Trigger.WRITE)
EMPTY_SWEEP = Q(trigger__in=_OF_ITSELF, state=Batch.State.FINISHED, planned=0, unprepared=0)

#: How each value of a filter is read, but for the number of a batch: one of some words, as a text
#: or as a time.
_WORDS: Mapping[str, Mapping[str, Any]] = {"state": STATES, "trigger": ORIGINS, "since": SINCE}
_TEXTS = ("runner", "exception", "row", "worker")
_GROUP = re.compile(r"\d+-[0-9a-f]{16}")
_TIMES = ("ended_from", "ended_until")
#: Parameters of a page beside the filter's.
OTHER_PARAMETERS = ("after", "order")


@dataclass(frozen=True)
class RunFilter:
    """A filter by runner label, state, origin, exception class, batch, worker, time and row key.

    `since` says how long before `at`, or before now, a run may have finished; unfinished runs
    always match. The other times are in the project's zone; `ended_until` is exclusive. `worker` is
    a worker's name, or that of one of its processes. `group` is the key of a group of failures: the
    current runs whose last attempt failed that way.
    """

    runner: str = ""
    state: str = ""
    trigger: str = ""
    exception: str = ""
    batch: int | None = None
    since: str = ""
    row: str = ""
    group: str = ""
    ended_from: str = ""
    ended_until: str = ""
    worker: str = ""
    at: dt.datetime | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """The filter in query parameters; values that `not_understood` names are ignored."""
        known: dict[str, str] = {
            **{name: read_one_of(words, given.get(name)) for name, words in _WORDS.items()},
            **{name: read_text(given, name) for name in _TEXTS},
            **{name: _minute(read_time(given.get(name, ""))) for name in _TIMES},
        }
        group = read_text(given, "group")
        known["group"] = group if _GROUP.fullmatch(group) else ""
        return cls(batch=read_number(given.get("batch")), **known)  # type: ignore[arg-type]

    @classmethod
    def not_understood(cls, given: Mapping[str, Any]) -> list[str]:
        """Complaints about invalid query parameters, which would otherwise match all runs."""
        read = cls.read(given).written()
        found = []
        for each in fields(cls):
            text = str(given.get(each.name, "")).strip()[:40]
            if not text or each.name in read or each.name == "at":
                continue
            if each.name == "batch":
                found.append(_("“%s” is not the number of a batch.") % text)
            elif each.name == "group":
                problem = _("“%s” is not a group of failures. Open one on the page of failures.")
                found.append(problem % text)
            elif each.name in _WORDS:
                known = ", ".join(_WORDS[each.name])
                of = {"name": each.name, "text": text, "known": known}
                found.append(_("Unknown %(name)s “%(text)s”. Choose %(known)s.") % of)
            else:
                problem = _("“%s” is not a time. Write 2031-05-04T03:00, for example.")
                found.append(problem % text)
        return found

    @classmethod
    def unknown(cls, given: Mapping[str, Any]) -> list[str]:
        """Complaints about query parameters of a page that are no filter."""
        names = [each.name for each in fields(cls) if each.name != "at"]
        problem = _("Unknown filter “%(name)s”. Choose %(known)s.")
        return [
            problem % {"name": other[:40], "known": ", ".join(names)}
            for other in given
            if other not in (*names, *OTHER_PARAMETERS)
        ]

    def written(self) -> dict[str, str]:
        """The filter as query parameters; only those that narrow it."""
        known = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "at"}
        return {name: str(value) for name, value in known.items() if value}

    def page(self, after: Cursor | None = None, *, size: int = 50) -> Page:
        """`size` matching runs, with node, chunk and batch; at most 2 * ROUNDS queries."""
        if self.group:
            return self._of_group.page(after, size=size)
        found: list[Run] = []
        related = ("node", "chunk", "chunk__batch")
        for rounds, (runs, cursor) in enumerate(self._rounds(after, wanted=size + 1), start=1):
            found += runs.select_related(*related).defer(*LONG)[: size + 1 - len(found)]
            if len(found) > size:
                return Page(found[:size], Cursor.of(found[size - 1]))
            if rounds == ROUNDS:
                return Page(found, cursor)
        return Page(found, None)

    def slowest(self, *, size: int = 50) -> tuple[list[Run], bool]:
        """The `size` slowest of the matching runs in the newest chunks, and whether it read all."""
        # No index is in the order of seconds, so MOST_COMPARED runs or so are read at most.
        runs: Any = self._runs
        is_all = True
        if self.group:
            runs, _ = next(self._of_group.parts(), (Run.objects.none(), None))
            is_all = False
        elif not self.row:
            newest = self._chunks.order_by("-pk").values_list("pk", "size")
            ids: list[int] = []
            compared = 0
            for chunk_id, number in newest[: MOST_COMPARED + 1].iterator():
                if compared >= MOST_COMPARED:
                    is_all = False
                    break
                ids.append(chunk_id)
                compared += number
            runs = runs.filter(chunk_id__in=ids)
        related = ("node", "chunk", "chunk__batch")
        return list(runs.slowest().select_related(*related).defer(*LONG)[:size]), is_all

    def each(self) -> Iterator[list[Run]]:
        """All matching runs, a few thousand at a time, with the columns that name their row."""
        return (runs for runs, _ in self.parts())

    def parts(self, after: Cursor | None = None) -> Iterator[tuple[list[Run], Cursor]]:
        """The same from a place on, each with the place from which to continue later."""
        for runs, end in self._parts(after):
            last = None
            while some := list(self._after(runs, last).only(*NAMES)[:RUNS_AT_ONCE]):
                last = Cursor.of(some[-1])
                yield some, end or last

    def runs(self) -> QuerySet[Run]:
        """All matching runs, for use in another query."""
        is_joined = (self.row or self.exception) or not self._chunk_condition
        return self._runs if is_joined else self._runs.filter(chunk__in=self._chunks)

    def number(self) -> int | None:
        """The approximate number of matching runs; None if it takes reading every chunk.

        Without any filter, it is the exact number of current runs, or None if there are very many
        waiting chunks. The counts of batches include superseded runs, which may have been pruned.
        """
        if self.exception or self.row or self.group:
            return None
        folded, unfolded = FOLDED.get(self.state, (Value(0), Value(0)))
        nodes: Any = Node.objects.values_list("pk", folded)
        if self.batch is not None:
            of_runner = {"runner": self.runner} if self.runner else {}
            batch = Batch.objects.filter(pk=self.batch, **of_runner)
            nodes = batch.values_list("node_id", Value(0))
        in_nodes = dict(nodes)
        is_about = bool(crowded(in_nodes))
        # Named one by one, the nodes let the index find the chunks.
        open_chunks = self._chunks.filter(node__in=list(in_nodes)).unfolded()
        if self.state in UNFOLDED:
            is_of_many = is_about and self.state == "waiting"
            number = Sum(STATES[self.state].number)
            return None if is_of_many else open_chunks.aggregate(n=number)["n"] or 0
        times = (self.since, self.ended_from, self.ended_until)
        is_narrowed = self.trigger or self.worker or any(times)
        if is_narrowed or (self.runner and self.batch is None):
            return None
        if self.batch is not None:
            return self._number_in_batch(self.batch, is_about=is_about) if in_nodes else 0
        if self.state not in FOLDED or (is_about and not self.state):
            return None
        return sum(in_nodes.values()) + (open_chunks.aggregate(n=Sum(unfolded))["n"] or 0)

    def _number_in_batch(self, batch_id: int, *, is_about: bool) -> int | None:
        counts = batch_counts([batch_id], [batch_id] if is_about else [])[batch_id]
        numbers = {
            "": counts.total,
            "succeeded": counts.succeeded,
            "not_applicable": counts.not_applicable,
            "ignored": counts.cancelled,
            "cancelled": counts.cancelled,
        }
        return numbers.get(self.state)

    def _rounds(
        self, after: Cursor | None, *, wanted: int
    ) -> Iterator[tuple[QuerySet[Run], Cursor | None]]:
        """Consecutive querysets of matching runs, with the place where each ends."""
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

    @property
    def _of_group(self) -> GroupRuns:
        return GroupRuns(self.group, self._among, self.since, self.exception)

    def _among(self, ids: Collection[int]) -> QuerySet[Run]:
        """Those of the runs that match all but the group, which says when and how they failed."""
        return replace(self, group="", since="", exception="").runs().filter(pk__in=ids)

    def _parts(self, after: Cursor | None) -> Iterator[tuple[QuerySet[Run], Cursor | None]]:
        """Querysets of the runs, with the place where each ends unless that is its last run."""
        if self.group:
            yield from self._of_group.parts(after)
        elif self.exception:
            yield from self._by_failures(after)
        else:
            yield from ((runs, None) for runs, _ in self._rounds(after, wanted=RUNS_AT_ONCE))

    def _by_failures(self, after: Cursor | None) -> Iterator[tuple[QuerySet[Run], Cursor]]:
        """Querysets of the matching runs with failures of the class, by the ids of the runs."""
        # Together they read each failure once; a single queryset could be of all runs.
        runs = self._failures.order_by("-run_id").values_list("run_id", flat=True).distinct()
        if after is not None:
            runs = runs.filter(run_id__lt=after.run_id)
        ids = list(runs[:RUNS_AT_ONCE])
        while ids:
            yield self._runs_but_for_failures.filter(pk__in=ids), Cursor(0, ids[-1])
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
            # The chunk of the cursor may have been read to its end.
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
        return Chunk.objects.filter(self._chunk_condition)

    @cached_property
    def _chunk_condition(self) -> Q:
        condition = Q()
        if self.runner:
            condition &= Q(runner=self.runner)
        if self.batch is not None:
            condition &= Q(batch_id=self.batch)
        if self.trigger:
            condition &= ORIGINS[self.trigger].chunks
        if self.state:
            condition &= STATES[self.state].chunks
        if self.since:
            since = self._now - SINCE[self.since]
            condition &= Q(finished_at__gte=since) | ~Q(state=Chunk.State.FINISHED)
        if self.worker:
            condition &= Q(worker=self.worker) | Q(worker__startswith=f"{self.worker}:")
        if when := read_time(self.ended_from):
            condition &= Q(finished_at__gte=when) | Q(state=Chunk.State.RUNNING)
        return condition

    @cached_property
    def _runs(self) -> QuerySet[Run]:
        """The matching runs, provided that only those of `_chunks` are read."""
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
        if when := read_time(self.ended_from):
            runs = runs.filter(finished_at__gte=when)
        if when := read_time(self.ended_until):
            runs = runs.filter(finished_at__lt=when)
        if self.state:
            runs = runs.filter(STATES[self.state].runs)
        if (self.row or self.exception) and self._chunk_condition:
            runs = runs.filter(chunk__in=self._chunks)
        if self.row:
            texts = [self.row]
            with suppress(ValueError):  # of a UUID, whatever the database's spelling
                texts += [str(UUID(self.row)), UUID(self.row).hex]
            key = Q(object_id=0, object_key__in=texts)
            if (number := read_number(self.row, least=LEAST)) is not None:
                key |= Q(object_id=number, object_key="")
            # Named one by one, the nodes let the index find the row.
            runs = runs.filter(key, node__in=list(Node.objects.values_list("pk", flat=True)))
        return runs


def _minute(when: dt.datetime | None) -> str:
    return "" if when is None else when.replace(tzinfo=None).isoformat(timespec="minutes")
