"""Messages of system checks, and the runners that are checked."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from django.apps import AppConfig, apps
from django.core import checks

from autorun.declare import registry
from autorun.declare.runner import Runner


def error(where: object, number: str) -> partial[checks.Error]:
    """An error of this id; the call adds its message and its hint."""
    return partial(checks.Error, obj=place(where), id=f"autorun.{number}")


def warning(where: object, number: str) -> partial[checks.Warning]:
    """A warning, in the same way."""
    return partial(checks.Warning, obj=place(where), id=f"autorun.{number}")


def place(where: object) -> str | None:
    """The place to edit: the dotted path of a runner's class, or the text itself."""
    if where is None or isinstance(where, str):
        return where
    cls = where if inspect.isclass(where) else type(where)
    return f"{cls.__module__}.{cls.__qualname__}"


def runners_in(app_configs: Iterable[AppConfig] | None) -> Iterator[Runner]:
    """The registered runners, only those of the apps if any are given."""
    chosen = None if app_configs is None else set(app_configs)
    for runner in registry.runners():
        if chosen is None or apps.get_containing_app_config(type(runner).__module__) in chosen:
            yield runner


def shown(value: Any) -> str:
    """`value` for a message: at most 60 characters, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."
