"""Results that are read: versions compared, outputs in querysets, landed and exported."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import ClassVar

from django.db import connection

from autorun.analysis import analysis
from autorun.declare import registry
from autorun.declare.nodes import node_of
from autorun.models import Chunk, Node, Run
from autorun.observe.formats import as_text
from autorun.observe.records import Records
from autorun.outputs import with_outputs
from autorun.runner import Candidate, QuerySetRunner
from autorun.state.clock import NOW_SQL
from bench import stage
from bench.bodies import executed
from bench.measuring import Line, in_turns
from bench.memory import megabytes
from bench.scale import Scale
from bench.subject.models import Item
from bench.subject.runners import TrivialRunner, WeightRunner

PAGE = 100
#: How often a page is read in a row, as after `gc.collect()` a processor's caches are empty.
PAGES = 10
#: One row in so many has another output in the candidate version.
DIFFERENT = 100
#: By vendor, the outputs of row `i`.
_OUTPUTS = {
    "postgresql": "jsonb_build_object('length', i %% 1000 + {more}, 'mean', i * 0.37)",
    "mysql": "json_object('length', i %% 1000 + {more}, 'mean', i * 0.37)",
    "sqlite": "json_object('length', i %% 1000 + {more}, 'mean', i * 0.37)",
}


@analysis("Measured", version="1.0")
def measured(weight: int) -> dict[str, float]:
    return {"length": weight, "mean": weight * 0.37}


@analysis("Measured", version="1.1")
def measured_anew(weight: int) -> dict[str, float]:
    return {"length": weight + 1, "mean": weight * 0.37}


class MeasuredRunner(WeightRunner):
    DATA_MODEL = Item
    ANALYSIS = "Measured"
    CANDIDATE = Candidate("1.1", share=1)


class LandedRunner(TrivialRunner):
    INPUT_FIELDS = ("title",)
    OUTPUT_FIELDS: ClassVar = {"length": "weight"}


def measure(scale: Scale) -> Iterator[Line]:
    with registry.registered(LandedRunner):
        yield _landed(scale)
    with registry.registered(MeasuredRunner):
        runner = MeasuredRunner()
        trial = registry.trial_of(runner)
        assert trial is not None
        stage.empty_state()
        stage.fill_items(scale.rows)
        for node, is_tried in ((node_of(runner), False), (node_of(trial), True)):
            _fill(node, scale.rows, is_tried=is_tried)
        stage.settle()
        yield _compared(runner, scale)
        yield from _read(scale)
        yield _exported(scale)
    stage.empty_state()


def _fill(node: Node, rows: int, *, is_tried: bool) -> None:
    """Record a success of each row."""
    counts = {"size": rows, "succeeded": rows, "state": Chunk.State.FINISHED}
    chunk = Chunk.objects.create(
        pk=10**15 + is_tried, node=node, runner=MeasuredRunner().label, **counts
    )
    more = f"CASE WHEN i %% {DIFFERENT} = 0 THEN {int(is_tried)} ELSE 0 END"
    outputs = _OUTPUTS[connection.vendor].format(more=more)
    stage.execute(
        "INSERT INTO autorun_run (node_id, object_id, object_key, fingerprint, is_current, "
        "chunk_id, status, attempts, finished_at, outputs) SELECT %s, i, '', %s, TRUE, %s, %s, 1, "
        f"{NOW_SQL[connection.vendor]}, {outputs} FROM {stage.series(rows)}",
        [node.pk, "0" * 32, chunk.pk, int(Run.Status.SUCCEEDED)],
    )


def _compared(runner: QuerySetRunner, scale: Scale) -> Line:
    nodes = list(Chunk.objects.order_by("pk").values_list("node", flat=True))

    def join() -> None:
        stage.execute(
            "SELECT COUNT(*), SUM(CASE WHEN a.outputs = b.outputs THEN 1 ELSE 0 END) "
            "FROM autorun_run a JOIN autorun_run b "
            "ON a.object_id = b.object_id AND a.object_key = b.object_key "
            "WHERE a.node_id = %s AND b.node_id = %s AND a.is_current AND b.is_current",
            nodes,
        )

    timings = in_turns({"compare()": runner.compare, "join": join}, rounds=min(3, scale.rounds))
    return timings.line(
        *("compare()", "join"),
        key="read-compare",
        work=f"compare two versions on {scale.rows:,} rows",
        against="one SQL join that counts the equal outputs",
        goal=3,
    )


def _read(scale: Scale) -> Iterator[Line]:
    rows = min(scale.rows, 100_000)
    plain = Item._default_manager.filter(pk__lte=rows)
    both = with_outputs(plain, length=MeasuredRunner, again=MeasuredRunner)
    timings = in_turns(
        {"pages": lambda: [list(both[:PAGE]) for _ in range(PAGES)]}, rounds=2 * scale.rounds + 1
    )
    yield Line(
        key="read-page",
        database=connection.vendor,
        work=f"a page of {PAGE} rows with the outputs of two runners",
        against="",
        value=timings.medians()["pages"] / PAGES * 1000,
        goal=4,
        unit="ms",
    )
    one = with_outputs(plain, length=MeasuredRunner)
    timings = in_turns(
        {"with outputs": lambda: list(one.all()), "without": lambda: list(plain.all())},
        rounds=scale.rounds,
    )
    yield timings.line(
        *("with outputs", "without"),
        key="read-outputs",
        work=f"read {rows:,} rows with their outputs",
        against="without them",
        goal=3,
    )


def _landed(scale: Scale) -> Line:
    timings = executed({"landed": LandedRunner(), "kept": TrivialRunner()}, scale)
    return timings.line(
        *("landed", "kept"),
        key="read-landed",
        work=f"execute {scale.backfill:,} rows whose outputs are landed by OUTPUT_FIELDS",
        against="without landing",
        goal=1.5,
    )


def _exported(scale: Scale) -> Line:
    return Line(
        key="read-export",
        database=connection.vendor,
        work=f"memory of exporting {scale.rows:,} rows as CSV",
        against="before it",
        value=megabytes("bench.reading:export_of", scale.rows),
        goal=30,
        unit="MB",
    )


def export_of(rows: str) -> Callable[[], object]:
    def export(most: int) -> None:
        queryset = Item._default_manager.filter(pk__lte=most)
        deque(as_text(Records(MeasuredRunner(), queryset), "csv"), maxlen=0)

    export(PAGE)
    return lambda: export(int(rows))
