"""Conditions on the values of options and settings."""

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from celery.schedules import crontab
from django.utils.module_loading import import_string

from autorun.declare.trials import Candidate, Failures
from autorun.limits import Limit


@dataclass(frozen=True)
class Expectation:
    """A condition on a value, the condition in words, and an example that meets it."""

    words: str
    holds: Callable[[Any], bool]
    example: str

    def __or__(self, other: "Expectation") -> "Expectation":
        def holds(value: Any) -> bool:
            return self.holds(value) or other.holds(value)

        return Expectation(f"{self.words}, or {other.words}", holds, self.example)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_callable(value: Any) -> bool:
    """Whether `value` is a callable, or the dotted path of one."""
    if isinstance(value, str):
        try:
            return callable(import_string(value))
        except Exception:  # noqa: BLE001  importing a module of the project may raise anything
            return False
    return callable(value)


def integer(least: int, most: int | None = None, *, example: int) -> Expectation:
    words = f"an integer of {least} or more" if most is None else f"an integer, {least} to {most}"

    def holds(value: Any) -> bool:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return is_integer and least <= value and (most is None or value <= most)

    return Expectation(words, holds, str(example))


def one_of(*known: bool | str) -> Expectation:
    kind = type(known[0])  # 1 equals True, and is another value
    words = " or ".join(map(repr, known))
    return Expectation(
        words, lambda value: isinstance(value, kind) and value in known, repr(known[0])
    )


def positive(*, example: float) -> Expectation:
    return Expectation(
        "a number above 0", lambda value: is_number(value) and value > 0, f"{example:g}"
    )


def text(*, longest: int = 255, example: str) -> Expectation:
    words = f"a string of at most {longest} characters"

    def holds(value: Any) -> bool:
        return isinstance(value, str) and bool(value.strip()) and len(value) <= longest

    return Expectation(words, holds, repr(example))


NONE = Expectation("None", lambda value: value is None, "None")
DURATION = Expectation(
    "a datetime.timedelta above 0",
    lambda value: isinstance(value, dt.timedelta) and value > dt.timedelta(0),
    "datetime.timedelta(days=30)",
)
CALLABLE = Expectation(
    "a function, or the dotted path of one that can be imported",
    is_callable,
    '"autorun.notifications.mail_admins"',
)
CRONTAB = Expectation(
    "a celery.schedules.crontab",
    lambda value: isinstance(value, crontab),
    'crontab(minute="0", hour="3")',
)
SCHEDULE = CRONTAB | DURATION | NONE


OPTION_VALUES: Mapping[str, Expectation] = {
    **dict.fromkeys(("ON_SAVE", "ON_WRITE", "STORE_OUTPUTS"), one_of(True, False)),
    "ON_CODE_CHANGE": one_of("warn", "rerun"),
    "MAX_ATTEMPTS": integer(1, 32_000, example=3),
    "CANDIDATE": Expectation(
        "an autorun.runner.Candidate of a version, with so many rows or a share of them",
        lambda value: isinstance(value, Candidate) and value.is_proper,
        'Candidate("1.1", rows=100)',
    )
    | NONE,
    "STOP_AFTER": Expectation(
        "an autorun.runner.Failures(number, of) with whole numbers, 1 <= number <= of <= 10,000",
        lambda value: (
            isinstance(value, Failures)
            and all(type(each) is int for each in (value.number, value.of))
            and 1 <= value.number <= value.of <= 10_000
        ),
        "Failures(20, of=100)",
    )
    | NONE,
    "RETRY_BACKOFF": Expectation(
        "a number of 0 or more", lambda value: is_number(value) and value >= 0, "10"
    ),
    "MAX_PARALLEL": integer(0, example=4),
    "LIMIT": text(example="openai") | NONE,
    "BATCH_SIZE": integer(1, example=50) | NONE,
    "TIMEOUT": positive(example=600) | NONE,
    "QUEUE": text(example="scans") | NONE,
    "PRIORITY": integer(0, 255, example=5) | NONE,
    "MAX_PER_SWEEP": integer(1, example=10_000) | NONE,
    "SCHEDULE": SCHEDULE,
    "FILTER_QUERYSET_START": text(longest=1000, example="Filtering scans..."),
}
LIMITS = Expectation(
    "a dict of an autorun.limits.Limit for each name",
    lambda value: (
        isinstance(value, Mapping)
        and all(isinstance(name, str) and name for name in value)
        and all(isinstance(limit, Limit) for limit in value.values())
    ),
    '{"openai": Limit(parallel=20, rate="3000/m")}',
)
SETTINGS: Mapping[str, Expectation] = {
    "SCHEDULE": SCHEDULE,
    "WINDOW": integer(1, example=1000),
    "LIMITS": LIMITS,
    "LEASE": positive(example=60),
    "HEARTBEAT": positive(example=15),
    "TIMEOUT": positive(example=600) | NONE,
    "UPKEEP_INTERVAL": positive(example=5),
    "PUBLISH": one_of("thread", "inline"),
    "MAX_OUTPUT_BYTES": integer(2, example=1_000_000) | NONE,
    "MAX_TRACEBACK_BYTES": integer(200, example=20_000),
    "RETENTION": DURATION | NONE,
    "QUEUE": text(example="autorun") | NONE,
    "DATABASE": text(example="default"),
    "ON_FAILURE": CALLABLE | NONE,
    "ON_FAILURE_EVERY": DURATION,
}


def advice(name: str, expected: Expectation, value: Any) -> str:
    """The edit that replaces `value`, which is not as expected."""
    if expected is not SCHEDULE:
        return f"{name} = {expected.example}, for example."
    fields = value.split() if isinstance(value, str) else []
    if len(fields) == 5:
        names = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
        given = zip(names, fields, strict=True)
        arguments = ", ".join(f'{name}="{each}"' for name, each in given if each != "*")
        return f"write crontab({arguments}), with `from celery.schedules import crontab`."
    if is_number(value) and value > 0:
        return f"write datetime.timedelta(seconds={value:g})."
    return f"write {SCHEDULE.example}, datetime.timedelta(hours=1), or None for no sweeps."
