"""Work that must not cost more because of what rests, waits or runs elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from django.db import connection, transaction

from autorun.dispatch import releasing
from autorun.dispatch.publishing import redirected
from autorun.models import Chunk, Node
from bench import stage
from bench.measuring import Line, in_turns
from bench.scale import Scale
from bench.subject.runners import TrivialRunner

FEW, MANY = 4, 400


def measure(scale: Scale) -> Iterator[Line]:
    yield _claim_beside_many(scale)
    yield _release_of_many_nodes(scale)


def _claim_beside_many(scale: Scale) -> Line:
    """A claim of one chunk, rolled back, beside chunks that workers execute."""
    runner = TrivialRunner()

    def prepare(name: str) -> None:
        stage.empty_state()
        node = runner.get_node()
        running = FEW if name == f"beside {FEW}" else MANY
        _add_chunks(node, running, state=Chunk.State.RUNNING, first=1)
        _add_chunks(node, 1, state=Chunk.State.WAITING, first=1 + running)
        stage.settle()
        claim()

    def claim() -> None:
        for _ in range(20):
            with transaction.atomic():
                assert len(releasing._claim(runner.get_node().pk, {runner.label})) == 1
                transaction.set_rollback(True)

    contenders: dict[str, Callable[[], object]] = {f"beside {FEW}": claim, f"beside {MANY}": claim}
    timings = in_turns(contenders, rounds=scale.rounds, before=prepare)
    stage.empty_state()
    milliseconds = {name: each / 20 * 1000 for name, each in timings.medians().items()}
    return Line(
        key="cliff-claim",
        database=connection.vendor,
        work=f"a claim beside {MANY} chunks in flight",
        against=f"a claim beside {FEW}",
        value=timings.ratio(f"beside {MANY}", f"beside {FEW}"),
        goal=1.5,
        note=", ".join(f"{name} {each:.2f} ms" for name, each in milliseconds.items()),
    )


def _release_of_many_nodes(scale: Scale) -> Line:
    """Nodes with one waiting chunk each, released in pages, and one by one as workers do."""
    runner = TrivialRunner()
    of_model = {"content_type_id": runner.get_node().content_type_id, "version": "cliff"}
    first, number = 1 << 40, scale.nodes
    ids = range(first, first + number)
    Node.objects.bulk_create(Node(pk=pk, title=str(pk), digest=str(pk), **of_model) for pk in ids)

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
    seconds = timings.medians()
    return Line(
        key="cliff-release-nodes",
        database=connection.vendor,
        work=f"release of {number:,} nodes with one chunk each",
        against="one by one",
        value=timings.ratio("pages", "one by one"),
        goal=0.1,
        seconds=seconds,
        note=", ".join(f"{name} {each:.2f} s" for name, each in seconds.items()),
    )


def _add_chunks(node: Node, number: int, *, state: Chunk.State, first: int) -> None:
    Chunk.objects.bulk_create(
        Chunk(pk=first + each, node=node, runner=TrivialRunner().label, size=1, state=state)
        for each in range(number)
    )
