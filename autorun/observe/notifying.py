"""Reports failures to `AUTORUN["ON_FAILURE"]`, at most once per runner and interval.

Upkeep has a worker report failures a minute after the first, unless the runner's last report is too
recent, and once more when runs succeed again.
"""

import datetime as dt
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from django.conf import settings as django_settings
from django.contrib.sites.shortcuts import get_current_site
from django.db.models import Max
from django.urls import reverse
from django.utils import timezone
from django.utils.module_loading import import_string

from autorun.conf import settings
from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.declare.hooks import database_of
from autorun.declare.interruption import time_limit
from autorun.declare.nodes import node_id_of, node_of, nodes_of
from autorun.dispatch.publishing import Message, publish
from autorun.models import Chunk, Failure, Node, Pulse, Run
from autorun.notifications import MOST_GROUPS, FailureReport
from autorun.observe.failures import LAST, FailureGroup, group_failures
from autorun.observe.held_up import held_up
from autorun.state import pulses
from autorun.state.clock import from_now
from autorun.state.counts import progress
from autorun.state.keys import key_kind
from autorun.state.logs import get_logger
from autorun.state.masking import masked
from autorun.state.user_code import UserCode
from autorun.state.words import because

logger = get_logger(__name__)

#: Seconds that the callback may take: a mail server that does not answer must not block a worker.
CALLBACK_TIMEOUT = 30.0
#: Seconds that the callback waits for further failures after the first one.
WAIT = 60.0
#: Seconds between two checks by upkeep for failures that have not been reported.
CHECK_EVERY = 20.0
#: Seconds for the names of all rows in a report, and characters of each.
NAMING_TIMEOUT = 5.0
LONGEST_NAME = 80
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
    """Have a worker report failures that have not been reported; return for how many runners."""
    # The callback is user code, so upkeep only finds out which reports are due.
    if settings.ON_FAILURE is None:
        return 0
    every = min(CHECK_EVERY, settings.ON_FAILURE_EVERY.total_seconds())
    if not pulses.take_turn("on_failure", every=every):
        return 0
    messages = [
        Message(NOTIFY, (label,), queue=settings.QUEUE, expires=CHECK_EVERY) for label in _due()
    ]
    if messages:
        publish(messages)
    return len(messages)


def _notify(runner: Runner) -> bool:
    interval: dt.timedelta = settings.ON_FAILURE_EVERY
    reported, tried, failing = _pulses(runner)
    now = timezone.now()
    reported_at = pulses.beat_of(reported)
    since = now - 2 * interval if reported_at is None else reported_at
    is_early = reported_at is not None and now - reported_at < interval
    if is_early and pulses.beat_of(failing) is None:
        return False
    if not pulses.take_turn(tried, every=min(RETRY_EVERY, interval.total_seconds()), early=1.0):
        return False
    groups = () if is_early else tuple(group_failures(runner, within=now - since))
    if not groups and not (pulses.beat_of(failing) and _is_well_again(runner, since)):
        pulses.give_back_turn(tried)
        return False
    if groups:
        # Record the start of the period before the call: if the callback raises, the next report
        # covers it again.
        pulses.note(reported, since)
    report = _report(runner, since, groups)
    message = f"AUTORUN['ON_FAILURE'] took longer than {CALLBACK_TIMEOUT:g} s."
    with UserCode("AUTORUN['ON_FAILURE']"), time_limit(CALLBACK_TIMEOUT, message=message):
        given: Any = settings.ON_FAILURE
        (import_string(given) if isinstance(given, str) else given)(report)
    if groups:
        pulses.leave_note(failing)
        # Failures after the call started go into the next report.
        pulses.note(reported, pulses.beat_of(tried) or now)
    else:
        pulses.take_note(failing)
        pulses.give_back_turn(tried)
    return True


def _report(runner: Runner, since: dt.datetime, groups: Sequence[FailureGroup]) -> FailureReport:
    node = Node.objects.get(pk=node_of(runner).pk)
    batches = [f"{each.what}{because(each.reason)}" for each in held_up(runner.label) if each.batch]
    counts = progress(node)
    earlier = Node.objects.filter(pk__in=nodes_of(runner)).exclude(version=node.version)
    is_new = node.created_at > since and earlier.exists()
    return FailureReport(
        runner.label,
        str(runner.get_analysis()),
        since,
        groups,
        paused="; ".join(filter(None, [node.paused_because, *batches])),
        failed=counts.failed,
        finished=counts.total - counts.unfinished,
        new_version=node.version if is_new else "",
        rows=_names(runner, groups),
        url=_url(runner),
    )


def _names(runner: Runner, groups: Sequence[FailureGroup]) -> dict[int, str]:
    """Names of the groups' rows, by run id; the keys of rows if naming them fails or takes long."""
    ids = [pk for group in groups[:MOST_GROUPS] for pk in group.run_ids]
    runs = Run.objects.filter(pk__in=ids).only("object_id", "object_key")
    model = runner.get_model()
    kind = key_kind(model)
    names = {run.pk: f"{model._meta.verbose_name} {kind.spelled(kind.of(run))}" for run in runs}
    with suppress(Exception), UserCode(f"{model.__name__}.__str__()"), time_limit(NAMING_TIMEOUT):
        pks = {run.pk: kind.to_pk(kind.of(run)) for run in runs}
        rows = model._base_manager.using(database_of(runner)).in_bulk(set(pks.values()))
        for run_id, pk in pks.items():
            if pk in rows:
                names[run_id] = str(rows[pk])
    return {pk: masked(" ".join(name.split()))[:LONGEST_NAME] for pk, name in names.items()}


def _url(runner: Runner) -> str:
    """The page of the runner's failures, if the project has an admin and names its site."""
    with suppress(Exception):  # no django.contrib.sites, no SITE_ID, or no admin
        domain = get_current_site(None).domain
        page = reverse("admin:autorun_failure_changelist")
        scheme = "http" if django_settings.DEBUG else "https"
        if domain != "example.com":  # that of a site that was never edited
            return f"{scheme}://{domain}{page}?{urlencode({'runner': runner.label})}"
    return ""


def _is_well_again(runner: Runner, since: dt.datetime) -> bool:
    """Whether runs have succeeded since then, and none has failed; two queries at most."""
    node_id = node_id_of(runner)
    chunks = Chunk.objects.filter(node=node_id, succeeded__gt=0, finished_at__gt=since)
    failed = Failure.objects.filter(LAST, failed_at__gt=since, run__node=node_id)
    return (
        chunks.finished().unfolded().exists()
        and not failed.filter(run__status=Run.Status.FAILED).exists()
    )


def _due() -> Iterator[str]:
    """Labels of runners with failures that have not been reported, whose next report is due."""
    interval: dt.timedelta = settings.ON_FAILURE_EVERY
    retry = min(interval, dt.timedelta(seconds=RETRY_EVERY))
    failed = Failure.objects.filter(
        failed_at__gt=from_now(-2 * interval.total_seconds()),
        failed_at__lte=from_now(-min(WAIT, interval.total_seconds())),
        run__is_current=True,
        run__status=Run.Status.FAILED,
    )
    newest = failed.values_list("run__chunk__runner").annotate(Max("failed_at")).order_by()
    failed_at = dict(newest)
    beats = dict(Pulse.objects.filter(name__startswith=PREFIX).values_list("name", "beat_at"))
    now = timezone.now()
    for runner in registry.runners():
        reported, tried, failing = map(beats.get, _pulses(runner))
        if reported is None:
            is_due = runner.label in failed_at
        else:
            # The last report failed if it did not record its end.
            is_unreported = tried is not None and reported < tried
            is_new = runner.label in failed_at and failed_at[runner.label] > reported
            is_due = now - reported >= interval and (is_unreported or is_new)
        may_try = tried is None or now - tried >= retry
        if may_try and (is_due or (reported and failing and _is_well_again(runner, reported))):
            yield runner.label


def _pulses(runner: Runner) -> tuple[str, str, str]:
    """Names of the pulses that keep the end of the last report's period, and the last try."""
    # The third exists from a report of failures to that of their end. Names have up to 64
    # characters.
    name = pulses.name_for(PREFIX, runner.label)
    return name, name.replace(PREFIX, f"{PREFIX}_try"), name.replace(PREFIX, f"{PREFIX}_told")
