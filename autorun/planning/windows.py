"""Windows: a queryset in ranges of keys, each small enough for one short transaction."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from django.db import DatabaseError, connections
from django.db.models import QuerySet

from autorun.conf import settings
from autorun.declare import page_time
from autorun.declare.base import Runner
from autorun.declare.hooks import database_of, every_row, timeout_of
from autorun.declare.interruption import calls_limited
from autorun.declare.nodes import node_id_of
from autorun.exceptions import WorkerLost
from autorun.models import UNPREPARED
from autorun.planning import listed, written
from autorun.planning.candidates import Candidates, candidates_in, candidates_of
from autorun.planning.rows import (
    Row,
    fingerprinted,
    in_pages,
    key_of,
    one_by_one,
    planned_by_database,
    without_lethal,
    without_rows,
)
from autorun.state.keys import KeyKind, key_kind
from autorun.state.leases import PLANNING_LEASES
from autorun.state.transactions import Halving, has_left_connections, is_passing

#: Keys in a window that the database plans, and in one whose rows Python checks.
DATABASE_WINDOW = 50_000
PYTHON_WINDOW = 2_000
#: Rows in the first of Python's windows, and about so many bytes in one: rows may be large.
FIRST_WINDOW = 100
WINDOW_BYTES = 32 * 1024 * 1024
#: Seconds after which a window of Python's ends early, so that slow rows are planned and the
#: batch's lease is extended in time.
WINDOW_SECONDS = 1.5
#: Processes that may die of a row, alone, before it fails.
MOST_DEATHS = 3
#: The part of a batch's lease that preparing one row may take.
PART_OF_LEASE = 0.8


@dataclass(frozen=True)
class Window:
    """Some rows of a queryset. The next window begins after `last_key`, '' in the last one.

    If the database plans it, its rows have keys in (after, up_to] of `bounds`; None for all rows.
    `among` are the rows from which windows are cut, if they are not all rows of the model, and
    `part` is the part of a queryset that it was cut from, if that has a long list of keys.
    """

    candidates: Candidates | None
    last_key: str
    unprepared: tuple[Row, ...] = ()
    bounds: tuple[str, str] | None = None
    among: QuerySet[Any] | None = None
    part: QuerySet[Any] | None = None


@dataclass(frozen=True)
class Windows:
    """The rows of an eligible queryset with keys in (after, up_to], in the order of their keys.

    Windows that the database plans are cut from `among`, or from all rows of the model. An empty
    `after` or `up_to` does not bound them. After so many `deaths` of processes that began there,
    each row is prepared alone, and the first one fails if it has had enough.
    """

    runner: Runner
    rows: QuerySet[Any]
    node_id: int
    after: str = ""
    up_to: str = ""
    deaths: int = 0
    among: QuerySet[Any] | None = None

    def __iter__(self) -> Iterator[Window]:
        if listed.is_long(self.rows):
            return self._by_part()
        if planned_by_database(self.runner):
            return self._by_database()
        return replace(self, rows=without_lethal(self.runner, self.rows))._by_python()

    def _by_part(self) -> Iterator[Window]:
        """Windows of a long list of keys, a part at a time."""
        after, deaths = self.after, self.deaths
        for part in listed.parts(self.runner, self.rows, after=after, up_to=self.up_to):
            last = part.last_key or self.up_to
            cut = replace(self, rows=part.rows, after=after, up_to=last, deaths=deaths)
            if planned_by_database(self.runner):
                window = cut._bounded(last_key=part.last_key)
                yield replace(window, among=part.among, part=part.rows)
            else:
                lasting = replace(cut, rows=without_lethal(self.runner, part.rows))
                for window in lasting._by_python():
                    last_key = window.last_key or part.last_key
                    yield replace(window, last_key=last_key, part=part.rows)
            after, deaths = part.last_key, 0

    def _by_database(self) -> Iterator[Window]:
        kind = key_kind(self.runner.get_model())
        among = every_row(self.runner) if self.among is None else self.among
        after, is_last = self.after, False
        while not is_last:
            keys = kind.values(_between(kind, among, after=after, up_to=self.up_to).order_by("pk"))
            # The last key of a full window.
            end = "".join(map(str, keys[DATABASE_WINDOW - 1 : DATABASE_WINDOW]))
            is_last, last = not end, end or self.up_to
            rows = _between(kind, self.rows, after=after, up_to=last)
            window = replace(self, rows=rows, after=after, up_to=last)._bounded(last_key=end)
            yield replace(window, among=self.among)
            after = end

    def _bounded(self, *, last_key: str) -> Window:
        """One window of all the rows, for the database."""
        kind = key_kind(self.runner.get_model())
        bounds = {"above": _key(kind, self.after), "up_to": _key(kind, self.up_to)}
        candidates = candidates_in(self.runner, self.rows, node_id=self.node_id, **bounds)
        return Window(candidates, last_key, bounds=(self.after, self.up_to))

    def _by_python(self) -> Iterator[Window]:
        runner, after = self.runner, self.after
        kind = key_kind(runner.get_model())
        if self.deaths >= MOST_DEATHS:
            named = _between(kind, self.rows, after=after, up_to=self.up_to).order_by("pk")
            for pk in named.values_list("pk", flat=True)[:1]:
                yield unprepared(runner, pk, lethal(self.deaths))
                after = str(pk)
        alone = PYTHON_WINDOW if self.deaths else 0
        # Another database may order keys that are not integers differently.
        has_bounds = kind.is_integer or database_of(runner) == settings.DATABASE
        size = 1 if alone else min(FIRST_WINDOW, PYTHON_WINDOW)
        hook, is_last = f"{runner.label}.get_instance_representation()", False
        while not is_last:
            bounded = _between(kind, self.rows, after=after, up_to=self.up_to)
            instances, size = _first_of(runner, bounded, size=size)
            if isinstance(instances, Window):
                yield instances
                after = instances.last_key
                continue
            checked, found = page_time.limited(hook, partial(_checked, runner, instances))
            is_last = checked == len(instances) < size
            end = key_of(instances[checked - 1]) if instances else None
            prepared = [(row.key, row.fingerprint) for row in found if row.error is None]
            candidates = candidates_of(prepared, node_id=self.node_id, kind=kind)
            if has_bounds:
                candidates = replace(candidates, above=_key(kind, after), up_to=end)
            after = "" if is_last else str(end)
            yield Window(candidates, after, tuple(row for row in found if row.error is not None))
            # The rest of a page is read again, as it may have changed: slow rows get small pages.
            alone -= checked
            growth = 2 if checked < len(instances) else 20
            size = 1 if alone > 0 else min(PYTHON_WINDOW, growth * checked, _fitting(instances))


def span_of(runner: Runner) -> int:
    """The most keys in one of the runner's windows."""
    return DATABASE_WINDOW if planned_by_database(runner) else PYTHON_WINDOW


def fits_in_one(queryset: QuerySet[Any]) -> bool:
    """Whether the database may plan `queryset` in one window; not if it refuses to count it."""
    if listed.is_long(queryset):
        return False
    try:
        return queryset.count() <= DATABASE_WINDOW
    except DatabaseError as error:
        if is_passing(error) or connections[queryset.db].in_atomic_block:
            raise
        return False


def whole(
    runner: Runner, queryset: QuerySet[Any], *, node_id: int, **bounds: Any
) -> Iterator[Window]:
    """An eligible `queryset` of few rows, in one window if the database plans it.

    The `bounds` are those of its keys, if they are known.
    """
    if planned_by_database(runner):
        yield Window(candidates_in(runner, queryset, node_id=node_id, **bounds), "")
        return
    after, up_to = (str(bounds.get(name, "")) for name in ("above", "up_to"))
    yield from Windows(runner, queryset, node_id, after, up_to)._by_python()


def in_halves(
    runner: Runner, queryset: QuerySet[Any], window: Window, work: Callable[[Window], object]
) -> None:
    """Call `work` with a window of `queryset`, and with halves of it if the database refuses."""
    # A row whose value it refuses, as in a cast or a function of the filter, becomes unprepared.
    queryset = queryset if window.part is None else window.part
    try:
        work(window)
    except DatabaseError as error:
        is_callers = connections[settings.DATABASE].in_atomic_block
        is_late = page_time.is_over()
        if is_late or is_passing(error) or is_callers or not planned_by_database(runner):
            raise
        list(without_rows(fingerprinted(runner, queryset)))  # raises what hits every row
        if window.bounds is not None:
            _work_in_halves(runner, queryset, window, *window.bounds, work=work)
            return
        for each in Windows(runner, queryset, node_id_of(runner)):
            in_halves(runner, queryset, each, work)


def _work_in_halves(
    runner: Runner,
    queryset: QuerySet[Any],
    window: Window,
    after: str,
    up_to: str,
    *,
    work: Callable[[Window], object],
) -> None:
    def work_on(part: Window) -> None:
        is_last = part.last_key == str(every_key[-1])
        work(replace(part, last_key=window.last_key) if is_last else part)

    node_id, kind = node_id_of(runner), key_kind(runner.get_model())
    # Of all rows: the filter may be what the database refuses.
    among = every_row(runner) if window.among is None else window.among
    rows = _between(kind, among, after=after, up_to=up_to).order_by("pk")
    every_key = list(kind.values(rows))
    halving = Halving(
        every_key,
        fail=lambda key, error: work_on(unprepared(runner, kind.to_pk(key), error)),
        probe=lambda: None,
        using=settings.DATABASE,
    )
    for keys in halving:
        named = queryset.filter(pk__gte=kind.to_pk(keys[0]), pk__lte=kind.to_pk(keys[-1]))
        candidates = candidates_in(runner, named, node_id=node_id, up_to=keys[-1])
        try:
            work_on(Window(candidates, str(keys[-1])))
        except DatabaseError as error:
            halving.errors.append(error)


def lethal(deaths: int) -> WorkerLost:
    """The error of a row of which too many processes have died."""
    return WorkerLost(
        f"{deaths} processes in turn died while they prepared the row's input: "
        "get_instance_representation() or the filter ends them, or takes all memory."
    )


def unprepared(runner: Runner, pk: Any, error: Exception) -> Window:
    """A window of the row with that primary key alone, which cannot be read."""
    key = pk if key_kind(runner.get_model()).is_integer else str(pk)
    return Window(None, str(key), (Row(key, None, UNPREPARED, error=error),))


def last_key(runner: Runner) -> str:
    """The highest key of the runner's model, as text; '' without rows."""
    found = key_kind(runner.get_model()).values(every_row(runner).order_by("-pk")).first()
    return "" if found is None else str(found)


def _first_of(
    runner: Runner, rows: QuerySet[Any], *, size: int
) -> tuple[Sequence[Any] | Window, int]:
    """The first `size` of the rows, or fewer if so many cannot be read together, and how many."""
    # If the first one cannot be read even alone, a window of it as unprepared.
    is_repeated = False
    while True:
        try:
            return next(in_pages(runner, rows, size=size)), size
        except Exception as error:
            if page_time.is_over() or is_passing(error):
                raise
            # A hook may have changed the session unnoticed.
            if not is_repeated and has_left_connections(error):
                is_repeated = True
                continue
            list(without_rows(fingerprinted(runner, rows)))  # raises what hits every row
            if size == 1:
                pk = rows.order_by("pk").values_list("pk", flat=True)[0]
                return unprepared(runner, pk, error), size
        size = -(-size // 2)


def _fitting(instances: Sequence[Any]) -> int:
    """How many rows like these WINDOW_BYTES hold, by the texts, bytes and JSON of some of them."""
    some = instances[:: len(instances) // 10 or 1]
    values = [value for each in some for value in vars(each).values()]
    sizes = [len(value) for value in values if isinstance(value, str | bytes | memoryview)]
    sizes += [len(str(value)) for value in values if isinstance(value, dict | list)]
    return max(WINDOW_BYTES * len(some) // (sum(sizes) or 1), 1)


def _checked(runner: Runner, instances: Sequence[Any]) -> tuple[int, list[Row]]:
    """How many of the instances could be checked in the time for one window, and their rows."""
    seconds = _longest_check(runner)
    message = f"get_instance_representation() took longer than {seconds:g} s."
    checked, rows = 0, []
    ends_at = time.monotonic() + WINDOW_SECONDS
    with calls_limited(runner.get_instance_representation, seconds, message=message) as represent:
        for row in one_by_one(runner, instances, represent=represent):
            checked += 1
            if row is not None:
                rows.append(row)
            # An empty key would be no bound for the next window.
            if time.monotonic() >= ends_at and key_of(instances[checked - 1]) != "":
                break
    return checked, rows


def _longest_check(runner: Runner) -> float:
    """The seconds for preparing one row: TIMEOUT, or most of a batch's lease if shorter."""
    # Longer than the lease, and the batch would pass from one process to the next without end.
    timeout = timeout_of(runner)
    most = PART_OF_LEASE * settings.LEASE * PLANNING_LEASES
    left = page_time.seconds_left()
    return min(most, timeout or most, most if left is None else max(left, 0.001))


def _between(kind: KeyKind, queryset: QuerySet[Any], *, after: str, up_to: str) -> QuerySet[Any]:
    bounds = {name: kind.to_pk(key) for name, key in (("gt", after), ("lte", up_to)) if key}
    bounded = queryset.filter(**{f"pk__{name}": pk for name, pk in bounds.items()})
    return written.within(bounded, bounds) if kind.is_integer else bounded


def _key(kind: KeyKind, text: str) -> int | str | None:
    if not text:
        return None
    return int(text) if kind.is_integer else text
