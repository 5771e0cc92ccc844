"""Examines the broker, the workers that listen to it, the sweeps that beat sends, and upkeep."""

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from celery import current_app
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db.models import Max
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation.trans_null import gettext_noop

from autorun.declare import registry
from autorun.declare.hooks import is_scheduled, timeout_of
from autorun.declare.interruption import in_thread
from autorun.dispatch.messages import queues_in_use
from autorun.dispatch.publishing import close_connection, open_connection
from autorun.exceptions import ImproperRunner, bare_message
from autorun.observe.celery_app import celery_command, setting_of
from autorun.observe.doctor.finding import Finding, error, examination, ok, warning
from autorun.observe.glance import is_upkeep_silent, upkeep_patience
from autorun.state.pulses import beat_of
from autorun.state.words import duration, moment, number
from autorun.triggers import on_schedule

#: Seconds to wait for workers' answers, and once more if a queue in use still has no worker. On a
#: machine under load, or soon after its start, a worker takes longer.
ANSWER_TIMEOUTS = (1.5, 3.0)
#: Seconds to wait for a broker that accepts connections but never answers, whatever the transport.
DEADLINE = 8.0

#: What kombu raises without the client library of a broker: it may have None in its place.
UNUSABLE = (ImportError, AttributeError)
VISIBILITY_TIMEOUTS = {"redis": 3600, "rediss": 3600, "sentinel": 3600, "sqs": 1800}
#: Beat saves what it has sent every three minutes, unless CELERY_BEAT_SYNC_EVERY says otherwise.
BEAT_SILENCE = 300.0  # seconds


@examination(gettext_noop("broker"))
def examine_broker() -> Iterator[Finding]:
    """Whether the broker answers, and a worker listens on each queue in use."""
    if current_app.conf.task_always_eager:
        return
    try:
        url = _shown_url()
    except ValueError:  # its message may quote a part of the password
        yield error(
            _("The broker's URL cannot be parsed."),
            _("Correct %(setting)s. In a password write %(characters)s.")
            % {"setting": setting_of("broker_url"), "characters": "/ = %2F, : = %3A, @ = %40"},
        )
        return
    except UNUSABLE as problem:
        yield _without_client(problem)
        return
    try:
        silence = _("It accepted the connection but did not answer for %s.") % duration(DEADLINE)
        listeners = in_thread(_listeners, seconds=DEADLINE, late=TimeoutError(silence))
    except UNUSABLE as problem:
        yield _without_client(problem)
        return
    except Exception as problem:  # noqa: BLE001
        yield error(
            _("%(what)s does not answer: %(error)s")
            % {"what": url, "error": f"{type(problem).__name__}: {problem}"},
            _("Start it, or correct %s. Until then saved rows are kept; none is lost.")
            % setting_of("broker_url"),
        )
        return
    yield ok(_("%s answers.") % url)
    if listeners is None:
        message = _("They cannot be asked which queues they listen on: remote control is off.")
        yield ok(message, subject=_("workers"))
        return
    yield from _examine_queues(listeners)


def _examine_queues(listeners: Mapping[str, Collection[str]]) -> Iterator[Finding]:
    for queue in sorted(queues_in_use()):
        subject = _("queue %s") % queue
        workers = listeners.get(queue)
        if workers:
            yield ok(_("Listening: %s.") % ", ".join(sorted(workers)), subject=subject)
            continue
        yield error(
            _("No worker is listening on %s.") % repr(queue),
            _(
                "Start one: %s. If one is running but does not answer `celery inspect ping`, "
                "restart it."
            )
            % celery_command("worker -n worker@%h -Q", queue),
            subject,
        )


def _without_client(problem: Exception) -> Finding:
    return error(
        _("The broker's client library cannot be used: %s")
        % f"{type(problem).__name__}: {problem}",
        _("Install it, for Redis by `pip install django-autorun[redis]`."),
    )


@examination(gettext_noop("visibility timeout"))
def examine_visibility_timeout() -> Iterator[Finding]:
    """Whether the broker waits long enough before it delivers a message again."""
    url: str = current_app.conf.broker_write_url or "amqp://"
    scheme = url.partition(":")[0].partition("+")[0]
    if scheme not in VISIBILITY_TIMEOUTS:
        return
    options = current_app.conf.broker_transport_options or {}
    redelivery = options.get("visibility_timeout", VISIBILITY_TIMEOUTS[scheme])
    timeouts = {runner.label: timeout_of(runner) for runner in registry.runners()}
    slow = [name for name, seconds in timeouts.items() if seconds is None or seconds > redelivery]
    if not slow:
        yield ok(_("%s, longer than any TIMEOUT.") % duration(redelivery))
        return
    yield warning(
        _(
            "The broker delivers messages again after %(time)s, but runs of %(runners)s may take "
            "longer. No run is repeated, but the extra messages are wasted."
        )
        % {"time": duration(redelivery), "runners": ", ".join(slow)},
        _("Set %s above the longest TIMEOUT, or lower TIMEOUT.")
        % f'{setting_of("broker_transport_options")} = {{"visibility_timeout": ...}}',
    )


def _listeners() -> dict[str, set[str]] | None:
    """Names of the workers that answer, by queue; None if workers cannot be asked."""
    # With its own time limits, so that a thread that waits for a silent broker ends soon.
    connection = open_connection()
    try:
        # Kombu's transports for some brokers, such as SQLAlchemy's, cannot send to all workers.
        can_reach_all = getattr(connection.default_channel, "supports_fanout", True)
        if not (can_reach_all and current_app.conf.worker_enable_remote_control):
            return None
        found: dict[str, set[str]] = defaultdict(set)
        for seconds in ANSWER_TIMEOUTS:
            inspection = current_app.control.inspect(timeout=seconds, connection=connection)
            for worker, queues in (inspection.active_queues() or {}).items():
                for queue in queues:
                    found[queue["name"]].add(worker)
            if queues_in_use() <= found.keys():
                break
        return found
    finally:
        close_connection(connection)


def _shown_url() -> str:
    """The broker's address without its password."""
    connection = current_app.connection_for_write()
    url = str(connection.as_uri())
    # kombu writes `:**@` even for a Redis without a password.
    return url if connection.password else url.replace("//:**@", "//")


@examination(gettext_noop("schedules"))
def examine_schedules() -> Iterator[Finding]:
    """Whether beat's entries match the runners."""
    try:
        report = on_schedule.sync(dry=True)
    except ImproperlyConfigured as problem:
        if any(map(is_scheduled, registry.runners())):
            yield warning(
                str(problem),
                _("Or set %s: then only saves and commands start runs.")
                % "AUTORUN = {'SCHEDULE': None}",
            )
        return
    except ImproperRunner as problem:
        hint = _("Fix it, then run `manage.py autorun sync`.")
        yield error(str(problem), hint, bare=bare_message(problem))
        return
    if report.is_change:
        changes = {
            _("missing: %s"): report.created,
            _("changed: %s"): report.updated,
            _("no longer wanted: %s"): report.disabled,
        }
        texts = [what % ", ".join(names) for what, names in changes.items() if names]
        yield warning(
            _("Beat's entries are out of date; %s.") % "; ".join(texts),
            _("Run `manage.py autorun sync`; beat also does it when it starts."),
        )
    else:
        edited = " " + _("%s edited in the admin.") % number(len(report.kept))
        yield ok(_("Beat's entries are up to date.") + edited * bool(report.kept))


@examination(gettext_noop("beat"))
def examine_beat() -> Iterator[Finding]:
    """Whether beat is alive, from the time of the last task it sent and of sweeps that are due."""
    if not (apps.is_installed("django_celery_beat") and any(map(is_scheduled, registry.runners()))):
        return
    from django_celery_beat.models import PeriodicTask

    entries = PeriodicTask.objects.filter(enabled=True)
    sweeps = entries.filter(task=on_schedule.SWEEP)
    last: dt.datetime | None = entries.aggregate(last=Max("last_run_at"))["last"]
    if last is None and not sweeps:
        yield warning(_("Beat has no sweep to send."), _start_beat())
        return
    if ahead := on_schedule.entries_ahead().order_by("-last_run_at").first():
        yield warning(
            _(
                "%(name)s was last sent in the future, at %(at)s: the clock of beat's machine was "
                "wrong. Beat sends nothing of it until then."
            )
            % {"name": repr(ahead.name), "at": moment(ahead.last_run_at)},
            _(
                "Correct the clock, and start a worker: its upkeep corrects the entry within a few "
                "minutes."
            ),
        )
        return
    late = max(map(_seconds_late, sweeps), default=0.0)
    if last is None:
        silence, alive = late, _("No sweep has been due yet.")
        silent = _("Beat has sent no sweep yet, though one was due: no sweeps run.")
    else:
        now: Any = timezone.now() if timezone.is_aware(last) else dt.datetime.now()  # noqa: DTZ005
        silence = (now - last).total_seconds()
        silent = _("Beat has sent nothing for %s: no sweeps run.") % duration(silence)
        alive = _("Last task sent %s ago.") % duration(max(silence, 0))
    if min(late, silence) > BEAT_SILENCE:
        yield error(silent, _start_beat())
    else:
        yield ok(alive)


@examination(gettext_noop("upkeep"))
def examine_upkeep() -> Iterator[Finding]:
    if not is_upkeep_silent():
        yield ok(_("Last round less than %s ago.") % duration(upkeep_patience()))
        return
    at = beat_of("upkeep")
    last = _("It never ran: nothing is retried, rescued or released.")
    if at is not None:
        last = _("It last ran at %s: nothing is retried, rescued or released.") % moment(at)
    command = celery_command("worker -n worker@%h")
    yield error(last, _("Start a worker, which makes rounds of upkeep: %s.") % command)


def _seconds_late(entry: Any) -> float:
    """The seconds since an entry of beat's tables was due; negative if it is not due yet."""
    since = entry.last_run_at or entry.date_changed
    remaining: dt.timedelta = entry.schedule.remaining_estimate(since)
    return -remaining.total_seconds()


def _start_beat() -> str:
    scheduler = "django_celery_beat.schedulers:DatabaseScheduler"
    return _("Start beat: %s.") % celery_command("beat --scheduler", scheduler)
