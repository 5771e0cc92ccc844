"""Two versions of a runner's analysis, compared on the rows that both have processed.

The database joins them, page by page, and says which outputs are equal. Only those that are not are
compared here, and those of some rows for the medians: so memory does not grow with the rows, and it
takes little longer than the join.
"""

import json
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from statistics import median
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from autorun.conf import settings
from autorun.declare.base import Runner
from autorun.declare.nodes import node_of, nodes_of
from autorun.declare.registry import trial_of
from autorun.declare.returns import Kind, kind_of, type_at
from autorun.models import Node, Run
from autorun.observe.records import leaves
from autorun.state.counts import progress
from autorun.state.keys import Key, key_kind
from autorun.state.sql import join_in_this_order, table

#: Rows of a page.
PAGE = 5_000
#: Rows shown of each output that differs, and outputs compared at most.
MOST_ROWS = 5
MOST_OUTPUTS = 20
#: The medians are those of all rows up to MOST_EXACT, and otherwise of about SAMPLED of them.
MOST_EXACT, SAMPLED = 10_000, 2_500
#: Of the hash that chooses them.
_PRIME, _FACTOR = 65_521, 40_503
_SUCCEEDED, _FAILED = int(Run.Status.SUCCEEDED), int(Run.Status.FAILED)
_ENDED = {_SUCCEEDED, _FAILED}
#: What has become of a row with the same input, by both statuses; "same" until outputs differ.
_OUTCOMES = {
    (_SUCCEEDED, _SUCCEEDED): "same",
    (_SUCCEEDED, _FAILED): "newly_failed",
    (_FAILED, _SUCCEEDED): "newly_fixed",
}
_NUMBERS = {int, float, Decimal}
#: In place of a value that is missing.
_MISSING = object()


@dataclass(frozen=True)
class Difference:
    key: Key
    before: Any
    after: Any


@dataclass(frozen=True)
class OutputChange:
    """One output: how many rows differ in it, those that differ most, and of a number both medians.

    A name is that of a column of `records()`. The medians of more than 10,000 rows are those of
    about 2,500, the same ones for both versions and each time.
    """

    name: str
    different: int
    median_before: float | None = None
    median_after: float | None = None
    rows: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """The rows that two versions have run on, by how their results compare.

    `same` and `different` have succeeded in both; `other_input` had changed in between, and is not
    compared. Of the outputs, the first twenty that are found have changes in `outputs`.
    """

    runner: str
    before: str
    after: str
    same: int = 0
    different: int = 0
    newly_failed: int = 0
    newly_fixed: int = 0
    other_input: int = 0
    outputs: tuple[OutputChange, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether no row has results of both versions."""
        compared = self.same + self.different + self.newly_failed + self.newly_fixed
        return not compared + self.other_input


def compare(
    runner: Runner, before: str | None, after: str | None, *, tolerance: float
) -> Comparison:
    """Compare two versions; by default the runner's own with its candidate.

    Numbers, also in lists, count as the same if they differ by at most `tolerance` times the larger
    one. Raises ValueError for a version without results.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is {tolerance!r}: it must be a number from 0 up to 1.")
    nodes = _nodes(runner, before, after)
    sizes = progress(nodes[0]).succeeded, progress(nodes[1]).succeeded
    return compare_nodes(runner, *nodes, sizes=sizes, tolerance=tolerance)


def compare_nodes(
    runner: Runner, before: Node, after: Node, *, sizes: tuple[int, int], tolerance: float = 0.0
) -> Comparison:
    """Compare two nodes of the runner's, with so many successes."""
    return _Pair(runner, before, after, sizes, tolerance).compared()


def _nodes(runner: Runner, before: str | None, after: str | None) -> tuple[Node, Node]:
    """The nodes of both versions; those of the runner's own configuration, if there are several."""
    trial = trial_of(runner)
    if after is None and trial is None:
        raise ValueError(f"{runner.label} has no CANDIDATE: name two versions to compare.")
    own = node_of(runner)
    found = Node.objects.in_bulk(nodes_of(runner))

    def version(name: str | None, default: Node | None) -> Node:
        if name is None and default is not None:
            return default
        alike = [each for each in found.values() if each.version == name]
        alike.sort(key=lambda each: each.configuration != own.configuration)
        if not alike:
            known = ", ".join(sorted({each.version for each in found.values()}))
            raise ValueError(f"{runner.label} has no results of version {name!r}, only of {known}.")
        return alike[0]

    return version(before, own), version(after, None if trial is None else node_of(trial))


class _Pair:
    """Two nodes; `a` and `b` in SQL are the current runs of a row in them."""

    def __init__(
        self, runner: Runner, before: Node, after: Node, sizes: tuple[int, int], tolerance: float
    ) -> None:
        self._runner, self._before, self._after = runner, before, after
        self._kind = key_kind(runner.get_model())
        self._connection: BaseDatabaseWrapper = connections[settings.DATABASE]
        self._smaller, self._sides = before, ("a", "b")  # that with fewer runs leads
        if sizes[0] > sizes[1]:
            self._smaller, self._sides = after, ("b", "a")
        self._is_same_input = "a.fingerprint = b.fingerprint"
        if runner.ON_CODE_CHANGE == "rerun":  # then it tells of the code as well
            self._is_same_input = "TRUE"
        # By a hash of the runs' ids: the same ones each time, at no regular distance.
        rows = min(sizes)
        sampled = _PRIME if rows <= MOST_EXACT else max(1, round(_PRIME * SAMPLED / rows))
        self._is_sampled = f"(a.id %% {_PRIME}) * {_FACTOR} %% {_PRIME} < {sampled}"
        self._is_compared = (
            f"a.status = {_SUCCEEDED} AND b.status = {_SUCCEEDED} AND {self._is_same_input}"
        )
        self._outputs = _Outputs(runner.get_analysis().return_annotation, tolerance)

    def compared(self) -> Comparison:
        found: Counter[str] = Counter()
        for key, was, now, is_same_input, is_sampled, a, b in self._rows():
            outcome = _OUTCOMES.get((was, now), "") if is_same_input else ""
            if outcome == "same":
                row = self._kind.spelled(key)
                is_same = self._outputs.add(row, a, b, is_sampled=bool(is_sampled))
                outcome = "same" if is_same else "different"
            elif not is_same_input and _ENDED.issuperset((was, now)):
                outcome = "other_input"
            found["same"] -= 1
            found[outcome] += 1
        del found[""]
        # Counted by the index alone, and last: rows that finish meanwhile only add to them.
        [[pairs]] = self._fetch("COUNT(*)")
        found["same"] += pairs
        return Comparison(
            self._runner.label,
            self._before.version,
            self._after.version,
            **found,
            outputs=self._outputs.changes(),
        )

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        """The rows that differ or are sampled, in pages of the smaller node's keys."""
        lookup, runs = self._kind.column, Run.objects.of(self._smaller.pk).current()
        if not self._kind.is_integer:
            runs = runs.filter(object_id=0)  # leads the index
        keys = runs.order_by(lookup).values_list(lookup, flat=True)
        above: dict[str, Any] = {}
        while True:
            [*last] = keys.filter(**above)[PAGE - 1 : PAGE]
            bounds = [(">", each) for each in above.values()] + [("<=", each) for each in last]
            yield from self._page(bounds)
            if not last:
                return
            above = {f"{lookup}__gt": last[0]}

    def _page(self, bounds: Sequence[tuple[str, Key]]) -> Any:
        column = self._kind.column
        # On both sides, as a database may begin with either.
        within = [f" AND {side}.{column} {sign} %s" for side in "ab" for sign, _ in bounds]
        if not self._kind.is_integer:
            within += [" AND a.object_id = 0 AND b.object_id = 0"]
        outputs = (f"CASE WHEN {self._is_compared} THEN {each}.outputs END" for each in "ab")
        return self._fetch(
            f"a.{column}, a.status, b.status, {self._is_same_input}, {self._is_sampled}, "
            + ", ".join(outputs),
            f" AND NOT ({self._is_compared} AND COALESCE(a.outputs = b.outputs, 1 = 0) "
            f"AND NOT ({self._is_sampled})){''.join(within)} ORDER BY a.{column}",
            2 * [bound for _, bound in bounds],
        )

    def _fetch(self, columns: str, rest: str = "", params: Sequence[Any] = ()) -> Any:
        """Columns of the current runs of the rows that have one in both nodes."""
        runs = table(Run, self._connection)
        first, second = self._sides
        sql = (
            f"SELECT {columns} FROM {runs} {first} {join_in_this_order(self._connection)} "
            f"{runs} {second} ON a.object_id = b.object_id AND a.object_key = b.object_key "
            "WHERE a.node_id = %s AND a.is_current = TRUE "
            f"AND b.node_id = %s AND b.is_current = TRUE{rest}"
        )
        with self._connection.cursor() as cursor:
            cursor.execute(sql, [self._before.pk, self._after.pk, *params])
            return cursor.fetchall()


class _Outputs:
    """The outputs of rows that have succeeded in both versions, in the order of their keys."""

    def __init__(self, annotation: Any, tolerance: float) -> None:
        self._annotation, self._tolerance = annotation, tolerance
        self._found: dict[tuple[str, ...], _Output] = {}

    def add(self, key: Key, before: str | None, after: str | None, *, is_sampled: bool) -> bool:
        """Note the outputs of a row, as texts of JSON. Return whether they are the same."""
        if before == after:
            for path, value in leaves(_python(before), ()) if is_sampled else ():
                self._of(path).sample(value, value)
            return True
        a, b = (dict(leaves(_python(each), ())) for each in (before, after))
        is_same = True
        for path in a | b:
            output = self._of(path)
            values = output.read(a.get(path, _MISSING)), output.read(b.get(path, _MISSING))
            if not _is_same(*values, self._tolerance):
                is_same = False
                output.differ(key, *values)
            if is_sampled:
                output.sample(*values)
        return is_same

    def _of(self, path: tuple[str, ...]) -> "_Output":
        output = self._found.get(path)
        if output is None:
            output = _Output(kind_of(type_at(self._annotation, path)))
            if len(self._found) < MOST_OUTPUTS:
                self._found[path] = output
        return output

    def changes(self) -> tuple[OutputChange, ...]:
        found = sorted(self._found.items())
        return tuple(output.change(".".join(path) or "outputs") for path, output in found)


class _Output:
    """One output: the number of rows that differ, those that differ most, and numbers sampled."""

    def __init__(self, kind: Kind | None) -> None:
        self._is_decimal = kind is Kind.DECIMAL
        self._different = 0
        self._most: list[tuple[float, Difference]] = []
        self._sampled = array("d"), array("d")

    def read(self, value: Any) -> Any:
        """The value, of the text that a declared Decimal is."""
        if self._is_decimal and isinstance(value, str):
            with suppress(InvalidOperation):
                return Decimal(value)
        return value

    def differ(self, key: Key, before: Any, after: Any) -> None:
        self._different += 1
        gap = abs(_number(before) - _number(after))
        gap = 0.0 if math.isnan(gap) else gap
        if len(self._most) < MOST_ROWS or gap > self._most[-1][0]:
            self._most.append((gap, Difference(key, _shown(before), _shown(after))))
            self._most.sort(key=lambda each: -each[0])  # stable, so by key within one gap
            del self._most[MOST_ROWS:]

    def sample(self, *values: Any) -> None:
        for numbers, value in zip(self._sampled, values, strict=True):
            number = _number(self.read(value))
            if number == number:  # noqa: PLR0124 - not NaN
                numbers.append(number)

    def change(self, name: str) -> OutputChange:
        before, after = (median(each) if each else None for each in self._sampled)
        rows = tuple(row for _, row in self._most)
        return OutputChange(name, self._different, before, after, rows)


def _shown(value: Any) -> Any:
    """The value as it is in JSON."""
    if isinstance(value, Decimal):
        return str(value)
    return None if value is _MISSING else value


def _is_same(a: Any, b: Any, tolerance: float) -> bool:
    if type(a) is type(b) and a == b:
        return True
    if isinstance(a, list) and isinstance(b, list):
        pairs = zip(a, b, strict=False)
        return len(a) == len(b) and all(_is_same(*pair, tolerance) for pair in pairs)
    if {type(a), type(b)} <= _NUMBERS:
        x, y = _number(a), _number(b)
        return abs(x - y) <= tolerance * max(abs(x), abs(y))
    return False


def _number(value: Any) -> float:
    """A number as a float; NaN for anything else, or if it is too large."""
    try:
        return float(value) if type(value) in _NUMBERS else math.nan
    except OverflowError:
        return math.nan


def _python(text: str | None) -> Any:
    """A value as it is in JSON, of the text that the database gives."""
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return text
