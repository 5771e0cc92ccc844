"""An entry of django-celery-beat: as autorun wants it, and as it is."""

import datetime as dt
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from celery import current_app
from celery.schedules import crontab
from django.conf import settings as django_settings

from autorun.conf import settings
from autorun.exceptions import ImproperRunner

WROTE = "As written by autorun:"
SWITCHED_OFF = "Switched off by autorun, for there is no runner with such a schedule:"
MARK = re.compile(f"^({re.escape(WROTE)}|{re.escape(SWITCHED_OFF)}) ([0-9a-f]+)\\s*$", re.MULTILINE)

#: Columns that only an edit can fill.
NEVER_WRITTEN = (
    *("solar_id", "clocked_id", "exchange", "routing_key", "headers", "priority"),
    *("expires", "one_off", "start_time"),
)
CRON_FIELDS = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
LARGEST_INTEGER = 2**31 - 1


@dataclass(frozen=True)
class Timing:
    """When an entry is due: a row of beat's crontab or interval table."""

    kind: str
    columns: dict[str, Any]

    def find_or_create(self) -> Any:
        """The row. It may be shared with other entries, and is never changed."""
        from django_celery_beat import models

        model = models.CrontabSchedule if self.kind == "crontab" else models.IntervalSchedule
        found = model.objects.filter(**self.columns).order_by("pk").first()
        return found or model.objects.create(**self.columns)

    @classmethod
    def of(cls, schedule: Any) -> Self:
        """Raises ImproperRunner unless the schedule is a crontab or a positive timedelta."""
        if isinstance(schedule, crontab):
            return cls("crontab", _crontab_columns(schedule))
        if isinstance(schedule, dt.timedelta) and schedule > dt.timedelta(0):
            return cls("interval", _interval_columns(schedule))
        raise ImproperRunner(
            f"SCHEDULE is {schedule!r}. It may be a `celery.schedules.crontab`, a positive "
            "`datetime.timedelta`, or None for no schedule."
        )

    @classmethod
    def read(cls, row: Any) -> Self | None:
        """The timing of an entry; None for a kind that autorun never writes."""
        if row.crontab is not None:
            columns = {name: str(getattr(row.crontab, name)) for name in (*CRON_FIELDS, "timezone")}
            return cls("crontab", columns)
        if row.interval is not None:
            return cls("interval", {"every": row.interval.every, "period": row.interval.period})
        return None


@dataclass(frozen=True)
class Entry:
    """The columns that an entry should have."""

    name: str
    task: str
    args: list[str]
    timing: Timing
    expire_seconds: int
    about: str

    def columns(self) -> dict[str, Any]:
        """Values of `PeriodicTask`; the row of the timing is created if it is missing."""
        timing = {"crontab": None, "interval": None, self.timing.kind: self.timing.find_or_create()}
        return self._values() | timing | {"enabled": True}

    def digest(self) -> str:
        """The `digest_of` an entry that is as wanted."""
        return _digest_of_values(self.timing, **self._values())

    def _values(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "args": json.dumps(self.args),
            "queue": settings.QUEUE,
            "expire_seconds": self.expire_seconds,
        }

    def create(self) -> None:
        """Insert the entry, unless another process has just done so."""
        from django_celery_beat.models import PeriodicTask

        row = PeriodicTask(name=self.name, **self.columns())
        row.description = Marks(wrote=self.digest()).put(self.about)
        PeriodicTask.objects.bulk_create([row], ignore_conflicts=True)


class Marks(NamedTuple):
    """The lines under an entry's description: digests of the entry as autorun left it.

    `off` is there when autorun has switched the entry off, and will switch it on again.
    """

    wrote: str | None = None
    off: str | None = None

    @classmethod
    def read(cls, description: str) -> Self:
        found = dict(MARK.findall(description))
        return cls(found.get(WROTE), found.get(SWITCHED_OFF))

    def put(self, description: str) -> str:
        """The description with these marks in place of any others."""
        marks = ((WROTE, self.wrote), (SWITCHED_OFF, self.off))
        lines = [f"{words} {digest}" for words, digest in marks if digest]
        return "\n".join([MARK.sub("", description).strip(), *lines])


def digest_of(row: Any, **instead: Any) -> str:
    names = ("task", "args", "kwargs", "queue", "expire_seconds", "enabled", *NEVER_WRITTEN)
    return _digest_of_values(
        Timing.read(row), **({name: getattr(row, name) for name in names} | instead)
    )


def _digest_of_values(timing: Timing | None, **values: Any) -> str:
    values = {"enabled": True} | values
    # Unset columns are left out, so that a column which beat adds one day changes no digest.
    chosen = {
        name: value
        for name, value in values.items()
        if not (value is None or value is False or value in ("", "{}"))
    }
    when = None if timing is None else [timing.kind, timing.columns]
    text = json.dumps([when, chosen], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _crontab_columns(schedule: crontab) -> dict[str, Any]:
    from django_celery_beat.tzcrontab import TzAwareCrontab

    columns = {name: _cron_text(getattr(schedule, f"_orig_{name}")) for name in CRON_FIELDS}
    zone: Any = getattr(current_app.conf, "timezone", None) or django_settings.TIME_ZONE
    if isinstance(schedule, TzAwareCrontab):
        zone = schedule.tz
    return columns | {"timezone": str(zone)}


def _cron_text(value: int | str | Iterable[int]) -> str:
    if isinstance(value, int | str):
        return str(value)
    return ",".join(str(each) for each in sorted(value))


def _interval_columns(interval: dt.timedelta) -> dict[str, Any]:
    for period in ("days", "hours", "minutes", "seconds", "microseconds"):
        every, rest = divmod(interval, dt.timedelta(**{period: 1}))
        if not rest and every <= LARGEST_INTEGER:
            return {"every": every, "period": period}
    return {"every": round(interval.total_seconds()), "period": "seconds"}
