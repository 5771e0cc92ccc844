"""The settings in `AUTORUN`, read when they are first used and never at import.

from autorun.conf import settings

settings.WINDOW  # the project's value, or the default
"""

import datetime as dt
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

from celery.schedules import crontab
from django.conf import settings as django_settings
from django.core.signals import setting_changed

from autorun.limits import Limit

NIGHTLY = crontab(minute="0", hour="3")


class Defaults:
    """The settings and their defaults; units are seconds and bytes."""

    #: When runners without their own schedule are swept; None for never.
    SCHEDULE: crontab | dt.timedelta | None = NIGHTLY
    #: The most runs of a node that are queued or running at once.
    WINDOW: int = 1_000
    #: How long a worker keeps a chunk without a heartbeat before the chunk is rescued.
    LEASE: float = 60
    #: How often a worker extends its lease.
    HEARTBEAT: float = 15
    #: How long one run may take; None for no limit.
    TIMEOUT: float | None = 600
    #: Limits that runners share, by the name that their LIMIT gives.
    LIMITS: Mapping[str, Limit] = MappingProxyType({})
    #: The time between two rounds of upkeep.
    UPKEEP_INTERVAL: float = 5
    #: "thread" publishes saves from a background thread, "inline" from the saving thread.
    PUBLISH: str = "thread"
    #: The largest outputs that a run may store, as JSON; None for no limit.
    MAX_OUTPUT_BYTES: int | None = 1_000_000
    #: How much of an exception's message, and of its traceback, is kept.
    MAX_TRACEBACK_BYTES: int = 20_000
    #: How long superseded and cancelled runs are kept; None to keep them forever.
    RETENTION: dt.timedelta | None = dt.timedelta(days=30)
    #: The Celery queue of autorun's own tasks; None for Celery's default.
    QUEUE: str | None = None
    #: The alias of the database that holds autorun's tables.
    DATABASE: str = "default"
    #: A function that takes a FailureReport, or its dotted path; None for no reports.
    ON_FAILURE: str | Callable[[Any], Any] | None = None
    #: The minimum time between two reports of a runner.
    ON_FAILURE_EVERY: dt.timedelta = dt.timedelta(hours=1)


DEFAULTS: dict[str, Any] = {name: value for name, value in vars(Defaults).items() if name.isupper()}


class Settings:
    """The project's settings or their defaults; each value is cached when first read."""

    def __getattr__(self, name: str) -> Any:
        try:
            default = DEFAULTS[name]
        except KeyError:
            raise AttributeError(f"There is no setting AUTORUN[{name!r}].") from None
        given = getattr(django_settings, "AUTORUN", None)  # a check reports what is not a dict
        value = given.get(name, default) if isinstance(given, dict) else default
        self.__dict__[name] = value
        return value


settings = cast(Defaults, Settings())


def _forget(*, setting: str, **_: Any) -> None:
    if setting == "AUTORUN":
        vars(settings).clear()


setting_changed.connect(_forget, dispatch_uid="autorun.conf")
