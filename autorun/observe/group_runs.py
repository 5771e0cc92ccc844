"""The runs of one group of failures, those that failed last first."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import islice

from django.db.models import QuerySet, Subquery
from django.db.models.functions import Left
from django.utils import timezone

from autorun.models import Failure, Run
from autorun.observe.failures import LAST, READ, group_key, message_shape
from autorun.observe.run_states import LONG, Cursor, Page
from autorun.state.parameters import SINCE, read_number

#: Ids of failures, and messages of them, that one round reads; and rounds that a page may take.
IDS_AT_ONCE = 20_000
MESSAGES_AT_ONCE = 2_000
ROUNDS = 3


@dataclass(frozen=True)
class Member:
    failure_id: int
    run_id: int
    exception_class: str
    shape: str


@dataclass(frozen=True)
class GroupRuns:
    """The current runs whose last attempt failed, `since` then if given, as the group of that key.

    `among` narrows runs, by their ids, to those that match the rest of a filter. With the group's
    `exception_class`, fewer messages need to be read.
    """

    key: str
    among: Callable[[Collection[int]], QuerySet[Run]]
    since: str = ""
    exception_class: str = ""

    def page(self, after: Cursor | None, *, size: int) -> Page:
        """`size` of the runs, with node, chunk and batch; at most ROUNDS rounds."""
        members: list[Member] = []
        end: int | None = None
        rounds = self._members(None if after is None else after.chunk_id)
        for some, lowest in islice(rounds, ROUNDS):
            members += some
            end = lowest
            if len(members) > size:
                break
        matching = set(self.among([each.run_id for each in members]).values_list("pk", flat=True))
        shown = [each for each in members if each.run_id in matching]
        if len(shown) > size:
            shown = shown[:size]
            end = shown[-1].failure_id
        runs = Run.objects.select_related("node", "chunk", "chunk__batch").defer(*LONG)
        by_id = runs.in_bulk([each.run_id for each in shown])
        found = [by_id[each.run_id] for each in shown if each.run_id in by_id]
        return Page(found, None if end is None else Cursor(end, 0))

    def parts(self, after: Cursor | None = None) -> Iterator[tuple[QuerySet[Run], Cursor]]:
        """Querysets that have all the runs between them, with the place where each ends."""
        for members, lowest in self._members(None if after is None else after.chunk_id):
            # Not more than one query may name: a round has MESSAGES_AT_ONCE members at most.
            ids = [each.run_id for each in members]
            yield self.among(ids), Cursor(1 if lowest is None else lowest, 0)

    def _members(self, before: int | None) -> Iterator[tuple[list[Member], int | None]]:
        return members_of(self.key, self.since, exception_class=self.exception_class, before=before)


def members_of(
    key: str, since: str = "", *, exception_class: str = "", before: int | None = None
) -> Iterator[tuple[list[Member], int | None]]:
    """The runs of a group in rounds, those that failed last first, also those to be tried again.

    A round reads the failures of IDS_AT_ONCE ids, and at most MESSAGES_AT_ONCE messages. It gives
    the members among them, possibly none, and the lowest of the ids, None in the last round.
    `before` is the place to continue from.
    """
    node_id = read_number(key.partition("-")[0])
    begin, end = _ids_since(since)
    end = end if before is None else min(end, before - 1)
    while node_id is not None and end > begin:
        failures = Failure.objects.filter(
            LAST, pk__gt=max(begin, end - IDS_AT_ONCE), pk__lte=end, run__node_id=node_id
        )
        if since:
            failures = failures.filter(failed_at__gte=timezone.now() - SINCE[since])
        if exception_class:
            failures = failures.filter(exception_class=exception_class)
        rows = failures.order_by("-pk").values_list(
            "pk", "run_id", "exception_class", Left("message", READ)
        )[:MESSAGES_AT_ONCE]
        members = [
            Member(pk, run_id, its_class, message_shape(start))
            for pk, run_id, its_class, start in rows
        ]
        is_full = len(members) == MESSAGES_AT_ONCE
        end = members[-1].failure_id - 1 if is_full else end - IDS_AT_ONCE
        lowest = end + 1 if end > begin else None
        yield (
            [
                each
                for each in members
                if group_key(node_id, each.exception_class, each.shape) == key
            ],
            lowest,
        )


def _ids_since(since: str) -> tuple[int, int]:
    """An id below those of the failures since then, and the highest of all."""
    newest = Failure.objects.order_by("-pk")
    if not since:
        return 0, newest.values_list("pk", flat=True).first() or 0
    recent = Failure.objects.filter(failed_at__gte=timezone.now() - SINCE[since])
    oldest = Subquery(recent.order_by("failed_at").values("pk")[:1])
    begin, end = newest.values_list(oldest, "pk").first() or (None, 0)
    # Failures recorded at the same time have ids in any order.
    return (end if begin is None else max(0, begin - IDS_AT_ONCE)), end
