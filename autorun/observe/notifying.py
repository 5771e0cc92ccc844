"""Tells `AUTORUN["ON_FAILURE"]` what has failed for good, once per runner and interval at most.

A worker tells of a failure at once, unless its runner's last notification is too recent. What
gathers after that, upkeep tells of when the interval is over.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import logging
from collections.abc import Callable
from typing import Any

from django.utils import timezone
from django.utils.module_loading import import_string

from autorun.conf import settings
from autorun.declare import registry
from autorun.declare.runner import Runner
from autorun.declare.timeouts import time_limit
from autorun.models import Failure, Pulse, Run
from autorun.notifications import FailureReport
from autorun.observe.failures import group_failures
from autorun.state.clock import from_now
from autorun.state.pulses import give_back_turn, note, take_turn

logger = logging.getLogger(__name__)

#: Seconds that telling may take: a mail server that does not answer must not hold up a worker.
PATIENCE = 30.0
#: How often upkeep looks for failures that have not been told of, in seconds.
LOOK_EVERY = 60.0
#: How long to wait after telling has failed, in seconds: each try may take PATIENCE.
TRY_EVERY = 300.0
PREFIX = "on_failure"


def notify_soon(runner: Runner) -> bool:
    """Tell of the runner's failures, if it is time for it; whether it was. Never raises."""
    if settings.ON_FAILURE is None:
        return False
    try:
        return _notify(runner)
    except Exception:
        logger.exception("%s: nobody was told of its failures.", runner.label)
        return False


def notify_due() -> int:
    """Tell of failures that nobody has been told of yet; for how many runners."""
    if settings.ON_FAILURE is None:
        return 0
    interval = settings.ON_FAILURE_EVERY.total_seconds()
    if not take_turn("on_failure", every=min(LOOK_EVERY, interval)):
        return 0
    failed = Failure.objects.filter(
        failed_at__gt=from_now(-2 * interval),
        run__is_current=True,
        run__status=Run.Status.FAILED,
    )
    labels = failed.values_list("run__chunk__runner", flat=True).distinct().order_by()
    found = [registry.find(label) for label in list(labels)]
    runners = {runner.label: runner for runner in (*found, *_untold()) if runner is not None}
    return sum(notify_soon(runner) for runner in runners.values())


def _notify(runner: Runner) -> bool:
    interval: dt.timedelta = settings.ON_FAILURE_EVERY
    told, tried = _told_name(runner), _tried_name(runner)
    now = timezone.now()
    told_at = _beat_at(told)
    if told_at is not None and now - told_at < interval:
        return False
    if not take_turn(tried, every=min(TRY_EVERY, interval.total_seconds()), early=1.0):
        return False
    since = now - 2 * interval if told_at is None else told_at
    groups = tuple(group_failures(runner, within=now - since))
    if not groups:
        give_back_turn(tried)
        return False
    # Told is what nobody has thrown: what a failed try would have said, the next one says.
    note(told, since)
    report = FailureReport(runner.label, str(runner.get_analysis()), since, groups)
    with time_limit(PATIENCE, message=f"AUTORUN['ON_FAILURE'] took longer than {PATIENCE:g} s."):
        _callable()(report)
    # What has failed since the try began is of the next report.
    note(told, _beat_at(tried) or now)
    return True


def _untold() -> list[Runner]:
    """Runners whose failures somebody has tried to tell of in vain."""
    beats = dict(Pulse.objects.filter(name__startswith=PREFIX).values_list("name", "beat_at"))
    return [
        runner
        for runner in registry.runners()
        if (tried_at := beats.get(_tried_name(runner))) is not None
        and (told_at := beats.get(_told_name(runner))) is not None
        and told_at < tried_at
    ]


def _beat_at(name: str) -> dt.datetime | None:
    beats = Pulse.objects.filter(name=name).values_list("beat_at", flat=True)
    beat_at: dt.datetime | None = beats.first()
    return beat_at


def _callable() -> Callable[[FailureReport], Any]:
    given: Any = settings.ON_FAILURE
    found: Callable[[FailureReport], Any] = (
        import_string(given) if isinstance(given, str) else given
    )
    return found


def _told_name(runner: Runner) -> str:
    """The pulse whose time the last report goes up to; its name has 64 characters at most."""
    return f"{PREFIX}:{hashlib.sha256(runner.label.encode()).hexdigest()[:32]}"


def _tried_name(runner: Runner) -> str:
    """The pulse of the last try to tell."""
    return _told_name(runner).replace(PREFIX, f"{PREFIX}_try")
