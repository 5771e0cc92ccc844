"""Checks of installed apps, Celery and the database."""

import datetime as dt
from collections.abc import Iterator
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from celery import current_app
from django.apps import apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage
from django.db import connections

from autorun.broker.transport import path_of
from autorun.conf import settings
from autorun.observe.checks.problems import error, warning

BROKER_URLS = ("broker_url", "broker_read_url", "broker_write_url")
#: PostgreSQL's weakest isolation level, by psycopg's number.
READ_COMMITTED = 2
#: Hosts that cannot vanish alone: a Unix socket, and this machine.
HERE = {"", "localhost", "127.0.0.1", "::1"}
PICKLE = {"pickle", "application/x-python-serialize"}
JSON = {"json", "application/json"}


def check_installation() -> list[CheckMessage]:
    """E201-E202, E204, E230, W201-W203 and W205: INSTALLED_APPS, the broker, the database."""
    return [*_apps(), *_broker(), *_content(), *_database()]


def _apps() -> Iterator[CheckMessage]:
    if not apps.is_installed("django.contrib.contenttypes"):
        yield error("settings.INSTALLED_APPS", "E201")(
            "autorun names models by their content types, but django.contrib.contenttypes is not "
            "installed.",
            "Add 'django.contrib.contenttypes' to INSTALLED_APPS and run `manage.py migrate`.",
        )


def _broker() -> Iterator[CheckMessage]:
    places: dict[str, str] = {}
    for place, given in _broker_urls():
        # Celery accepts several, as fallbacks.
        for url in given.split(";") if isinstance(given, str) else given or ():
            if isinstance(url, str) and url.startswith("sqlite:"):
                places.setdefault(url, place)
    for url, place in places.items():
        try:
            path_of(url)
        except ValueError as problem:
            name = place.rpartition(".")[2]
            yield error(place, "E202")(
                f"{name}: {problem}",
                f"Set {name} = f\"sqlite:///{{BASE_DIR / 'broker.sqlite3'}}\", with BASE_DIR as in "
                "Django's default settings: the absolute path of the project.",
            )


def _broker_urls() -> Iterator[tuple[str, Any]]:
    """The URLs of brokers, and the place of each; the settings come first."""
    for name in BROKER_URLS:
        setting = f"CELERY_{name.upper()}"
        yield f"settings.{setting}", getattr(django_settings, setting, ())
    for name in BROKER_URLS:
        yield f"celery.conf.{name}", getattr(current_app.conf, name, ())


def _content() -> Iterator[CheckMessage]:
    by_workers = set(getattr(current_app.conf, "accept_content", None) or ())
    if by_workers and not by_workers & JSON:
        yield error("settings.CELERY_ACCEPT_CONTENT", "E204")(
            "Celery does not accept JSON: workers would discard every message of autorun.",
            'Add "json" to CELERY_ACCEPT_CONTENT.',
        )
    accepted = {
        *by_workers,
        *(getattr(django_settings, "CELERY_ACCEPT_CONTENT", None) or ()),
    }
    if accepted & PICKLE:
        yield warning("settings.CELERY_ACCEPT_CONTENT", "W201")(
            "Celery accepts pickle: write access to the broker lets anyone run code in workers.",
            'Set CELERY_ACCEPT_CONTENT = ["json"]; autorun sends only JSON.',
        )


def _database() -> Iterator[CheckMessage]:
    alias: Any = settings.DATABASE
    if not isinstance(alias, str) or alias not in connections:
        return  # reported by E105
    connection = connections[alias]
    options = connection.settings_dict.get("OPTIONS", {})
    place = f"settings.DATABASES[{alias!r}]"
    name = str(connection.settings_dict.get("NAME", ""))
    is_in_memory = name == ":memory:" or "mode=memory" in name
    locks_late = str(options.get("transaction_mode")).upper() not in ("IMMEDIATE", "EXCLUSIVE")
    if connection.vendor == "sqlite" and locks_late and not is_in_memory:
        yield warning(place, "W202")(
            "SQLite takes its lock only when a transaction first writes, so workers fail with "
            '"database is locked", whatever the timeout.',
            'Set "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 30, '
            '"init_command": "PRAGMA journal_mode=WAL;"}.',
        )
    level = options.get("isolation_level", "read committed")
    if connection.vendor == "mysql" and str(level).lower() != "read committed":
        yield warning(place, "W203")(
            f"The isolation level is {level!r}: its gap locks make planners wait for each "
            "other, and deadlock.",
            'Set "OPTIONS": {"isolation_level": "read committed"}.',
        )
    if connection.vendor == "postgresql" and isinstance(level, int) and level > READ_COMMITTED:
        yield warning(place, "W203")(
            f"The isolation level is {level!r}: workers that write at the same time would fail "
            "with serialization errors.",
            "Leave isolation_level out of OPTIONS, which then defaults to read committed. A "
            "transaction that needs more can start with SET TRANSACTION ISOLATION LEVEL.",
        )
    yield from _patience(connection, place)
    if connection.vendor != "postgresql":
        yield from _times(connection.settings_dict, place)


def _patience(connection: Any, place: str) -> Iterator[CheckMessage]:
    """Whether a process notices that the server's machine has vanished."""
    options = connection.settings_dict.get("OPTIONS", {})
    host = str(connection.settings_dict.get("HOST") or "")
    if host in HERE or host.startswith("/") or "service" in options:
        return
    wanted: dict[str, int] = {}
    if connection.vendor == "postgresql":
        wanted = {"connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5}
        wanted |= {"keepalives_count": 3, "tcp_user_timeout": 25_000}
    elif connection.vendor == "mysql" and connection.Database.__name__ != "pymysql":
        # Of PyMySQL's connections autorun limits the sockets itself.
        wanted = {"connect_timeout": 5, "read_timeout": 600, "write_timeout": 30}
    if missing := {name: value for name, value in wanted.items() if name not in options}:
        shown = ", ".join(f'"{name}": {value}' for name, value in missing.items())
        yield warning(place, "W205")(
            f"If the machine {host} vanishes, workers wait for it for minutes or hours: OPTIONS "
            f"has no {', '.join(missing)}.",
            f'Add {shown} to "OPTIONS". A read_timeout must be longer than any statement.',
        )


def _times(database: dict[str, Any], place: str) -> Iterator[CheckMessage]:
    """Only PostgreSQL stores the time zone with a time."""
    if not django_settings.USE_TZ:
        yield error("settings.USE_TZ", "E230")(
            "USE_TZ is off. On SQLite and MariaDB autorun needs it: its times are in UTC, from the "
            "database's clock, and would be read as local times that are hours off.",
            "Set USE_TZ = True, which is Django's default; TIME_ZONE may stay as it is.",
        )
    elif not _is_utc(zone := database.get("TIME_ZONE") or "UTC"):
        yield error(place, "E230")(
            f"Django reads the times in this database as {zone}. Autorun's are in UTC, from the "
            "database's clock, and would be hours off.",
            f"Remove TIME_ZONE from {place}.",
        )


def _is_utc(zone: str) -> bool:
    try:
        info = ZoneInfo(zone)
    except (ValueError, OSError, ZoneInfoNotFoundError):  # reported by Django
        return True
    return not any(dt.datetime(2026, month, 1, tzinfo=info).utcoffset() for month in (1, 7))
