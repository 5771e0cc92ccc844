"""Work that must not cost more because of what rests, waits or runs elsewhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from django.db import connection, transaction

from autorun.declare import nodes
from autorun.dispatch import releasing
from autorun.dispatch.publishing import Message, redirected
from autorun.models import UNCHANGING, Batch, Chunk, Node, Run, SpilledTrigger
from autorun.runner import QuerySetRunner
from autorun.state.clock import NOW_SQL, new_chunk_id
from autorun.tasks import plan
from autorun.upkeep import folding, spilled
from bench import competing, stage
from bench.measuring import Line, Timings, in_turns
from bench.memory import megabytes
from bench.scale import Scale
from bench.subject.models import Item, LongText
from bench.subject.runners import TrivialRunner

FEW, MANY = 4, 400


def measure(scale: Scale) -> Iterator[Line]:
    yield _claim_beside(
        scale,
        MANY,
        is_paused=False,
        key="cliff-claim",
        work=f"a claim beside {MANY} chunks in flight",
        against=f"a claim beside {FEW}",
    )
    yield _claim_beside(
        scale,
        scale.rows // 10,
        is_paused=True,
        key="cliff-paused",
        work=f"a claim beside {scale.rows // 10:,} chunks of a paused batch",
        against=f"a claim beside {FEW} of them",
    )
    yield _release_of_many_nodes(scale)
    yield _fold_at_rest(scale)
    yield _prune_nothing(scale)
    yield _look_at_a_hot_row(scale)
    yield from _given_list(scale)
    yield _spilled(scale)
    yield _large_rows(scale)
    if connection.vendor == "postgresql":
        yield _compete(scale)


def _claim_beside(scale: Scale, many: int, *, is_paused: bool, **line: Any) -> Line:
    """A claim of one chunk, rolled back, beside few and many others that it cannot take.

    They are of a paused batch, or workers execute them.
    """
    runner = TrivialRunner()

    def prepare(name: str) -> None:
        stage.empty_state()
        node, number = runner.get_node(), FEW if name == f"beside {FEW}" else many
        state, batch = Chunk.State.RUNNING, None
        if is_paused:
            paused = {"runner": runner.label, "state": Batch.State.PAUSED}
            state, batch = Chunk.State.WAITING, Batch.objects.create(node=node, **paused)
        _add_chunks(node, number, state=state, first=1, batch=batch)
        _add_chunks(node, 1, state=Chunk.State.WAITING, first=1 + number)
        with transaction.atomic():
            nodes.lock_free(
                [runner.get_node().pk]
            )  # makes the lock, which is there after the first release
        stage.settle()
        claim()

    def claim() -> None:
        for _ in range(20):
            with transaction.atomic():
                claimed = releasing._claim(runner.get_node().pk, {runner.label}, by_batch=is_paused)
                assert len(claimed) == 1
                transaction.set_rollback(True)

    names = f"beside {many:,}", f"beside {FEW}"
    contenders: dict[str, Callable[[], object]] = dict.fromkeys(names, claim)
    timings = in_turns(contenders, rounds=scale.rounds, before=prepare)
    stage.empty_state()
    milliseconds = {name: each / 20 * 1000 for name, each in timings.medians().items()}
    return Line(
        database=connection.vendor,
        value=timings.ratio(*names),
        goal=1.5,
        note=", ".join(f"{name} {each:.2f} ms" for name, each in milliseconds.items()),
        **line,
    )


def _release_of_many_nodes(scale: Scale) -> Line:
    """Nodes with one waiting chunk each, released in pages, and one by one as workers do."""
    runner, number = TrivialRunner(), scale.nodes
    ids = _add_nodes(number)

    def prepare(_: str) -> None:
        stage.empty_state()
        Chunk.objects.bulk_create(
            Chunk(pk=pk, node_id=pk, runner=runner.label, size=1) for pk in ids
        )
        stage.settle()

    def one_by_one() -> None:
        assert sum(releasing.release(pk).chunks for pk in ids) == number

    def in_pages() -> None:
        assert releasing.release_everywhere() == number

    contenders: dict[str, Callable[[], object]] = {"pages": in_pages, "one by one": one_by_one}
    with redirected(lambda messages: None):
        timings = in_turns(contenders, rounds=scale.rounds, before=prepare)
    stage.empty_state()
    Node.objects.filter(pk__in=ids).delete()
    return _line(timings, "pages", "one by one", goal=0.1)(
        key="cliff-release-nodes", work=f"release of {number:,} nodes with one chunk each"
    )


def _fold_at_rest(scale: Scale) -> Line:
    """A look for something to fold, at nodes that have nothing but a chunk with failures."""
    runner, number = TrivialRunner(), 5 * scale.nodes
    stage.empty_state()
    ids = _add_nodes(number)
    ended = {"runner": runner.label, "state": Chunk.State.FINISHED, "size": 1, "failed": 1}
    Chunk.objects.bulk_create(Chunk(pk=pk, node_id=pk, **ended) for pk in ids)
    stage.settle()
    contenders: dict[str, Callable[[], object]] = {
        "fold": folding.fold_everywhere,
        "read": lambda: list(Node.objects.all()),
    }
    timings = in_turns(contenders, rounds=scale.rounds)
    stage.empty_state()
    Node.objects.filter(pk__in=ids).delete()
    return _line(timings, "fold", "read", goal=1.0)(
        key="cliff-fold", work=f"a look for something to fold at {number:,} nodes at rest"
    )


def _prune_nothing(scale: Scale) -> Line:
    """A look for runs to prune, where every tenth row has a superseded run of late."""
    node = TrivialRunner().get_node()
    few, many = f"beside {scale.rows // 10:,}", f"beside {scale.rows:,}"
    columns = "node_id, object_id, object_key, fingerprint, is_current, chunk_id, status, attempts"

    def prepare(name: str) -> None:
        stage.empty_state()
        number = scale.rows if name == many else scale.rows // 10
        for is_current, count in (("TRUE", number), ("NULL", number // 10)):
            stage.execute(
                f"INSERT INTO autorun_run ({columns}, finished_at) SELECT %s, i, '', %s, "
                f"{is_current}, %s + i / 250, 1, 1, {NOW_SQL[connection.vendor]} "
                f"FROM {stage.series(count)}",
                [node.pk, UNCHANGING, new_chunk_id()],
            )
        stage.settle()

    contenders: dict[str, Callable[[], object]] = {few: folding.prune, many: folding.prune}
    timings = in_turns(contenders, rounds=scale.rounds, before=prepare)
    stage.empty_state()
    return _line(timings, many, few, goal=1.5)(
        key="cliff-prune", work=f"a look for something to prune beside {scale.rows:,} runs"
    )


def _look_at_a_hot_row(scale: Scale) -> Line:
    """A message about a row that has not changed, with many superseded runs or with none."""
    runner, label = TrivialRunner(), Item._meta.label
    number = 30 * scale.saves
    stage.empty_state()
    stage.fill_items(2)
    plan(label, [1])
    plan(label, [2])
    node, chunk = runner.get_node(), Chunk.objects.latest("pk")
    history = {"node": node, "object_id": 1, "is_current": None, "chunk": chunk}
    done = {"status": Run.Status.SUCCEEDED, "attempts": 1, "fingerprint": UNCHANGING}
    Run.objects.bulk_create((Run(**history, **done) for _ in range(number)), batch_size=5_000)
    stage.settle()
    few, many = "none", f"{number:,}"

    def look(pk: int) -> Callable[[], object]:
        return lambda: [plan(label, [pk]) for _ in range(20)]

    timings = in_turns({few: look(2), many: look(1)}, rounds=scale.rounds)
    stage.empty_state()
    return _line(timings, many, few, goal=1.2)(
        key="cliff-hot-row", work=f"a message about a row with {number:,} superseded runs"
    )


def _given_list(scale: Scale) -> Iterator[Line]:
    """A backfill of a list of keys, and of the same rows as a queryset."""
    number = scale.rows // 10
    runner = TrivialRunner()
    stage.fill_items(number)
    stage.hold(runner)
    contenders: dict[str, Callable[[], object]] = {
        "list": backfill_of_list(number),
        "queryset": lambda: runner.backfill(Item.objects.filter(pk__gt=0)),
    }
    timings = in_turns(contenders, rounds=scale.rounds, before=lambda _: stage.empty_state())
    work = f"backfill of a list of {number:,} keys"
    yield _line(timings, "list", "queryset", goal=3)(key="cliff-list", work=work)
    stage.empty_state()
    yield Line(
        key="cliff-list-memory",
        database=connection.vendor,
        work=work,
        against="memory before it",
        value=megabytes("bench.cliffs:backfill_of_list", number),
        goal=60,
        unit="MB more",
    )
    stage.let_go(runner)
    stage.empty_state()
    stage.fill_items(0)


def backfill_of_list(number: int | str) -> Callable[[], object]:
    keys = list(range(1, int(number) + 1))
    TrivialRunner().backfill(Item.objects.filter(pk__in=keys[:10]))
    return lambda: TrivialRunner().backfill(Item.objects.filter(pk__in=keys))


def _spilled(scale: Scale) -> Line:
    """Single saves that no broker took, planned by one process that takes portion after portion."""
    number = scale.rows // 20
    runner, label = TrivialRunner(), Item._meta.label
    stage.fill_items(number)
    stage.hold(runner)
    waiting: list[Message] = []

    def prepare(_: str) -> None:
        stage.empty_state()
        some = (SpilledTrigger(model_label=label, keys=[pk]) for pk in range(1, number + 1))
        SpilledTrigger.objects.bulk_create(some, batch_size=5_000)
        stage.settle()

    def plan_all() -> None:
        assert spilled.hand_out_spilled() > 0
        while waiting:
            spilled.plan_spilled(*waiting.pop(0).args)
        assert not SpilledTrigger.objects.exists()

    with redirected(waiting.extend):
        timings = in_turns({"spilled": plan_all}, rounds=scale.rounds, before=prepare)
    stage.let_go(runner)
    stage.empty_state()
    stage.fill_items(0)
    return Line(
        key="cliff-spilled",
        database=connection.vendor,
        work=f"{number:,} single saves that no broker took: planned by one process",
        against="",
        value=number / timings.medians()["spilled"],
        goal=20_000,
        at_least=True,
        unit="rows/s",
        rows=number,
    )


class LongTextRunner(QuerySetRunner):
    DATA_MODEL = LongText
    ANALYSIS = "Trivial"
    ANALYSIS_VERSION = "1.0"
    ANALYSIS_CONFIGURATION = {"factor": 11}
    INPUT_KEY = "title"
    SCHEDULE = None
    ON_SAVE = False

    def get_instance_representation(self, instance: Any) -> str:
        return str(instance.text)


def _large_rows(scale: Scale) -> Line:
    """Rows of half a megabyte, which Python reads to plan them."""
    number = scale.saves // 2
    LongText.objects.bulk_create(
        (LongText(text=f"{each:8}" * 65_536) for each in range(number)), batch_size=10
    )
    used = megabytes("bench.cliffs:backfill_of_large_rows")
    stage.empty_state()
    stage.empty(LongText._meta.db_table)
    return Line(
        key="cliff-large-rows",
        database=connection.vendor,
        work=f"plan {number:,} rows of 0.5 MB with a Python representation",
        against="memory before it",
        value=used,
        goal=150,
        unit="MB more",
    )


def backfill_of_large_rows() -> Callable[[], object]:
    runner = LongTextRunner()
    stage.hold(runner)
    runner.backfill(LongText.objects.all()[:2])
    return partial(runner.backfill, force=True)


def _compete(scale: Scale) -> Line:
    """Processes that end a chunk of one node and release it, over and over."""
    runner = TrivialRunner()
    stage.empty_state()
    node = runner.get_node()
    _add_chunks(node, 50 * scale.saves, state=Chunk.State.WAITING, first=1)
    stage.settle()
    with redirected(lambda messages: None):
        releasing.release(node.pk)
    module = [sys.executable, "-m", "bench.competing", str(node.pk)]
    printed = subprocess.run(module, check=True, capture_output=True, text=True).stdout
    stage.empty_state()
    return Line(
        key="cliff-compete",
        database=connection.vendor,
        work=f"releases of one node by {competing.PROCESSES} processes",
        against="each ends a chunk before",
        value=float(printed.split()[1]),
        goal=600,
        at_least=True,
        unit="a second",
        note=f"by one process {float(printed.split()[0]):.0f} a second",
    )


def _line(timings: Timings, contender: str, reference: str, *, goal: float) -> Callable[..., Line]:
    return partial(timings.line, contender, reference, against=reference, goal=goal)


def _add_nodes(number: int) -> range:
    """Make so many nodes; their ids."""
    of_model = {"content_type_id": TrivialRunner().get_node().content_type_id, "version": "cliff"}
    ids = range(1 << 40, (1 << 40) + number)
    Node.objects.bulk_create(Node(pk=pk, title=str(pk), digest=str(pk), **of_model) for pk in ids)
    return ids


def _add_chunks(
    node: Node, number: int, *, state: Chunk.State, first: int, batch: Batch | None = None
) -> None:
    like = {"node": node, "runner": TrivialRunner().label, "size": 1, "state": state}
    chunks = (Chunk(pk=first + each, batch=batch, **like) for each in range(number))
    Chunk.objects.bulk_create(chunks, batch_size=5_000)
