"""Results that are kept although INPUT_FIELDS has changed: those of rows whose input has not.

A node notes each definition of the input that its fingerprints were made with. A row's result is
for its present input if the result's fingerprint is the row's by an earlier definition.
"""

import logging
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from django.core.exceptions import FieldDoesNotExist
from django.db import connections
from django.db.models import QuerySet

from autorun.conf import settings
from autorun.declare.base import Runner
from autorun.declare.nodes import node_id_of
from autorun.models import Node, Run
from autorun.planning.candidates import select
from autorun.planning.fingerprints import expression
from autorun.planning.rows import eligible
from autorun.planning.windows import Window, Windows, in_halves
from autorun.state.keys import Key
from autorun.state.sql import Fragment, recordset, update_from
from autorun.state.transactions import once_committed, repeated_on_conflict

#: A run, the fingerprint it has, and the row's by today's definition.
Kept = tuple[int, str, str]

_COLUMNS = {"run_id": "bigint", "seen": "fingerprint", "wanted": "fingerprint"}


def adopt_same_input(runner: Runner, queryset: QuerySet[Any] | None) -> int:
    """Keep successes whose input is the same by an earlier definition. Return how many."""
    # The run itself stays, so that runners that depend on it have nothing to do again.
    return once_committed(
        lambda: sum(repeated_on_conflict(partial(_keep, runs)) for runs in _each(runner, queryset)),
        meanwhile=partial(count_same_input, runner, queryset),
    )


def count_same_input(runner: Runner, queryset: QuerySet[Any] | None) -> int:
    """The number of rows that `adopt_same_input` would keep."""
    return sum(map(len, _each(runner, queryset)))


def _keep(found: Collection[Kept]) -> int:
    kept = update_from(
        Run,
        "fingerprint = s.wanted, attempts = 0",
        source=recordset(connections[settings.DATABASE], _COLUMNS, found),
        key="run_id",
        only=Fragment(f"is_current AND status = {Run.Status.SUCCEEDED:d} AND fingerprint = s.seen"),
        returning="id",
    )
    return len(kept)


def _each(runner: Runner, queryset: QuerySet[Any] | None) -> Iterator[list[Kept]]:
    """The runs to keep, window by window."""
    earlier = list(_earlier(runner))
    rows = eligible(runner, queryset, log_level=logging.DEBUG)
    node_id, after = node_id_of(runner), ""
    for window in Windows(runner, rows, node_id) if earlier else ():
        where = f"r.status = {Run.Status.SUCCEEDED:d} AND r.fingerprint <> d.f"
        changed = _selected(runner, rows, window, "d.k, r.id, r.fingerprint, d.f", where)
        # Only now, so that a row that changes meanwhile no longer has the input of its result.
        same: set[Key] = set()
        for each in earlier if changed else ():
            for part in Windows(each, rows, node_id, after, window.last_key):
                found = _selected(each, rows, part, "d.k", "r.fingerprint = d.f")
                same.update(key for (key,) in found)
        yield [
            (run_id, getattr(seen, "hex", seen), getattr(wanted, "hex", wanted))
            for key, run_id, seen, wanted in changed
            if key in same
        ]
        after = window.last_key


def _selected(
    runner: Runner, rows: QuerySet[Any], window: Window, columns: str, where: str
) -> list[tuple[Any, ...]]:
    """`columns` of the window's candidates and their current runs, if `where` holds for them."""
    found: list[tuple[Any, ...]] = []

    def add(part: Window) -> None:
        if part.candidates is not None:
            found.extend(select(part.candidates, columns, f"WHERE {where}"))

    in_halves(runner, rows, window, add)
    return found


def _earlier(runner: Runner) -> Iterator[Runner]:
    """The runner with each earlier definition of its input that can still be computed."""
    noted = Node.objects.filter(pk=node_id_of(runner)).values_list("inputs", flat=True).first()
    declared = dict(zip(runner.input_definition or (), runner.get_input_fields(), strict=False))
    for definition in noted or ():
        if definition == runner.input_definition:
            continue
        earlier = type(runner)()
        fields = definition and tuple(declared.get(each, each) for each in definition)
        vars(earlier)["INPUT_FIELDS"] = fields
        with suppress(FieldDoesNotExist):  # such as a field that has been removed
            expression(earlier)
            yield earlier
