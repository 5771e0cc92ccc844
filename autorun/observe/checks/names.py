"""Checks of the names in a runner's class: options and hooks that are misspelt do nothing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage

from autorun.declare.runner import Runner
from autorun.observe.checks.overrides import CALLS
from autorun.observe.checks.problems import error, misspelt, place, runners_in, warning

OPTIONS = frozenset(name for name in vars(Runner) if name.isupper())
#: How alike an unknown name must be for its warning to mention the option.
SOMEWHAT_ALIKE = 0.6
#: How alike a method's name and a hook's are when the one is taken for the other's misspelling.
#: More than of options: a runner has methods of its own, named in the words of hooks.
VERY_ALIKE = 0.85


def check_names(
    app_configs: Sequence[AppConfig] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """E013, W001 and W003: once for the class that has the name, however many inherit it."""
    classes = {
        cls: None
        for runner in runners_in(app_configs)
        for cls in type(runner).__mro__
        if cls is not object and not cls.__module__.startswith("autorun.")
    }
    return [found for cls in classes for found in _names(cls)]


def _names(cls: type) -> Iterator[CheckMessage]:
    for name, value in vars(cls).items():
        if name.startswith("_") or any(hasattr(base, name) for base in cls.__bases__):
            continue
        if name.isupper():
            yield _unknown(cls, name)
        elif not _is_method(value):
            yield from _lower_case(cls, name)
        else:
            yield from _method(cls, name)


def _unknown(cls: type, name: str) -> CheckMessage:
    meant = misspelt(name, OPTIONS)
    if meant:
        return error(
            cls,
            "E013",
            f"{name} is no option of a runner. Did you mean {meant}?",
            f"Rename {name} to {meant} in {place(cls)}. A constant of your own may be called "
            f"_{name}.",
        )
    close = misspelt(name, OPTIONS, cutoff=SOMEWHAT_ALIKE)
    also = f" If {close} was meant, rename it to that." if close else ""
    return warning(
        cls,
        "W001",
        f"{name} is no option of a runner, so autorun does not look at it.",
        f"Rename {name} to _{name} in {place(cls)} if it is a constant of your own.{also}",
    )


def _lower_case(cls: type, name: str) -> Iterator[CheckMessage]:
    meant = name.upper()
    if meant in OPTIONS:
        yield warning(
            cls,
            "W003",
            f"{name} is no option of a runner, so autorun does not look at it. Did you mean "
            f"{meant}?",
            f"Rename {name} to {meant} in {place(cls)}. An attribute of your own may be called "
            f"_{name}.",
        )


def _method(cls: type, name: str) -> Iterator[CheckMessage]:
    meant = misspelt(name, CALLS, cutoff=VERY_ALIKE)
    if meant is None or meant in vars(cls):
        return
    # A name with a word more than the hook's, or a word less, is one of its own.
    mine, its = f"_{name}_", f"_{meant}_"
    if its in mine or mine in its:
        return
    yield warning(
        cls,
        "W003",
        f"{name}() is no hook of a runner, so autorun does not call it. Did you mean {meant}()?",
        f"Rename {name}() to {meant}() in {place(cls)}. A method of your own may be called "
        f"_{name}().",
    )


def _is_method(value: Any) -> bool:
    is_wrapped = isinstance(value, (staticmethod, classmethod))
    return is_wrapped or (callable(value) and not inspect.isclass(value))
