"""Reports failures to `AUTORUN["ON_FAILURE"]`, at most once per runner and interval.

A worker reports a failure at once, unless the runner's last report is too recent. When the interval
is over, upkeep has a worker report later failures together.
"""

import datetime as dt
from collections.abc import Iterator
from typing import Any

from django.db.models import Max
from django.utils import timezone
from django.utils.module_loading import import_string

from autorun.conf import settings
from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.declare.interruption import time_limit
from autorun.declare.nodes import node_of
from autorun.dispatch.publishing import Message, publish
from autorun.models import Failure, Node, Pulse, Run
from autorun.notifications import FailureReport
from autorun.observe.failures import group_failures
from autorun.observe.held_up import held_up
from autorun.state.clock import from_now
from autorun.state.logs import get_logger
from autorun.state.pulses import beat_of, give_back_turn, name_for, note, take_turn
from autorun.state.user_code import UserCode
from autorun.state.words import because

logger = get_logger(__name__)

#: Seconds that the callback may take: a mail server that does not answer must not block a worker.
CALLBACK_TIMEOUT = 30.0
#: Seconds between two checks by upkeep for failures that have not been reported.
CHECK_EVERY = 60.0
#: Seconds to wait after the callback failed: each try may take CALLBACK_TIMEOUT.
RETRY_EVERY = 300.0
PREFIX = "on_failure"
NOTIFY = "autorun.notify"


def notify_soon(runner: Runner) -> bool:
    """Report the runner's failures if a report is due; return whether it was. Never raises."""
    if settings.ON_FAILURE is None:
        return False
    try:
        return _notify(runner)
    except Exception:
        logger.exception("%s: its failures could not be reported.", runner.label)
        return False


def hand_over_reports() -> int:
    """Have a worker report failures that have not been reported yet; return for how many runners.

    The callback is user code, so upkeep only finds out which reports are due.
    """
    if settings.ON_FAILURE is None:
        return 0
    every = min(CHECK_EVERY, settings.ON_FAILURE_EVERY.total_seconds())
    if not take_turn("on_failure", every=every):
        return 0
    messages = [
        Message(NOTIFY, (label,), queue=settings.QUEUE, expires=CHECK_EVERY) for label in _due()
    ]
    if messages:
        publish(messages)
    return len(messages)


def _notify(runner: Runner) -> bool:
    interval: dt.timedelta = settings.ON_FAILURE_EVERY
    reported, tried = _reported_name(runner), _tried_name(runner)
    now = timezone.now()
    reported_at = beat_of(reported)
    if reported_at is not None and now - reported_at < interval:
        return False
    if not take_turn(tried, every=min(RETRY_EVERY, interval.total_seconds()), early=1.0):
        return False
    since = now - 2 * interval if reported_at is None else reported_at
    groups = tuple(group_failures(runner, within=now - since))
    if not groups:
        give_back_turn(tried)
        return False
    # Record the start of the period before the call: if the callback raises, the next report covers
    # it again.
    note(reported, since)
    reasons = [
        *Node.objects.filter(pk=node_of(runner).pk).values_list("paused_because", flat=True),
        *(f"{each.what}{because(each.reason)}" for each in held_up(runner.label) if each.batch),
    ]
    report = FailureReport(
        runner.label,
        str(runner.get_analysis()),
        since,
        groups,
        paused="; ".join(filter(None, reasons)),
    )
    message = f"AUTORUN['ON_FAILURE'] took longer than {CALLBACK_TIMEOUT:g} s."
    with UserCode("AUTORUN['ON_FAILURE']"), time_limit(CALLBACK_TIMEOUT, message=message):
        given: Any = settings.ON_FAILURE
        (import_string(given) if isinstance(given, str) else given)(report)
    # Failures after the call started go into the next report.
    note(reported, beat_of(tried) or now)
    return True


def _due() -> Iterator[str]:
    """Labels of runners with failures that have not been reported, whose next report is due."""
    interval: dt.timedelta = settings.ON_FAILURE_EVERY
    retry = min(interval, dt.timedelta(seconds=RETRY_EVERY))
    failed = Failure.objects.filter(
        failed_at__gt=from_now(-2 * interval.total_seconds()),
        run__is_current=True,
        run__status=Run.Status.FAILED,
    )
    newest = failed.values_list("run__chunk__runner").annotate(Max("failed_at")).order_by()
    failed_at = dict(newest)
    beats = dict(Pulse.objects.filter(name__startswith=PREFIX).values_list("name", "beat_at"))
    now = timezone.now()
    for runner in registry.runners():
        reported, tried = beats.get(_reported_name(runner)), beats.get(_tried_name(runner))
        if reported is None:
            is_due = runner.label in failed_at
        else:
            # The last report failed if it did not record its end.
            is_unreported = tried is not None and reported < tried
            is_new = runner.label in failed_at and failed_at[runner.label] > reported
            is_due = now - reported >= interval and (is_unreported or is_new)
        if is_due and (tried is None or now - tried >= retry):
            yield runner.label


def _reported_name(runner: Runner) -> str:
    """The pulse that keeps the end of the last report's period; names have up to 64 characters."""
    return name_for(PREFIX, runner.label)


def _tried_name(runner: Runner) -> str:
    return _reported_name(runner).replace(PREFIX, f"{PREFIX}_try")
