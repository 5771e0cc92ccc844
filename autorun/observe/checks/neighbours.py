"""Checks of other packages in the project: beat, cachalot, and schemas for tenants."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from celery import current_app
from celery.utils.imports import load_extension_class_names, symbol_by_name
from django.apps import AppConfig, apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage

from autorun.declare.base import Runner
from autorun.declare.hooks import is_scheduled
from autorun.observe.celery_app import setting_of
from autorun.observe.checks.declarations import model_of
from autorun.observe.checks.problems import error, warning

#: Where packages name their schedulers for `--scheduler`.
ENTRY_POINTS = "celery.beat_schedulers"
BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"


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
