"""Two versions of a runner's analysis, compared on the rows that both have run on.

The database compares: one statement has all counts and medians, another the rows that differ most,
so memory does not grow with the rows.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from autorun.conf import settings
from autorun.declare.base import Runner
from autorun.declare.nodes import node_of, nodes_of
from autorun.declare.output_types import Kind
from autorun.declare.registry import trial_of
from autorun.models import Node, Run
from autorun.observe.output_values import kind_of_value, value_sql
from autorun.observe.records import leaves
from autorun.state.counts import progress
from autorun.state.keys import Key, key_kind
from autorun.state.sql import join_in_this_order, table, whole_quotient

#: Rows shown of each output that differs, and outputs compared at most.
MOST_ROWS = 5
#: Rows whose outputs tell which there are.
SAMPLED = 20
MOST_OUTPUTS = 20
_SUCCEEDED, _FAILED = int(Run.Status.SUCCEEDED), int(Run.Status.FAILED)
_ENDED = f"{_SUCCEEDED}, {_FAILED}"
#: By vendor, what keeps a database from reading the outputs again for each use of a value.
_FENCE = {
    "postgresql": "OFFSET 0",
    "mysql": "LIMIT 18446744073709551615",
    "sqlite": "LIMIT -1 OFFSET 0",
}
_BOTH = f"sa = {_SUCCEEDED} AND sb = {_SUCCEEDED}"


@dataclass(frozen=True)
class Difference:
    """A row whose output differs: its key, and both values."""

    key: Key
    before: Any
    after: Any


@dataclass(frozen=True)
class OutputChange:
    """One output: how many rows differ in it, those that differ most, and of a number both medians.

    A name is that of a column of `records()`.
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
    compared. `outputs` are those of a sample of the runs, at most twenty.
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

    Numbers count as the same if they differ by at most `tolerance` times the larger one. Raises
    ValueError for a version without results.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is {tolerance!r}: it must be a number from 0 up to 1.")
    nodes = _nodes(runner, before, after)
    sizes = [progress(node).succeeded for node in nodes]
    return compare_nodes(runner, *nodes, is_reversed=sizes[0] > sizes[1], tolerance=tolerance)


def compare_nodes(
    runner: Runner, before: Node, after: Node, *, is_reversed: bool, tolerance: float = 0.0
) -> Comparison:
    """Compare two nodes of the runner's; `is_reversed` if the one after has fewer runs."""
    return _Pair(runner, before, after, is_reversed, tolerance).compared()


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
    """Two nodes; `a` and `b` in SQL, and `j` their joined rows with the outputs of each."""

    def __init__(
        self, runner: Runner, before: Node, after: Node, is_reversed: bool, tolerance: float
    ) -> None:
        self._runner, self._before, self._after = runner, before, after
        self._tolerance = tolerance
        self._connection: BaseDatabaseWrapper = connections[settings.DATABASE]
        self._sides = ("b", "a") if is_reversed else ("a", "b")  # the smaller one leads
        self._outputs = dict(list(self._found_outputs())[:MOST_OUTPUTS])

    def compared(self) -> Comparison:
        columns = [
            f"SUM(CASE WHEN {condition} THEN 1 ELSE 0 END)"
            for condition in (
                f"{_BOTH} AND is_same",
                f"{_BOTH} AND is_same AND ({self._any_differs()})",
                f"sa = {_SUCCEEDED} AND sb = {_FAILED} AND is_same",
                f"sa = {_FAILED} AND sb = {_SUCCEEDED} AND is_same",
                f"NOT is_same AND sa IN ({_ENDED}) AND sb IN ({_ENDED})",
                *(self._differs(number) for number in range(len(self._outputs))),
            )
        ]
        numbers = [n for n, kind in enumerate(self._outputs.values()) if kind is Kind.NUMBER]
        medians = [self._median(f"{side}{n}") for n in numbers for side in "ab"]
        source, params = self._join(range(len(self._outputs)))
        if numbers and self._connection.vendor != "postgresql":
            windows = ", ".join(self._window(f"{side}{n}") for n in numbers for side in "ab")
            source = f"(SELECT j.*, {windows} FROM {source} AS j)"
        [found] = self._fetch(f"SELECT {', '.join(columns + medians)} FROM {source} AS j", params)
        counts = [int(each or 0) for each in found[: len(columns)]]
        both, different, newly_failed, newly_fixed, other_input = counts[:5]
        return Comparison(
            self._runner.label,
            self._before.version,
            self._after.version,
            same=both - different,
            different=different,
            newly_failed=newly_failed,
            newly_fixed=newly_fixed,
            other_input=other_input,
            outputs=tuple(self._changes(counts[5:], found[len(columns) :])),
        )

    def _changes(self, counts: Sequence[int], medians: Iterable[Any]) -> Iterator[OutputChange]:
        """Each output with the number of rows that differ, and the medians if it is a number."""
        of_numbers = iter(medians)
        differing = [number for number in range(len(self._outputs)) if counts[number]]
        examples = self._examples(differing) if differing else {}
        for number, (path, kind) in enumerate(self._outputs.items()):
            pair = (next(of_numbers), next(of_numbers)) if kind is Kind.NUMBER else (None, None)
            before, after = (None if each is None else float(each) for each in pair)
            rows = tuple(examples.get(number, ()))
            name = ".".join(path) or "outputs"
            yield OutputChange(name, counts[number], before, after, rows)

    def _found_outputs(self) -> Iterator[tuple[tuple[str, ...], Kind]]:
        """The paths in outputs of both nodes, with the kind that their values are compared as."""
        kinds: dict[tuple[str, ...], set[Kind]] = {}
        source, params = self._pairs()
        sample = self._fetch(
            f"SELECT a.outputs, b.outputs {source} AND a.status = {_SUCCEEDED} "
            f"AND b.status = {_SUCCEEDED} LIMIT {SAMPLED}",
            params,
        )
        for text in (text for pair in sample for text in pair):
            for path, value in leaves(_python(text), ()):
                kinds.setdefault(path, set()).add(kind_of_value(value))
        for path, found in sorted(kinds.items()):
            is_number = bool(found & {Kind.INTEGER, Kind.NUMBER})
            yield path, Kind.NUMBER if is_number else Kind.JSON

    def _join(self, numbers: Iterable[int]) -> tuple[str, list[Any]]:
        """SQL for the rows that have a current run in both nodes, with the values of outputs."""
        is_same = "a.fingerprint = b.fingerprint"
        if self._runner.ON_CODE_CHANGE == "rerun":  # then it tells of the code as well
            is_same = "TRUE"
        comparable = f"a.status = {_SUCCEEDED} AND b.status = {_SUCCEEDED} AND {is_same}"
        values, params = [], []
        found = list(self._outputs.items())
        for number in numbers:
            path, kind = found[number]
            for side in "ab":
                sql, of_path = value_sql(self._connection, f"{side}.outputs", path, kind)
                values.append(f", CASE WHEN {comparable} THEN {sql} END AS {side}{number}")
                params += of_path
        pairs, of_pairs = self._pairs()
        fence = _FENCE[self._connection.vendor]
        sql = (
            "(SELECT a.object_id, a.object_key, a.status AS sa, b.status AS sb, "
            f"{is_same} AS is_same{''.join(values)} {pairs} {fence})"
        )
        return sql, [*params, *of_pairs]

    def _pairs(self) -> tuple[str, list[Any]]:
        """SQL for the current runs of the rows that have one in both nodes."""
        first, second = self._sides
        runs = table(Run, self._connection)
        sql = (
            f"FROM {runs} {first} {join_in_this_order(self._connection)} {runs} {second} "
            "ON a.object_id = b.object_id AND a.object_key = b.object_key "
            "WHERE a.node_id = %s AND a.is_current = TRUE "
            "AND b.node_id = %s AND b.is_current = TRUE"
        )
        return sql, [self._before.pk, self._after.pk]

    def _any_differs(self) -> str:
        return " OR ".join(self._differs(n) for n in range(len(self._outputs))) or "1 = 0"

    def _differs(self, number: int) -> str:
        """SQL for whether the rows of two successes differ in the output."""
        a, b = f"a{number}", f"b{number}"
        differ = f"{a} <> {b}"
        if list(self._outputs.values())[number] is Kind.NUMBER:
            larger = f"CASE WHEN ABS({a}) > ABS({b}) THEN ABS({a}) ELSE ABS({b}) END"
            differ = f"ABS({a} - {b}) > {self._tolerance!r} * {larger}"
        lone = f"({a} IS NULL) <> ({b} IS NULL)"
        return f"(COALESCE({differ}, 1 = 0) OR {lone})"

    def _median(self, name: str) -> str:
        if self._connection.vendor == "postgresql":
            return f"PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY {name})"
        middle = (whole_quotient(self._connection, f"n_{name} + {n}", "2") for n in (1, 2))
        return f"AVG(CASE WHEN r_{name} IN ({', '.join(middle)}) THEN {name} END)"

    @staticmethod
    def _window(name: str) -> str:
        return (
            f"ROW_NUMBER() OVER (PARTITION BY {name} IS NULL ORDER BY {name}) AS r_{name}, "
            f"COUNT({name}) OVER () AS n_{name}"
        )

    def _examples(self, numbers: Sequence[int]) -> dict[int, list[Difference]]:
        """The rows that differ most in each of these outputs, in one statement."""
        parts: list[str] = []
        params: list[Any] = []
        key = key_kind(self._runner.get_model()).column
        text = "CHAR" if self._connection.vendor == "mysql" else "TEXT"
        for number in numbers:
            a, b = f"a{number}", f"b{number}"
            source, of_source = self._join([number])
            is_number = list(self._outputs.values())[number] is Kind.NUMBER
            order = f"COALESCE(ABS({a} - {b}), 0) DESC, " if is_number else ""
            parts.append(
                f"SELECT * FROM (SELECT {number} AS output, {key} AS row_key, "
                f"CAST({a} AS {text}) AS a, CAST({b} AS {text}) AS b FROM {source} AS j "
                f"WHERE {self._differs(number)} ORDER BY {order}{key} LIMIT {MOST_ROWS}) AS p"
            )
            params += of_source
        found: dict[int, list[Difference]] = {number: [] for number in numbers}
        for number, row_key, before, after in self._fetch(" UNION ALL ".join(parts), params):
            found[number].append(Difference(row_key, _python(before), _python(after)))
        return found

    def _fetch(self, sql: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, params)
            return list(cursor.fetchall())


def _python(text: str | None) -> Any:
    """A value as it is in JSON, of the text that the database gives."""
    if text is None:
        return None
    with suppress(ValueError):
        return json.loads(text)
    return text
