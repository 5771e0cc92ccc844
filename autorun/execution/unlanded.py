"""Successes that ended while another version was the runner's own, and so are not landed yet.

They are a candidate's whose version has been raised, or those of a version that is taken up again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from django.db.models import QuerySet

from autorun.conf import settings
from autorun.declare.base import Runner
from autorun.declare.hooks import every_row
from autorun.declare.nodes import node_of, nodes_of, runners_by_node
from autorun.execution.landing import Landing, NotLanded, note_unlanded
from autorun.execution.refusals import Refusals
from autorun.execution.results import Result
from autorun.models import Node, Run
from autorun.planning.on_demand import backfill_now
from autorun.planning.scope import Scope
from autorun.state.exception_text import one_line
from autorun.state.keys import key_kind
from autorun.state.logs import get_logger
from autorun.state.transactions import Halving, repeated_on_conflict

logger = get_logger(__name__)

#: Successes that one transaction lands.
AT_ONCE = 100


def land_unlanded(runner: Runner) -> None:
    """Land current successes of the runner's version that ended while another was its own.

    A row that cannot be landed runs again, and so fails with the reason or waits for its lock. If
    nothing can be landed, the next sweep tries again.
    """
    if not runner.lands:
        return
    others = _others(runner)
    repeated_on_conflict(partial(note_unlanded, others))
    own = node_of(runner)
    until = Node.objects.values_list("unlanded_at", flat=True).get(pk=own.pk)
    if until is None:
        return
    runs = Run.objects.of(own).current().succeeded().order_by("pk")
    runs = runs.filter(finished_at__lte=until, outputs__isnull=False)
    after, landed = 0, 0
    latest: list[Result] = []
    try:
        while page := list(runs.filter(pk__gt=after)[:AT_ONCE]):
            after = page[-1].pk
            latest = _land(runner, page, before=latest)
            landed += len(latest)
    except NotLanded as error:
        message = "%s: landed outputs of %d runs; the next sweep tries again, because: %s"
        logger.warning(message, runner.label, landed, one_line(error.__cause__ or error))
    else:
        Node.objects.filter(pk=own.pk, unlanded_at__lte=until).update(unlanded_at=None)
        message = "%s: landed outputs of %d runs that ended by %s."
        logger.info(message, runner.label, landed, until)
    # A worker with other code may have landed a version of its own meanwhile.
    repeated_on_conflict(partial(note_unlanded, others))


def _others(runner: Runner) -> QuerySet[Node]:
    """The nodes that were the runner's own, without those that another runner has taken up."""
    labels = runners_by_node().labels
    taken = [digest for digest, found in labels.items() if {*found} - {runner.label}]
    return Node.objects.filter(pk__in=nodes_of(runner)[1:]).exclude(digest__in=taken)


def _land(runner: Runner, runs: Sequence[Run], *, before: Sequence[Result]) -> list[Result]:
    """Land these successes, in halves if some are refused. Return those that were landed.

    Raises NotLanded if further ones would be refused, too: if none of these can be landed, and none
    was landed `before`.
    """
    kind, landing = key_kind(runner.get_model()), Landing(runner)
    results = [
        Result(
            *(run.pk, Run.Status.SUCCEEDED, run.attempts, run.fingerprint, json.dumps(run.outputs)),
            key=kind.of(run),
        )
        for run in runs
    ]
    landed: list[Result] = []
    tried = [*before]
    refusals = Refusals(tried)
    halving = Halving(results, fail=refusals.add, probe=lambda: None, using=settings.DATABASE)
    for some in halving:
        try:
            landed += repeated_on_conflict(partial(_land_current, landing, some))
            tried += some
        except Exception as error:  # noqa: BLE001  halved
            halving.errors.append(error)
            if refusals.is_hopeless_after(error):
                break
    else:
        _run_again(runner, [kind.to_pk(each.key) for each in refusals.ended(results, pause=0.0)])
        return landed
    raise halving.errors[-1]


def _run_again(runner: Runner, keys: Sequence[Any]) -> None:
    if keys:
        backfill_now(runner, Scope(force=True), every_row(runner).filter(pk__in=keys))


def _land_current(landing: Landing, results: Sequence[Result]) -> list[Result]:
    """Land the results that are still current. Return them."""
    runs = Run.objects.current().filter(pk__in=[each.run_id for each in results]).order_by("pk")
    current = set(runs.select_for_update().values_list("pk", flat=True))
    if still := [each for each in results if each.run_id in current]:
        landing.land(still)
    return still
