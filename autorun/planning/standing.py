"""How one candidate stands: everything there is to know before its run is started, in one query."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import connections

from autorun.models import Node, Run
from autorun.planning.statements import Candidates, current_run_of_candidate
from autorun.state.keys import Key
from autorun.state.sql import Fragment, table


@dataclass(frozen=True)
class Standing:
    """A row with the fingerprint of its input, and its current run, if it has one.

    `is_free` says that nothing is in the way of a new run: no other one of the row is pending, and
    the node is not paused.
    """

    key: Key
    fingerprint: str
    run_id: int | None
    is_done: bool
    is_free: bool


def standing_of(candidates: Candidates, *, using: str) -> Standing | None:
    """How the only one of the candidates stands; None where there is none."""
    connection = connections[using]
    current = current_run_of_candidate(connection, candidates)
    pending = _pending_run_of(candidates)
    sql = (
        f"SELECT d.k, d.f, r.id, r.fingerprint = d.f, "
        f"EXISTS (SELECT 1 FROM {table(Run, connection)} AS p WHERE {pending.sql}), "
        f"EXISTS (SELECT 1 FROM {table(Node, connection)} AS n "
        "WHERE n.id = %s AND n.paused_at IS NOT NULL) "
        f"FROM ({candidates.source.sql}) AS d "
        f"LEFT JOIN {table(Run, connection)} AS r ON {current.sql}"
    )
    params = [*pending.params, candidates.node_id, *candidates.source.params, *current.params]
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        found = cursor.fetchone()
    if found is None:
        return None
    key, fingerprint, run_id, is_done, is_pending, is_paused = found
    return Standing(
        key=key,
        fingerprint=getattr(fingerprint, "hex", fingerprint),
        run_id=run_id,
        is_done=bool(is_done),
        is_free=not (is_pending or is_paused),
    )


def _pending_run_of(candidates: Candidates) -> Fragment:
    """The condition that `p` is a pending run of `d`, current or not."""
    name = "p.object_id = d.k AND p.object_key = ''"
    if not candidates.kind.is_integer:
        name = "p.object_id = 0 AND p.object_key = d.k"
    sql = f"p.node_id = %s AND {name} AND p.status = {Run.Status.PENDING:d}"
    return Fragment(sql, (candidates.node_id,))
