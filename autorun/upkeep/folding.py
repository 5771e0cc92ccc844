"""Folding: the counts of old chunks are added to their node's and batch's totals, once.

So progress() need not sum all chunks that ever existed. A chunk that finished without a failure
keeps its counts. One with failures cannot be folded, because someone may ignore its runs: the
failed runs of many old chunks are gathered in a few, so that the others can be folded.

Pruning deletes old history: superseded runs, and chunks and batches without any runs left.
"""

import datetime as dt
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from django.db import IntegrityError, connections
from django.db.models import Exists, F, OuterRef, Q, Subquery

from autorun.conf import settings
from autorun.models import Batch, Chunk, Failure, Node, Run
from autorun.state import pulses
from autorun.state.clock import RANDOM_BITS, first_chunk_id_at, from_now
from autorun.state.logs import get_logger
from autorun.state.managers import RETIRED, ChunkQuerySet
from autorun.state.sql import recordset, table, update_from
from autorun.state.transactions import is_passing, repeated_on_conflict, sum_of_each

logger = get_logger(__name__)

#: Chunks folded in one transaction, and nodes whose chunks are.
FOLDED_AT_ONCE = 5_000
NODES_AT_ONCE = 200
#: A node is folded once it has so many settled chunks, or one that ended so many seconds ago.
FEW = 500
LONG_AGO = 3600
#: Seconds after its end before a chunk is folded: its worker may be finding out whether its last
#: commit arrived.
SETTLED_AFTER = 600
#: Hours that a node remembers, one more than pages show: the first is incomplete.
HOURS = 25
#: The columns of a node that sum up chunks, after "folded_".
COUNTED = ("succeeded", "failed", "ignored", "not_applicable")
#: Names the lock that a process holds while it folds.
LOCK = "fold"
#: Seconds after its end before a chunk's failures are moved: pages count them by hour for a day.
QUIET = 25 * 3600
#: Chunks with failures that a node may keep, and those read in one transaction.
MOST_CHUNKS = 500
READ_AT_ONCE = 5_000
#: Failures in one chunk: pages of runs read chunks as a whole.
MOST_FAILURES = 1_000

_DAY = int(dt.timedelta(days=1) / dt.timedelta(milliseconds=1)) << RANDOM_BITS
#: Runs deleted in one transaction.
DELETED_AT_ONCE = 2_000
#: Runs deleted in one call. A caller that reaches it calls again.
MOST_RUNS = 50 * DELETED_AT_ONCE
#: Runs of the chunks made after the cutoff that are read for the highest id before it.
FEW_RUNS = 1_000


def fold_everywhere(*, at_most: int = 20 * FOLDED_AT_ONCE) -> int:
    """Fold the finished chunks of every node with more than a few. Return how many."""
    # Subqueries for each node: a join may read all chunks. The first one is empty at most nodes.
    each = Chunk.objects.of(OuterRef("pk"))
    settled = ended(each, quiet=SETTLED_AFTER).filter(failed=0).values("pk")
    old = ended(each, quiet=LONG_AGO).filter(failed=0).values("pk")
    nodes = Node.objects.annotate(
        first=Subquery(settled[:1]), old=Subquery(old[:1]), many=Subquery(settled[FEW - 1 : FEW])
    )
    is_worth_it = Q(old__isnull=False) | Q(many__isnull=False)
    nodes = nodes.filter(first__isnull=False).filter(is_worth_it).order_by("pk")
    ids = list(nodes.values_list("pk", flat=True))
    pages = [ids[at : at + NODES_AT_ONCE] for at in range(0, len(ids), NODES_AT_ONCE)]
    return sum_of_each(partial(_fold_page, at_most=at_most), pages, name="Folding: nodes")


def fold(*node_ids: int, at_most: int = 20 * FOLDED_AT_ONCE, quiet: float = SETTLED_AFTER) -> int:
    """Add the counts of the nodes' finished chunks to their own. Return how many chunks."""
    folded = 0
    while folded < at_most:
        some = partial(_fold_some, node_ids, quiet=quiet)
        number = repeated_on_conflict(some)
        folded += number
        if number < FOLDED_AT_ONCE:
            break
    return folded


def _fold_page(node_ids: Sequence[int], *, at_most: int) -> int:
    try:
        return fold(*node_ids, at_most=at_most)
    except Exception as error:
        if is_passing(error):
            raise
        logger.warning("%d nodes are folded one by one: %s", len(node_ids), error)
    return sum_of_each(partial(fold, at_most=at_most), node_ids, name="Folding: node")


def hour_of(at: dt.datetime) -> int:
    """The hour of a time, as hours since 1970."""
    return int(at.timestamp() // 3600)


def drop_empty(*, quiet: float) -> int:
    """Fold and delete chunks whose runs have all been pruned or moved. Return how many."""
    # One with failures stays for as long as its batch: a batch does not sum up failures.
    first = Subquery(_empty(OuterRef("pk"), quiet=quiet).values("pk")[:1])
    nodes = Node.objects.annotate(first=first).filter(first__isnull=False)

    def drop(node_id: int) -> int:
        pulses.hold(LOCK)
        found = list(_empty(node_id, quiet=quiet)[:FOLDED_AT_ONCE])
        _count_in(found)._raw_delete(settings.DATABASE)
        return len(found)

    return sum_of_each(
        lambda node_id: repeated_on_conflict(partial(drop, node_id)),
        nodes.values_list("pk", flat=True),
        name="Dropping empty chunks: node",
    )


def _empty(node: Any, *, quiet: float) -> ChunkQuerySet[Chunk]:
    runs = Run.objects.filter(chunk=OuterRef("pk"))
    of_batch = Run.objects.filter(chunk__batch=OuterRef("batch"))
    goes_too = Q(~Exists(of_batch), batch__finished_at__lte=from_now(-quiet))
    empty = ended(Chunk.objects.of(node), quiet=quiet).filter(~Exists(runs))
    return empty.filter(Q(failed=0) | Q(batch=None) | goes_too)


def ended(chunks: ChunkQuerySet[Chunk], *, quiet: float) -> ChunkQuerySet[Chunk]:
    """Those of the chunks that are not folded, and finished `quiet` seconds ago or longer."""
    is_quiet = Q(finished_at=None) | Q(finished_at__lte=from_now(-quiet))
    return chunks.unfolded().finished().filter(is_quiet)


def _fold_some(node_ids: Sequence[int], *, quiet: float) -> int:
    pulses.hold(LOCK)
    # Not locked: no other process folds, and of a finished chunk others write only the lease.
    of_nodes = Chunk.objects.filter(node__in=node_ids)
    found = list(ended(of_nodes, quiet=quiet).filter(failed=0)[:FOLDED_AT_ONCE])
    if not found:
        return 0
    # All of their runs moved to other chunks, so pruning will never find them by a run.
    _count_in(found).filter(size=F("moved"))._raw_delete(settings.DATABASE)
    return len(found)


def _count_in(found: Sequence[Chunk]) -> ChunkQuerySet[Chunk]:
    """Add the chunks' counts to those of their nodes and batches. Return the chunks."""
    chunks = Chunk.objects.filter(pk__in=[chunk.pk for chunk in found])
    if chunks.unfolded().update(is_folded=True) != len(found):
        raise IntegrityError("Another process folds them: an old worker, which locks otherwise.")
    _count_in_nodes(found)
    _count_in_batches(found)
    return chunks


def _count_in_nodes(chunks: Iterable[Chunk]) -> None:
    sums: dict[int, Counter[str]] = defaultdict(Counter)
    hours: dict[int, Counter[str]] = defaultdict(Counter)
    for chunk in chunks:
        of_node = sums[chunk.node_id]
        of_node["succeeded"] += chunk.succeeded - chunk.superseded_succeeded
        of_node["failed"] += chunk.failed - chunk.superseded_failed
        of_node["ignored"] += chunk.cancelled - chunk.superseded_cancelled
        of_node["not_applicable"] += chunk.not_applicable - chunk.superseded_not_applicable
        if chunk.succeeded and chunk.finished_at is not None:
            hours[chunk.node_id][str(hour_of(chunk.finished_at))] += chunk.succeeded
    for node_id, known in Node.objects.filter(pk__in=sums).values_list("pk", "folded_hours"):
        hours[node_id].update(known)
    connection = connections[settings.DATABASE]
    columns = {"node_id": "bigint", **dict.fromkeys(COUNTED, "bigint"), "hours": "text"}
    rows = (
        (node_id, *(counts[name] for name in COUNTED), json.dumps(_latest(hours[node_id])))
        for node_id, counts in sorted(sums.items())
    )
    cast = "::jsonb" if connection.vendor == "postgresql" else ""
    own = table(Node, connection)
    added = ", ".join(f"folded_{name} = {own}.folded_{name} + s.{name}" for name in COUNTED)
    update_from(
        Node,
        f"{added}, folded_hours = s.hours{cast}",
        source=recordset(connection, columns, rows),
        key="node_id",
        returning="id",
    )


def _latest(hours: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(hours.items(), key=lambda each: int(each[0]))[-HOURS:])


def _count_in_batches(chunks: Iterable[Chunk]) -> None:
    sums: dict[int, Counter[str]] = defaultdict(Counter)
    for chunk in chunks:
        if chunk.batch_id is not None:
            for name in ("succeeded", "cancelled", "not_applicable"):
                sums[chunk.batch_id][f"folded_{name}"] += getattr(chunk, name)
    for batch_id in sorted(sums):
        added = {name: F(name) + number for name, number in sums[batch_id].items()}
        Batch.objects.filter(pk=batch_id).update(**added)


def gather_failures() -> int:
    """Gather the failed runs of nodes with many old chunks that have some; chunks freed of them."""
    many = Subquery(
        _with_failures(OuterRef("pk")).order_by().values("pk")[MOST_CHUNKS : MOST_CHUNKS + 1]
    )
    nodes = Node.objects.annotate(many=many).filter(many__isnull=False).order_by("pk")
    return sum_of_each(
        lambda node_id: repeated_on_conflict(partial(_gather, node_id)),
        nodes.values_list("pk", flat=True),
        name="Gathering failures: node",
    )


def _with_failures(node: object) -> ChunkQuerySet[Chunk]:
    chunks = ended(Chunk.objects.of(node), quiet=QUIET)
    return chunks.filter(failed__gt=0, failed__lt=MOST_FAILURES)


def _gather(node_id: int) -> int:
    pulses.hold(LOCK)
    chunks = _with_failures(node_id).select_for_update().order_by("pk")[:READ_AT_ONCE]
    # Listed by day, origin and batch, a run is found as before.
    alike: dict[tuple[object, ...], list[Chunk]] = defaultdict(list)
    for chunk in chunks:
        day = chunk.pk // _DAY
        alike[chunk.batch_id, chunk.runner, chunk.priority, day].append(chunk)
    return sum(map(_merge, alike.values()))


def _merge(chunks: Sequence[Chunk]) -> int:
    """Move the failed runs of `chunks` into the first of these. Return how many are now empty."""
    kept, moved, total = chunks[0], list[Chunk](), 0
    for chunk in chunks[1:]:
        if kept.failed + chunk.failed > MOST_FAILURES:
            total += _move(moved, kept)
            kept, moved = chunk, []
        else:
            kept.failed += chunk.failed
            moved.append(chunk)
    return total + _move(moved, kept)


def _move(chunks: Sequence[Chunk], kept: Chunk) -> int:
    if chunks:
        ids = [chunk.pk for chunk in chunks]
        Run.objects.failed().filter(chunk_id__in=ids).update(chunk_id=kept.pk)
        # In this order: MariaDB reads what it has just assigned.
        Chunk.objects.filter(pk__in=ids).update(moved=F("moved") + F("failed"), failed=0)
        number = sum(chunk.failed for chunk in chunks)
        Chunk.objects.filter(pk=kept.pk).update(
            size=F("size") + number, failed=F("failed") + number
        )
    return len(chunks)


def prune(*, at_most: int = MOST_RUNS) -> int:
    """Delete runs that are older than RETENTION and no longer current. Return how many.

    Current runs are the record of what is done, and stay at any age. So does the last success of a
    row whose current run has not succeeded, because it has the row's only outputs. Nothing stays of
    a row that is deleted.
    """
    if settings.RETENTION is None:
        return 0
    seconds = settings.RETENTION.total_seconds()
    cutoff = from_now(-seconds)
    deleted = _prune_runs(settings.RETENTION, at_most=at_most)
    if deleted:
        drop_empty(quiet=seconds)
    chunks = Chunk.objects.filter(batch=OuterRef("pk"))
    empty = Batch.objects.filter(~Exists(chunks), finished_at__lt=cutoff)
    ids = list(empty.values_list("pk", flat=True)[:DELETED_AT_ONCE])
    if ids:
        Batch.objects.filter(pk__in=ids).delete()
    return deleted


def _prune_runs(retention: dt.timedelta, *, at_most: int) -> int:
    cutoff = from_now(-retention.total_seconds())
    old = Run.objects.filter(is_current=None, finished_at__lt=cutoff)
    old = old.exclude(status=Run.Status.PENDING).exclude(_is_last_success()).order_by("pk")
    # Runs of later chunks are not read: there may be many superseded ones. A run that has moved to
    # one of them is deleted later.
    first_later = first_chunk_id_at(dt.datetime.now(dt.UTC) - retention)
    later = Run.objects.filter(chunk_id__gte=first_later).order_by("chunk_id")
    some = list(later.values_list("pk", flat=True)[:FEW_RUNS])
    if some:
        old = old.filter(pk__lte=max(some))
    deleted, last = 0, 0
    while deleted < at_most:
        found = dict(old.filter(pk__gt=last).values_list("pk", "chunk_id")[:DELETED_AT_ONCE])
        if not found:
            break
        repeated_on_conflict(partial(_delete, found))
        deleted, last = deleted + len(found), max(found)
    return deleted


def _is_last_success() -> Q:
    """The condition that a superseded run is the last success of its row."""
    row = {name: OuterRef(name) for name in ("node", "object_id", "object_key")}
    later = Run.objects.succeeded().filter(Q(is_current=True) | Q(pk__gt=OuterRef("pk")), **row)
    return Q(~Exists(later), ~Q(fingerprint=RETIRED), status=Run.Status.SUCCEEDED)


def _delete(chunk_of: dict[int, int]) -> None:
    # Locked, as a cancelled run may be about to make an earlier one current again.
    runs = Run.objects.filter(pk__in=chunk_of, is_current=None).select_for_update().order_by("pk")
    ids = list(runs.values_list("pk", flat=True))
    Failure.objects.filter(run_id__in=ids).delete()
    # Only failures refer to a run: a raw delete saves a search for other references.
    Run.objects.filter(pk__in=ids)._raw_delete(settings.DATABASE)
    left = Run.objects.filter(chunk_id=OuterRef("pk"))
    counted = Chunk.objects.filter(pk__in=set(chunk_of.values()), is_folded__in=[True])
    counted.filter(~Exists(left))._raw_delete(settings.DATABASE)
