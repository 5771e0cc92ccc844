"""Checks of installed apps, Celery and the database, and of modules that are not imported."""

import datetime as dt
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from celery import _state, current_app
from celery.utils.imports import load_extension_class_names, symbol_by_name
from django.apps import AppConfig, apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage
from django.db import connections

from autorun.broker.transport import path_of
from autorun.conf import settings
from autorun.declare.base import Runner
from autorun.declare.hooks import is_scheduled
from autorun.observe.celery_app import setting_of, unread_settings
from autorun.observe.checks.declarations import model_of
from autorun.observe.checks.problems import error, warning

BROKER_URLS = ("broker_url", "broker_read_url", "broker_write_url")
#: PostgreSQL's weakest isolation level, by psycopg's number.
READ_COMMITTED = 2
#: Hosts that cannot vanish alone: a Unix socket, and this machine.
HERE = {"", "localhost", "127.0.0.1", "::1"}
PICKLE = {"pickle", "application/x-python-serialize"}
JSON = {"json", "application/json"}
#: The packages that are discovered, and what a module of one has to contain to be of use.
PACKAGES = {
    "runners": r"^class \w+\(.*Runner|^\s+ANALYSIS\b.*=",
    "analyses": r"^@(?:[\w.]+\.)?analysis\(|^from autorun\.analysis import .*\banalysis\b",
}
#: Where packages name their schedulers for `--scheduler`.
ENTRY_POINTS = "celery.beat_schedulers"
BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"


def check_installation() -> Iterator[CheckMessage]:
    """E201, E202, E204, E230, W201-W203, W205-W207: Django's and Celery's settings, and imports."""
    if not apps.is_installed("django.contrib.contenttypes"):
        yield error("settings.INSTALLED_APPS", "E201")(
            "autorun names models by their content types, but django.contrib.contenttypes is not "
            "installed.",
            "Add 'django.contrib.contenttypes' to INSTALLED_APPS and run `manage.py migrate`.",
        )
    yield from _broker()
    yield from _content()
    yield from _database()
    yield from _celery_app()
    for config in apps.get_app_configs():
        for name, pattern in PACKAGES.items():
            yield from _left_out(config, name, pattern)


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
        yield error(f"settings.{setting_of('accept_content')}", "E204")(
            "Celery does not accept JSON: workers would discard every message of autorun.",
            f'Add "json" to {setting_of("accept_content")}.',
        )
    accepted = {*by_workers, *(getattr(django_settings, "CELERY_ACCEPT_CONTENT", None) or ())}
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


def _celery_app() -> Iterator[CheckMessage]:
    app = _state.get_current_app()
    project, is_in_package, _ = str(django_settings.SETTINGS_MODULE).partition(".")
    if app.main == "default":  # Celery's own, for want of another
        if not (app.conf.broker_write_url or app.conf.task_always_eager):
            yield warning("celery.current_app", "W206")(
                "This process has not imported the project's Celery app, so messages would go to "
                "a broker at amqp://localhost.",
                f"Import it in {project}/__init__.py: `from {project}.celery import app as "
                f"celery_app`. If there is no {project}/celery.py yet, docs/tutorial.md shows one."
                if is_in_package
                else "Import it in the __init__.py of an app in INSTALLED_APPS. If there is none "
                "yet, docs/tutorial.md shows one; call its module celery_app.py.",
            )
        return
    if _state.default_app is not app:  # type: ignore[attr-defined]
        yield warning("celery.current_app", "W206")(
            f"Only the thread that created the Celery app {app.main!r} finds it. What other "
            "threads send goes to the broker of another app.",
            "Create it earlier, in an __init__.py as docs/tutorial.md shows, or call "
            "`app.set_default()` when it has been created.",
        )
    if options := unread_settings():
        names, read = map(setting_of, options), (f"CELERY_{each.upper()}" for each in options)
        yield warning("celery.current_app", "W206")(
            f"The Celery app {app.main!r} does not read {', '.join(read)}.",
            'Call `app.config_from_object("django.conf:settings", namespace="CELERY")`. An app '
            f"that reads the settings otherwise may call them {', '.join(names)}.",
        )


def _left_out(config: AppConfig, name: str, pattern: str) -> Iterator[CheckMessage]:
    package = sys.modules.get(f"{config.name}.{name}")
    for folder in map(Path, getattr(package, "__path__", ())):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            module = ".".join((config.name, name, *parts)).removesuffix(".__init__")
            text = path.read_text(errors="replace")
            if module in sys.modules or not re.search(pattern, text, re.MULTILINE):
                continue
            yield warning(module, "W207")(
                f"{module} is not imported, so what it declares is not registered.",
                f"Add `import {module}` to {folder / '__init__.py'}.",
            )


def check_neighbours(runners: Sequence[Runner]) -> Iterator[CheckMessage]:
    """W204, W208 and W209, and E203 about autorun itself."""
    if any(map(is_scheduled, runners)):
        yield from _beat()
    if apps.is_installed("cachalot") and not _is_left_uncached():
        yield warning("settings.CACHALOT_UNCACHABLE_APPS", "W209")(
            "django-cachalot caches queries of autorun's tables. Every run changes those, and with "
            "a cache that not all processes share, workers would read outdated states.",
            'Set CACHALOT_UNCACHABLE_APPS = ("autorun",).',
        )
    if _is_per_tenant(apps.get_app_config("autorun")):
        yield error("settings.TENANT_APPS", "E203")(
            "Autorun is in TENANT_APPS, but workers use one set of autorun's tables.",
            "Move 'autorun' and 'django_celery_beat' to SHARED_APPS only.",
        )


def check_tenants(runner: Runner) -> Iterator[CheckMessage]:
    """E203: whether each tenant has a table of the runner's model."""
    model = model_of(runner)
    if model is not None and _is_per_tenant(model._meta.app_config):
        meta = model._meta
        yield error(runner, "E203")(
            f"Each tenant has a table of {meta.label} in its own schema, so one key names a row in "
            "each of them: runs of tenants would be mistaken for each other.",
            f"Give the runner a model of an app that is in SHARED_APPS only, not {meta.app_label}.",
        )


def _beat() -> Iterator[CheckMessage]:
    if not apps.is_installed("django_celery_beat"):
        yield warning("settings.INSTALLED_APPS", "W204")(
            "Runners have schedules, but django_celery_beat, which keeps them, is not installed: "
            "no sweeps run.",
            "Add 'django_celery_beat' to INSTALLED_APPS and run `manage.py migrate`, or set "
            "AUTORUN = {'SCHEDULE': None}.",
        )
    elif current_app.main == "default":
        pass  # it reads no settings, and W206 reports it
    elif not _is_database_scheduler(name := str(current_app.conf.beat_scheduler)):
        yield warning(f"settings.{setting_of('beat_scheduler')}", "W208")(
            f"Unless its --scheduler names another one, beat uses {name}, "
            "which does not know autorun's schedules: no sweeps run.",
            f"Set {setting_of('beat_scheduler')} = {BEAT_SCHEDULER!r}. To keep the scheduler, list "
            f"the sweeps in {setting_of('beat_schedule')} and set AUTORUN = {{'SCHEDULE': None}}.",
        )


def _is_database_scheduler(name: str) -> bool:
    from django_celery_beat.schedulers import DatabaseScheduler

    try:
        # Celery's own types call the pairs strings.
        aliases: dict[str, str] = dict(cast(Any, load_extension_class_names(ENTRY_POINTS)))
        scheduler = symbol_by_name(name, aliases=aliases)
    except (ImportError, AttributeError):  # beat reports it when it starts
        return True
    return issubclass(scheduler, DatabaseScheduler)


def _is_left_uncached() -> bool:
    left_out = getattr(django_settings, "CACHALOT_UNCACHABLE_APPS", ())
    kept = getattr(django_settings, "CACHALOT_ONLY_CACHABLE_APPS", ()) or ("autorun",)
    is_enabled = getattr(django_settings, "CACHALOT_ENABLED", True)
    return "autorun" in left_out or "autorun" not in kept or not is_enabled


def _is_per_tenant(config: AppConfig | None) -> bool:
    names = getattr(django_settings, "TENANT_APPS", ())
    return config is not None and any(
        name == config.name or name.startswith(f"{config.name}.") for name in names
    )
