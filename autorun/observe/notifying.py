"""Reports failures to `AUTORUN["ON_FAILURE"]`, at most once per runner and interval.

A worker reports a failure at once, unless the runner's last report is too recent. Upkeep reports
later failures together when the interval is over.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import logging
from typing import Any

from django.utils import timezone
from django.utils.module_loading import import_string

from autorun.conf import settings
from autorun.declare import registry
from autorun.declare.interruption import time_limit
from autorun.declare.runner import Runner
from autorun.models import Failure, Pulse, Run
from autorun.notifications import FailureReport
from autorun.observe.failures import group_failures
from autorun.state.clock import from_now
from autorun.state.pulses import beat_of, give_back_turn, note, take_turn
from autorun.state.user_code import UserCode

logger = logging.getLogger(__name__)

#: Seconds that the callback may take: a mail server that does not answer must not block a worker.
CALLBACK_TIMEOUT = 30.0
#: Seconds between two checks by upkeep for failures that have not been reported.
CHECK_EVERY = 60.0
#: Seconds to wait after the callback failed: each try may take CALLBACK_TIMEOUT.
RETRY_EVERY = 300.0
PREFIX = "on_failure"


def notify_soon(runner: Runner) -> bool:
    """Report the runner's failures if a report is due; return whether it was. Never raises."""
    if settings.ON_FAILURE is None:
        return False
    try:
        return _notify(runner)
    except Exception:
        logger.exception("%s: its failures could not be reported.", runner.label)
        return False


def notify_due() -> int:
    """Report failures that have not been reported yet; return for how many runners."""
    if settings.ON_FAILURE is None:
        return 0
    interval = settings.ON_FAILURE_EVERY.total_seconds()
    if not take_turn("on_failure", every=min(CHECK_EVERY, interval)):
        return 0
    failed = Failure.objects.filter(
        failed_at__gt=from_now(-2 * interval),
        run__is_current=True,
        run__status=Run.Status.FAILED,
    )
    labels = failed.values_list("run__chunk__runner", flat=True).distinct().order_by()
    found = [registry.find(label) for label in list(labels)]
    runners = {runner.label: runner for runner in (*found, *_unreported()) if runner is not None}
    return sum(notify_soon(runner) for runner in runners.values())


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
    report = FailureReport(runner.label, str(runner.get_analysis()), since, groups)
    message = f"AUTORUN['ON_FAILURE'] took longer than {CALLBACK_TIMEOUT:g} s."
    with UserCode("AUTORUN['ON_FAILURE']"), time_limit(CALLBACK_TIMEOUT, message=message):
        given: Any = settings.ON_FAILURE
        (import_string(given) if isinstance(given, str) else given)(report)
    # Failures after the call started go into the next report.
    note(reported, beat_of(tried) or now)
    return True


def _unreported() -> list[Runner]:
    """Runners whose last report failed."""
    beats = dict(Pulse.objects.filter(name__startswith=PREFIX).values_list("name", "beat_at"))
    tries = ((each, _tried_name(each), _reported_name(each)) for each in registry.runners())
    return [
        runner
        for runner, tried, reported in tries
        if tried in beats and reported in beats and beats[reported] < beats[tried]
    ]


def _reported_name(runner: Runner) -> str:
    """The pulse that keeps the end of the last report's period; names have up to 64 characters."""
    return f"{PREFIX}:{hashlib.sha256(runner.label.encode()).hexdigest()[:32]}"


def _tried_name(runner: Runner) -> str:
    return _reported_name(runner).replace(PREFIX, f"{PREFIX}_try")
