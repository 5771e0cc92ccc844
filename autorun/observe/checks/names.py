"""Checks of the names in a runner's class, because a misspelt option or hook does nothing."""

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from django.core.checks import CheckMessage

from autorun.declare.base import ALIASES, Runner
from autorun.observe.checks.ancestor import REPLACEMENTS, check_ancestor
from autorun.observe.checks.overrides import CALLS
from autorun.observe.checks.problems import error, place, warning
from autorun.state.words import meant

OPTIONS = frozenset(name for name in vars(Runner) if name.isupper())
#: How alike a name and an option must be for the name to count as a misspelling.
ALIKE = 0.8
#: The same for methods and hooks: higher, because a runner's own methods use the words of hooks.
VERY_ALIKE = 0.85


def check_names(runners: Iterable[Runner]) -> Iterator[CheckMessage]:
    """E013, W001, W003 and W005: once for the class that has the name, however many inherit it."""
    classes = {
        cls: None
        for runner in runners
        for cls in type(runner).__mro__
        if cls is not object and not cls.__module__.startswith("autorun.")
    }
    for cls in classes:
        yield from _names(cls)


def _names(cls: type) -> Iterator[CheckMessage]:
    for name, value in vars(cls).items():
        yield from check_ancestor(cls, name, value)
        is_answered = name in ALIASES or name in REPLACEMENTS
        is_inherited = any(hasattr(base, name) for base in cls.__bases__)
        if is_answered or is_inherited or name.startswith("_"):
            continue
        if name.isupper():
            yield _upper_case(cls, name)
        elif _is_method(value):
            yield from _method(cls, name)
        elif name.upper() in OPTIONS:
            yield warning(cls, "W003")(
                f"{name} is not an option of a runner, so autorun ignores it. "
                f"Did you mean {name.upper()}?",
                _renaming(cls, name, name.upper(), "An attribute"),
            )


def _upper_case(cls: type, name: str) -> CheckMessage:
    option = meant(name, OPTIONS, cutoff=ALIKE)
    if option:
        return error(cls, "E013")(
            f"{name} is not an option of a runner. Did you mean {option}?",
            _renaming(cls, name, option, "A constant"),
        )
    close = meant(name, OPTIONS)
    also = f" If you meant {close}, rename it to that." if close else ""
    return warning(cls, "W001")(
        f"{name} is not an option of a runner, so autorun ignores it.",
        f"Rename {name} to _{name} in {place(cls)} if it is a constant of your own.{also}",
    )


def _method(cls: type, name: str) -> Iterator[CheckMessage]:
    hook = meant(name, CALLS, cutoff=VERY_ALIKE)
    # A name with one word more than the hook's, or one less, is not a misspelling.
    mine, its = f"_{name}_", f"_{hook}_"
    if hook is None or hook in vars(cls) or its in mine or mine in its:
        return
    yield warning(cls, "W003")(
        f"{name}() is not a hook of a runner, so autorun does not call it. Did you mean {hook}()?",
        _renaming(cls, f"{name}()", f"{hook}()", "A method"),
    )


def _renaming(cls: type, name: str, correct: str, what: str) -> str:
    return f"Rename {name} to {correct} in {place(cls)}. {what} of your own may be called _{name}."


def _is_method(value: Any) -> bool:
    is_wrapped = isinstance(value, (staticmethod, classmethod))
    return is_wrapped or (callable(value) and not inspect.isclass(value))
