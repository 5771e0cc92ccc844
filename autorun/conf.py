"""The settings in `AUTORUN`, read when they are first used and never at import.

from autorun.conf import settings

settings.WINDOW  # the project's value, or the default
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

from celery.schedules import crontab
from django.conf import settings as django_settings
from django.core.signals import setting_changed

NIGHTLY = crontab(minute="0", hour="3")

DEFAULTS: dict[str, Any] = {
    "SCHEDULE": NIGHTLY,
    "WINDOW": 1_000,
    "LEASE": 60,
    "HEARTBEAT": 15,
    "TIMEOUT": 600,
    "UPKEEP_INTERVAL": 5,
    "PUBLISH": "thread",
    "MAX_OUTPUT_BYTES": 1_000_000,
    "MAX_TRACEBACK_BYTES": 20_000,
    "RETENTION": dt.timedelta(days=30),
    "QUEUE": None,
    "DATABASE": "default",
    "ON_FAILURE": None,
    "ON_FAILURE_EVERY": dt.timedelta(hours=1),
}


class Settings:
    """One attribute per setting; units are seconds and bytes.

    SCHEDULE: when runners without their own schedule are swept (crontab, timedelta, None).
    WINDOW: the most runs of a node that are queued or running at once.
    LEASE: how long a worker holds a chunk without a heartbeat before it is rescued.
    HEARTBEAT: how often a worker extends its lease.
    TIMEOUT: how long one run may take; None for no limit.
    UPKEEP_INTERVAL: the time between two rounds of upkeep.
    PUBLISH: "thread" publishes saves from a background thread, "inline" from the saving thread.
    MAX_OUTPUT_BYTES: the largest outputs that a run may store, as JSON; None for no limit.
    MAX_TRACEBACK_BYTES: how much of an exception's message, and of its traceback, is kept.
    RETENTION: how long superseded and cancelled runs are kept; None for ever.
    QUEUE: the Celery queue of autorun's own tasks; None for Celery's default.
    DATABASE: the alias of the database that holds autorun's tables.
    ON_FAILURE: a function that takes a FailureReport, or its dotted path; None for no reports.
    ON_FAILURE_EVERY: the least time between two reports of a runner (timedelta).
    """

    SCHEDULE: crontab | dt.timedelta | None
    WINDOW: int
    LEASE: float
    HEARTBEAT: float
    TIMEOUT: float | None
    UPKEEP_INTERVAL: float
    PUBLISH: str
    MAX_OUTPUT_BYTES: int | None
    MAX_TRACEBACK_BYTES: int
    RETENTION: dt.timedelta | None
    QUEUE: str | None
    DATABASE: str
    ON_FAILURE: str | Callable[[Any], Any] | None
    ON_FAILURE_EVERY: dt.timedelta

    def __getattr__(self, name: str) -> Any:
        try:
            default = DEFAULTS[name]
        except KeyError:
            raise AttributeError(f"There is no setting AUTORUN[{name!r}].") from None
        value = self.__dict__[name] = self.given().get(name, default)
        return value

    @staticmethod
    def given() -> dict[str, Any]:
        """The project's own `AUTORUN`; empty if it is not a dict, which a check reports."""
        given = getattr(django_settings, "AUTORUN", None)
        return given if isinstance(given, dict) else {}


settings = Settings()


def _forget(*, setting: str, **_: Any) -> None:
    if setting == "AUTORUN":
        vars(settings).clear()


setting_changed.connect(_forget, dispatch_uid="autorun.conf")
