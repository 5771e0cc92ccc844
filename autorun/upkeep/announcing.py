"""Signals about runs and batches that upkeep ends: a worker sends them, as receivers are user code.

A message that is lost announces nothing: signals are sent at most once.
"""

from collections.abc import Sequence

from autorun import signals
from autorun.conf import settings
from autorun.dispatch.publishing import Message, publish
from autorun.exceptions import AutorunError
from autorun.models import Failure
from autorun.signals import Ending
from autorun.state.exception_text import ExceptionText
from autorun.state.logs import get_logger

logger = get_logger(__name__)

ANNOUNCE = "autorun.announce"


def hand_over_failures(run_ids: Sequence[int]) -> None:
    """Let a worker announce runs that have failed with no attempts left."""
    if run_ids and signals.run_failed.receivers:
        _hand_over(list(run_ids), [])


def hand_over_batches(batch_ids: Sequence[int]) -> None:
    """Let a worker announce that batches have finished."""
    if batch_ids and signals.batch_finished.receivers:
        _hand_over([], list(batch_ids))


def announce(run_ids: Sequence[int], batch_ids: Sequence[int]) -> None:
    """Send the signals of failed runs and of finished batches."""
    failures = Failure.objects.filter(run__in=run_ids).select_related("run__chunk")
    for failure in failures.order_by("run", "-attempt"):
        run = failure.run
        if failure.attempt != run.attempts:
            continue
        text = ExceptionText(
            failure.exception_class, failure.message, failure.traceback, failure.log_tail
        )
        key = run.object_key or run.object_id
        signals.announce_runs(run.chunk.runner, [Ending(run.pk, key, run.attempts, failure=text)])
    for batch_id in batch_ids:
        signals.announce_batch(batch_id)


def _hand_over(*ids: list[int]) -> None:
    try:
        publish([Message(ANNOUNCE, ids, queue=settings.QUEUE)])
    except AutorunError as error:
        logger.warning("No worker announces what upkeep has ended: %s", error)
