"""Examines the broker and the workers that listen to it."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from celery import current_app
from django.utils.translation import gettext as _
from django.utils.translation.trans_null import gettext_noop

from autorun.declare import registry
from autorun.declare.hooks import timeout_of
from autorun.declare.interruption import in_thread
from autorun.dispatch.messages import queues_in_use
from autorun.dispatch.publishing import close_connection, open_connection
from autorun.observe.celery_app import celery_command, setting_of
from autorun.observe.doctor.finding import Finding, error, examination, ok, warning
from autorun.state.words import duration

#: Seconds to wait for workers' answers, and once more if a queue in use still has no worker. On a
#: machine under load, or soon after its start, a worker takes longer.
ANSWER_TIMEOUTS = (1.5, 3.0)
#: Seconds to wait for a broker that accepts connections but never answers, whatever the transport.
DEADLINE = 8.0

#: What kombu raises without the client library of a broker: it may have None in its place.
UNUSABLE = (ImportError, AttributeError)
VISIBILITY_TIMEOUTS = {"redis": 3600, "rediss": 3600, "sentinel": 3600, "sqs": 1800}


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
