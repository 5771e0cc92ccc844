"""The cost of planning, compared with statements written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from django.db import connection

from autorun.planning.windows import PYTHON_WINDOW
from autorun.runner import QuerySetRunner
from bench import stage
from bench.measuring import Line, Timings, growth_exponent, in_turns
from bench.memory import megabytes
from bench.scale import Scale
from bench.subject.models import Item
from bench.subject.runners import TrivialRunner


class ConstantRunner(TrivialRunner):
    """Rows that cannot change."""

    INPUT_FIELDS = ()
    ANALYSIS_CONFIGURATION = {"factor": 3}


class PythonRunner(QuerySetRunner):
    """Rows whose input is computed in Python."""

    DATA_MODEL = Item
    ANALYSIS = "Trivial"
    ANALYSIS_VERSION = "1.0"
    ANALYSIS_CONFIGURATION = {"factor": 4}
    INPUT_KEY = "title"

    def get_instance_representation(self, instance: Any) -> str:
        return str(instance.title)


def measure(scale: Scale) -> Iterator[Line]:
    yield from _fresh(scale)
    yield from _nothing_pending(scale)
    yield from _by_python(scale)
    yield _long_table(scale)
    yield from _memory(scale)


def fingerprint_sql(alias: str = "d") -> str:
    weight = f"CAST({alias}.weight AS TEXT)"
    text = (
        f"MD5(LENGTH({alias}.title) || ':' || {alias}.title || LENGTH({weight}) || ':' || {weight})"
    )
    return f"{text}::uuid" if connection.vendor == "postgresql" else text


def bare_insert(node_id: int, *, fingerprint: str | None = None) -> None:
    """Insert as many rows into the same table, and nothing else: the cost of the database."""
    if fingerprint is None:
        cast = "::uuid" if connection.vendor == "postgresql" else ""
        fingerprint = f"'{'0' * 32}'{cast}"
    stage.execute(
        "INSERT INTO autorun_run (node_id, object_id, object_key, fingerprint, is_current, "
        f"chunk_id, status, attempts) SELECT %s, d.id, '', {fingerprint}, TRUE, 1, 0, 0 "
        "FROM subject_item AS d",
        [node_id],
    )


def not_exists(node_id: int, *, compared: bool) -> int:
    """The number of pending rows, by a careful query written by hand."""
    same = f" AND r.fingerprint = {fingerprint_sql()}" if compared else ""
    (count,) = stage.execute(
        "SELECT COUNT(*) FROM subject_item d WHERE NOT EXISTS (SELECT 1 FROM autorun_run r "
        "WHERE r.node_id = %s AND r.object_id = d.id AND r.object_key = '' "
        f"AND r.is_current = TRUE{same})",
        [node_id],
    )
    return int(count)


def _fresh(scale: Scale) -> Iterator[Line]:
    runner = TrivialRunner()
    stage.fill_items(scale.rows)
    node = stage.hold(runner)
    timings = in_turns(
        {
            "autorun": runner.backfill,
            "bare INSERT SELECT": lambda: bare_insert(node.pk),
            "with the fingerprint": lambda: bare_insert(node.pk, fingerprint=fingerprint_sql()),
        },
        rounds=scale.rounds,
        before=lambda _: stage.empty_state(),
    )
    yield _line(
        "plan-fresh",
        f"plan {scale.rows:,} fresh rows (INPUT_FIELDS)",
        timings,
        "bare INSERT SELECT",
        goal=2.5,
        rows=scale.rows,
    )
    yield _line(
        "plan-fresh-fingerprint",
        f"plan {scale.rows:,} fresh rows (INPUT_FIELDS)",
        timings,
        "with the fingerprint",
        against="the same INSERT SELECT with the fingerprint: what the MD5 alone costs",
        goal=None,
        rows=scale.rows,
    )


def _nothing_pending(scale: Scale) -> Iterator[Line]:
    runner, constant = TrivialRunner(), ConstantRunner()
    points: dict[str, list[tuple[float, float]]] = {}
    for rows in scale.growth:
        rounds = scale.rounds if rows <= scale.rows else 1
        stage.empty_state()
        stage.fill_items(rows)
        node, node_of_constant = stage.hold(runner), stage.hold(constant)
        runner.adopt()
        stage.settle()
        timings = in_turns(
            {
                "autorun": runner.backfill,
                "NOT EXISTS": lambda: not_exists(node.pk, compared=True),  # noqa: B023
            },
            rounds=rounds,
        )
        for name, seconds in timings.medians().items():
            points.setdefault(name, []).append((rows, seconds))
        if rows != scale.rows:
            continue
        yield _line(
            "plan-nothing",
            f"plan {rows:,} rows, nothing pending",
            timings,
            "NOT EXISTS",
            against="hand-written NOT EXISTS with the same fingerprint",
            goal=2,
            rows=rows,
        )
        changed = stage.change_items(scale.changed, among=rows)
        timings = in_turns(
            {
                "autorun": runner.backfill,
                "NOT EXISTS": lambda: not_exists(node.pk, compared=True),  # noqa: B023
            },
            rounds=scale.rounds,
            before=lambda name: _change_again(name, rows, scale),  # noqa: B023
        )
        yield _line(
            "plan-changed",
            f"the same, {changed:,} rows changed among {rows:,}",
            timings,
            "NOT EXISTS",
            against="hand-written NOT EXISTS with the same fingerprint",
            goal=2,
            rows=rows,
        )
        stage.empty_state()
        constant.adopt()
        stage.settle()
        timings = in_turns(
            {
                "autorun": constant.backfill,
                "NOT EXISTS": lambda: not_exists(node_of_constant.pk, compared=False),  # noqa: B023
            },
            rounds=scale.rounds,
        )
        yield _line(
            "plan-nothing-constant",
            f"plan {rows:,} rows, nothing pending, no fingerprint",
            timings,
            "NOT EXISTS",
            against="hand-written NOT EXISTS without any fingerprint",
            goal=2,
            rows=rows,
        )
    yield Line(
        key="plan-growth",
        database=connection.vendor,
        work="growth exponent of planning with nothing pending, "
        f"{scale.growth[0]:,} to {scale.growth[-1]:,} rows",
        against="1 is linear",
        value=growth_exponent(points["autorun"]),
        goal=1.05,
        unit="",
        points=points,
    )


def _change_again(name: str, rows: int, scale: Scale) -> None:
    if name == "autorun":  # the other contender leaves its rows pending
        stage.change_items(scale.changed, among=rows)
        if connection.vendor == "postgresql":
            stage.execute("VACUUM subject_item")
            stage.execute("VACUUM autorun_run")


def _by_python(scale: Scale) -> Iterator[Line]:
    runner = PythonRunner()
    stage.empty_state()
    stage.fill_items(scale.python_rows)
    stage.hold(runner)
    timings = in_turns(
        {"autorun, all pending": runner.backfill, "fetching": _fetch},
        rounds=scale.rounds,
        before=lambda _: stage.empty_state(),
    )
    yield _line(
        "plan-python-fresh",
        f"plan {scale.python_rows:,} fresh rows with a Python representation",
        timings,
        "fetching",
        against="fetching the instances in windows and doing nothing",
        contender="autorun, all pending",
        goal=None,
        rows=scale.python_rows,
    )
    runner.adopt()
    stage.settle()
    timings = in_turns({"autorun": runner.backfill, "fetching": _fetch}, rounds=scale.rounds)
    yield _line(
        "plan-python",
        f"plan {scale.python_rows:,} rows with a Python representation, nothing pending",
        timings,
        "fetching",
        against="fetching the instances in windows and doing nothing",
        goal=2.5,
        rows=scale.python_rows,
    )


def _fetch() -> None:
    last = 0
    while instances := list(Item.objects.filter(pk__gt=last).order_by("pk")[:PYTHON_WINDOW]):
        last = instances[-1].pk


def _long_table(scale: Scale) -> Line:
    """Planning next to the runs of other nodes, compared with an empty table."""
    runner = TrivialRunner()
    rows = scale.rows // 10
    stage.empty_state()
    stage.fill_items(rows)
    node = stage.hold(runner)
    with stage.copied() as turn_to:
        turn_to("copy")
        _fill_with_runs_of_others(node.pk, scale.long_table)
        places = {"empty table": "original", "long table": "copy"}

        def prepare(name: str) -> None:
            turn_to(places[name])
            stage.execute("DELETE FROM autorun_run WHERE node_id = %s", [node.pk])
            stage.execute("DELETE FROM autorun_chunk WHERE node_id = %s", [node.pk])
            stage.settle()

        timings = in_turns(
            dict.fromkeys(places, runner.backfill), rounds=scale.rounds, before=prepare
        )
    stage.empty_state()
    return _line(
        "plan-long-table",
        f"plan {rows:,} fresh rows beside {scale.long_table:,} runs of other nodes",
        timings,
        "empty table",
        contender="long table",
        goal=1.2,
        rows=rows,
    )


def _fill_with_runs_of_others(node_id: int, count: int, *, nodes: int = 20) -> None:
    fingerprint = "'" + "1" * 32 + "'" + ("::uuid" if connection.vendor == "postgresql" else "")
    for other in range(nodes):
        stage.execute(
            "INSERT INTO autorun_run (node_id, object_id, object_key, fingerprint, is_current, "
            f"chunk_id, status, attempts) SELECT %s, i, '', {fingerprint}, TRUE, 1, 1, 1 "
            f"FROM {stage.series(count // nodes)}",
            [node_id + 1000 + other],
        )


def _memory(scale: Scale) -> Iterator[Line]:
    """The memory that planning adds to the peak, each size in a new process."""
    for key, runner, sizes in (
        ("memory", "TrivialRunner", scale.memory),
        ("memory-python", "PythonRunner", scale.memory_python),
    ):
        points = []
        for rows in sizes:
            stage.empty_state()
            stage.fill_items(rows)
            points.append((rows, megabytes("bench.planning:planned_by", runner)))
        yield Line(
            key=key,
            database=connection.vendor,
            work=f"memory of planning {sizes[-1]:,} fresh rows"
            + (" with a Python representation" if "python" in key else ""),
            against="before it; " + ", ".join(f"{rows:,}: +{mb:.1f} MB" for rows, mb in points),
            value=points[-1][1],
            goal=30,
            unit="MB",
            rows=sizes[-1],
            points={"autorun": points},
        )
    stage.empty_state()


def planned_by(name: str) -> Callable[[], object]:
    runner = globals()[name]()
    stage.hold(runner)
    runner.backfill(Item.objects.filter(pk__lte=10))
    return runner.backfill  # type: ignore[no-any-return]


def _line(
    key: str,
    work: str,
    timings: Timings,
    reference: str,
    *,
    goal: float | None,
    rows: int,
    contender: str = "autorun",
    against: str = "",
) -> Line:
    columns = {"key": key, "work": work, "goal": goal, "rows": rows}
    return timings.line(contender, reference, against=against or reference, **columns)
