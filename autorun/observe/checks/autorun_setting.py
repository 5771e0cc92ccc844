"""Checks of the AUTORUN setting."""

from collections.abc import Iterator, Mapping
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage

from autorun.conf import DEFAULTS
from autorun.observe.checks.expectations import SETTINGS, advice, is_number
from autorun.observe.checks.problems import error, shown
from autorun.state.words import meant

PLACE = "settings.AUTORUN"

#: A lease must outlast this many heartbeats, because one may get lost.
LEAST_BEATS = 2


def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """E101-E105: the AUTORUN dict, its names and values."""
    given = getattr(django_settings, "AUTORUN", None)
    if given is None:
        return []
    if not isinstance(given, dict):
        return [
            error(PLACE, "E101")(
                f"AUTORUN is {shown(given)}, not a dict.",
                'Edit the settings: AUTORUN = {"WINDOW": 1000}, for example, or remove it.',
            )
        ]
    return [*_names(given), *_values(given), *_lease(given), *_database(given)]


def _names(given: Mapping[Any, Any]) -> Iterator[CheckMessage]:
    for name in given:
        if name in DEFAULTS:
            continue
        known = meant(str(name), DEFAULTS)
        question = f" Did you mean {known!r}?" if known else ""
        edit = f"Rename it to {known!r}" if known else "Remove it"
        yield error(PLACE, "E102")(
            f"AUTORUN has no setting {name!r}.{question}",
            f"{edit} in AUTORUN. Known names: {', '.join(DEFAULTS)}.",
        )


def _values(given: Mapping[Any, Any]) -> Iterator[CheckMessage]:
    for name, expected in SETTINGS.items():
        if name not in given or expected.holds(given[name]):
            continue
        value = given[name]
        place = f"AUTORUN[{name!r}]"
        yield error(PLACE, "E103")(
            f"{place} is {shown(value)}. It must be {expected.words}.",
            f"Edit the settings: {advice(place, expected, value)}",
        )


def _lease(given: Mapping[Any, Any]) -> Iterator[CheckMessage]:
    lease = given.get("LEASE", DEFAULTS["LEASE"])
    heartbeat = given.get("HEARTBEAT", DEFAULTS["HEARTBEAT"])
    if not (is_number(lease) and is_number(heartbeat)) or lease > LEAST_BEATS * heartbeat:
        return
    yield error(PLACE, "E104")(
        f"AUTORUN['LEASE'] is {lease:g} s and AUTORUN['HEARTBEAT'] {heartbeat:g} s: a worker that "
        "misses one heartbeat would lose its chunk.",
        f"Edit the settings: make LEASE more than {LEAST_BEATS} times HEARTBEAT; "
        f"{4 * heartbeat:g}, for example.",
    )


def _database(given: Mapping[Any, Any]) -> Iterator[CheckMessage]:
    alias = given.get("DATABASE", DEFAULTS["DATABASE"])
    if not isinstance(alias, str) or alias in django_settings.DATABASES:
        return
    aliases = ", ".join(map(repr, django_settings.DATABASES))
    yield error(PLACE, "E105")(
        f"AUTORUN['DATABASE'] is {alias!r}, which is not in DATABASES.",
        f"Edit the settings: choose one of {aliases}, or add {alias!r} to DATABASES.",
    )
