"""What checks have in common: which runners they look at, and how they word what they find."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from django.apps import AppConfig, apps
from django.core import checks
from django.core.checks import CheckMessage

from autorun.declare import registry
from autorun.declare.runner import Runner

#: How alike two names are when one is taken for the other's misspelling.
ALIKE = 0.8


def error(where: object, number: str, message: str, hint: str) -> CheckMessage:
    return checks.Error(message, hint=hint, obj=place(where), id=f"autorun.{number}")


def warning(where: object, number: str, message: str, hint: str) -> CheckMessage:
    return checks.Warning(message, hint=hint, obj=place(where), id=f"autorun.{number}")


def place(where: object) -> str | None:
    """Where to edit: the dotted path of a runner's class, or the text itself."""
    if where is None or isinstance(where, str):
        return where
    cls = where if inspect.isclass(where) else type(where)
    return f"{cls.__module__}.{cls.__qualname__}"


def runners_in(app_configs: Iterable[AppConfig] | None) -> Iterator[Runner]:
    """The registered runners, of those apps only where any are given."""
    chosen = None if app_configs is None else set(app_configs)
    for runner in registry.runners():
        if chosen is None or apps.get_containing_app_config(type(runner).__module__) in chosen:
            yield runner


def misspelt(name: str, known: Iterable[str], *, cutoff: float = ALIKE) -> str | None:
    """The one of `known` that `name` was probably meant to be, or None."""
    names = list(known)
    plain = {each.replace("_", "").lower(): each for each in names}
    same = plain.get(name.replace("_", "").lower())
    close = get_close_matches(name, names, n=1, cutoff=cutoff)
    return same or (close[0] if close else None)


def shown(value: Any) -> str:
    """`value` as a message shows it: short, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."
