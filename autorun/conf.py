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
    """One attribute a setting; units are seconds and bytes.

    SCHEDULE: when runners without a schedule of their own are swept (crontab, timedelta, None).
    WINDOW: the most runs of a node that are queued or running at once.
    LEASE: how long a worker holds a chunk without a heartbeat before it is rescued.
    HEARTBEAT: how often a worker extends its lease.
    TIMEOUT: how long one run may take; None for no limit.
    UPKEEP_INTERVAL: how often upkeep looks round.
    PUBLISH: "thread" publishes saves from a background thread, "inline" in the saving one.
    MAX_OUTPUT_BYTES: the largest outputs a run may store, as JSON; None for no limit.
    MAX_TRACEBACK_BYTES: what is kept of an exception's message and of its traceback.
    RETENTION: how long superseded and cancelled runs are kept; None for ever.
    QUEUE: the Celery queue of autorun's own tasks; None for Celery's default.
    DATABASE: the alias of the database that holds autorun's tables.
    ON_FAILURE: who is told of runs that failed for good: a function, or the dotted path of one,
        such as "autorun.notifications.mail_admins", that takes a FailureReport; None for nobody.
    ON_FAILURE_EVERY: how often it is called for a runner at most (timedelta).
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
        """The project's own `AUTORUN`; empty where that is no dict, which a check reports."""
        given = getattr(django_settings, "AUTORUN", None)
        return given if isinstance(given, dict) else {}


settings = Settings()


def _forget(*, setting: str, **_: Any) -> None:
    if setting == "AUTORUN":
        vars(settings).clear()


setting_changed.connect(_forget, dispatch_uid="autorun.conf")
