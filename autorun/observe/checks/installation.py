"""Checks of what autorun stands on: installed apps, Celery, the database."""

from __future__ import annotations

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
from autorun.declare import registry
from autorun.observe.checks.problems import error, warning

BROKER_URLS = ("broker_url", "broker_read_url", "broker_write_url")
#: The weakest isolation level that PostgreSQL has, by psycopg's number.
READ_COMMITTED = 2
PICKLE = {"pickle", "application/x-python-serialize"}


def check_installation(**kwargs: Any) -> list[CheckMessage]:
    """E201-E202, E230 and W201-W204: INSTALLED_APPS, the broker, the database."""
    return [*_apps(), *_broker(), *_content(), *_database()]


def _apps() -> Iterator[CheckMessage]:
    if not apps.is_installed("django.contrib.contenttypes"):
        yield error(
            "settings.INSTALLED_APPS",
            "E201",
            "autorun names models by their content types, but django.contrib.contenttypes is not "
            "installed.",
            "Add 'django.contrib.contenttypes' to INSTALLED_APPS and run `manage.py migrate`.",
        )
    if not apps.is_installed("django_celery_beat") and _has_schedule():
        yield warning(
            "settings.INSTALLED_APPS",
            "W204",
            "Runners have schedules, but django_celery_beat, which keeps them, is not installed: "
            "nothing is swept.",
            "Add 'django_celery_beat' to INSTALLED_APPS and run `manage.py migrate`, or set "
            "AUTORUN = {'SCHEDULE': None}.",
        )


def _has_schedule() -> bool:
    try:
        return any(runner.get_schedule() is not None for runner in registry.runners())
    except Exception:  # noqa: BLE001 - a check of its own says which raises
        return True


def _broker() -> Iterator[CheckMessage]:
    seen: set[str] = set()
    for place, given in _broker_urls():
        # Celery takes several, to fall back on.
        urls = given.split(";") if isinstance(given, str) else given or ()
        for url in urls:
            if not isinstance(url, str) or not url.startswith("sqlite:") or url in seen:
                continue
            seen.add(url)
            try:
                path_of(url)
            except ValueError as problem:
                name = place.rpartition(".")[2]
                yield error(
                    place,
                    "E202",
                    f"{name}: {problem}",
                    f"Set {name} = f\"sqlite:///{{BASE_DIR / 'broker.sqlite3'}}\", where BASE_DIR "
                    "is the absolute path of the project, as Django's own settings have it.",
                )


def _broker_urls() -> Iterator[tuple[str, Any]]:
    """The URLs of brokers, and where they are set; the app's are mostly those of the settings."""
    for name in BROKER_URLS:
        yield (
            f"settings.CELERY_{name.upper()}",
            getattr(django_settings, f"CELERY_{name}".upper(), ()),
        )
    for name in BROKER_URLS:
        yield f"celery.conf.{name}", getattr(current_app.conf, name, ())


def _content() -> Iterator[CheckMessage]:
    accepted = {
        *(getattr(current_app.conf, "accept_content", None) or ()),
        *(getattr(django_settings, "CELERY_ACCEPT_CONTENT", None) or ()),
    }
    if accepted & PICKLE:
        yield warning(
            "settings.CELERY_ACCEPT_CONTENT",
            "W201",
            "Celery accepts pickle: whoever can write to the broker can run any code in the "
            "workers.",
            'Set CELERY_ACCEPT_CONTENT = ["json"]; autorun sends nothing else.',
        )


def _database() -> Iterator[CheckMessage]:
    alias: Any = settings.DATABASE
    if not isinstance(alias, str) or alias not in connections:
        return  # E105 says so
    connection = connections[alias]
    options = connection.settings_dict.get("OPTIONS", {})
    place = f"settings.DATABASES[{alias!r}]"
    locks_late = str(options.get("transaction_mode")).upper() not in ("IMMEDIATE", "EXCLUSIVE")
    if connection.vendor == "sqlite" and locks_late and not _is_in_memory(connection.settings_dict):
        yield warning(
            place,
            "W202",
            "SQLite takes its lock only when a transaction first writes: workers then fail with "
            '"database is locked", whatever the timeout.',
            'Set "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 30, '
            '"init_command": "PRAGMA journal_mode=WAL;"}.',
        )
    if connection.vendor == "mysql":
        level = options.get("isolation_level", "read committed")
        if str(level).lower() != "read committed":
            yield warning(
                place,
                "W203",
                f"The isolation level is {level!r}: its gap locks make planners wait for each "
                "other, and deadlock.",
                'Set "OPTIONS": {"isolation_level": "read committed"}.',
            )
    if connection.vendor == "postgresql":
        level = options.get("isolation_level")
        if isinstance(level, int) and level > READ_COMMITTED:
            yield warning(
                place,
                "W203",
                f"The isolation level is {level!r}: workers that write beside each other would "
                "fail for want of a serial order.",
                "Leave isolation_level out of OPTIONS: then it is read committed. A transaction of "
                "the project's that needs more can begin with SET TRANSACTION ISOLATION LEVEL.",
            )
    if connection.vendor != "postgresql":
        yield from _times(connection.settings_dict, place)


def _times(database: dict[str, Any], place: str) -> Iterator[CheckMessage]:
    """PostgreSQL alone keeps with a time which one it is."""
    if not django_settings.USE_TZ:
        yield error(
            "settings.USE_TZ",
            "E230",
            "USE_TZ is off. On SQLite and MariaDB autorun needs it: its times are in UTC there, by "
            "the clock of the database, and what was hours ago would else seem to be now.",
            "Set USE_TZ = True, which is Django's default; TIME_ZONE may stay as it is.",
        )
    elif not _is_utc(zone := database.get("TIME_ZONE") or "UTC"):
        yield error(
            place,
            "E230",
            f"Django reads the times in this database as those of {zone}. Autorun's are in UTC, by "
            "the clock of the database: what was hours ago would seem to be now.",
            f"Remove TIME_ZONE from {place}.",
        )


def _is_utc(zone: str) -> bool:
    try:
        info = ZoneInfo(zone)
    except (ValueError, OSError, ZoneInfoNotFoundError):  # Django says what is wrong with it
        return True
    return not any(dt.datetime(2026, month, 1, tzinfo=info).utcoffset() for month in (1, 7))


def _is_in_memory(database: dict[str, Any]) -> bool:
    name = str(database.get("NAME", ""))
    return name == ":memory:" or "mode=memory" in name
