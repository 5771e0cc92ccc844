"""Successes that ended while another version was the runner's own, and so are not landed yet.

They are a candidate's whose version has been raised, or those of a version that is taken up again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

from autorun.conf import settings
from autorun.declare.base import Runner
from autorun.declare.hooks import every_row
from autorun.declare.nodes import nodes_of
from autorun.execution.landing import Landing
from autorun.execution.refusals import Refusals
from autorun.execution.results import Result
from autorun.models import Node, Run
from autorun.planning.on_demand import backfill_now
from autorun.planning.scope import Scope
from autorun.state.clock import DatabaseNow
from autorun.state.keys import key_kind
from autorun.state.logs import get_logger
from autorun.state.transactions import Halving, repeated_on_conflict

logger = get_logger(__name__)

#: Successes that one transaction lands.
AT_ONCE = 100


def land_unlanded(runner: Runner) -> None:
    """Land current successes of the runner's version that ended while another was its own.

    A row that cannot be landed runs again, and so fails with the reason. What cannot be landed now,
    such as a row that the project holds locked, is left to the next sweep.
    """
    if not runner.lands:
        return
    own, *others = nodes_of(runner)
    Node.objects.filter(pk__in=others).update(unlanded_at=DatabaseNow())
    until = Node.objects.values_list("unlanded_at", flat=True).get(pk=own)
    if until is None:
        return
    runs = Run.objects.of(own).current().succeeded().order_by("pk")
    runs = runs.filter(finished_at__lte=until, outputs__isnull=False)
    after, landed, is_done = 0, 0, True
    while page := list(runs.filter(pk__gt=after)[:AT_ONCE]):
        after = page[-1].pk
        landed += len(page)
        is_done &= _land(runner, page)
    if is_done:
        Node.objects.filter(pk=own, unlanded_at__lte=until).update(unlanded_at=None)
    logger.info("%s: outputs of %d runs that ended by %s are landed.", runner.label, landed, until)


def _land(runner: Runner, runs: Sequence[Run]) -> bool:
    """Land these successes, in halves if some are refused; False if some are left for later."""
    kind, landing = key_kind(runner.get_model()), Landing(runner)
    results = [
        Result(
            *(run.pk, Run.Status.SUCCEEDED, run.attempts, run.fingerprint, json.dumps(run.outputs)),
            key=kind.of(run),
        )
        for run in runs
    ]
    landed: list[Result] = []
    refusals = Refusals(landed)
    halving = Halving(results, fail=refusals.add, probe=lambda: None, using=settings.DATABASE)
    for some in halving:
        try:
            repeated_on_conflict(partial(_land_current, landing, some))
            landed += some
        except Exception as error:  # noqa: BLE001  halved
            halving.errors.append(error)
            if refusals.is_hopeless_after(error):
                break
    ended = refusals.ended(results, pause=0.0)
    failed = [kind.to_pk(each.key) for each in ended if each.status == Run.Status.FAILED]
    if failed:
        backfill_now(runner, Scope(force=True), every_row(runner).filter(pk__in=failed))
    return len(failed) == len(ended)


def _land_current(landing: Landing, results: Sequence[Result]) -> None:
    runs = Run.objects.current().filter(pk__in=[each.run_id for each in results]).order_by("pk")
    current = set(runs.select_for_update().values_list("pk", flat=True))
    if still := [each for each in results if each.run_id in current]:
        landing.land(still)
