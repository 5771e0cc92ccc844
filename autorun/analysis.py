"""Analyses: plain typed functions registered under a title and a version."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

from asgiref.sync import iscoroutinefunction
from kombu.utils.compat import detect_environment

from autorun.declare.arguments import Arguments, Problem
from autorun.declare.returns import check_outputs, of_one
from autorun.exceptions import AlreadyRegistered, ImproperAnalysis, NotRegistered, UnsuitablePool
from autorun.state.words import meant

MAX_TITLE_LENGTH = 255
MAX_VERSION_LENGTH = 64
#: The most rows that a call may take, or that may be processed at once.
MOST_AT_ONCE = 10_000

Function = TypeVar("Function", bound=Callable[..., Any])

_registry: dict[tuple[str, str], Analysis] = {}


def analysis(
    title: str = "", *, version: str = "", batch: int | None = None, concurrency: int | None = None
) -> Callable[[Function], Function]:
    """Register the decorated function as one version of an analysis.

    With `batch`, it takes a list of at most that many inputs and returns a list of the same length.
    With `concurrency`, an async function is called for that many rows at once.

    The function itself is unchanged; its attribute `analysis` is the `Analysis`. Raises
    `ImproperAnalysis` if an argument is missing or malformed, and `AlreadyRegistered` if another
    function has the same title and version.
    """
    _check_is_called(title)
    _check_name("title", title, MAX_TITLE_LENGTH)
    _check_name("version", version, MAX_VERSION_LENGTH)
    _check_number("batch", batch)
    _check_number("concurrency", concurrency)

    def decorate(function: Function) -> Function:
        if not inspect.isfunction(function):
            raise ImproperAnalysis(
                f"@analysis({title!r}) must decorate a function, not {function!r}."
            )
        declared = Analysis(title, version, function, batch, concurrency)
        _register(declared)
        function.analysis = declared  # type: ignore[attr-defined]
        return function

    return decorate


def get(title: str, version: str) -> Analysis:
    """Return the analysis of that title and version, or raise `NotRegistered`."""
    try:
        return _registry[title, version]
    except (KeyError, TypeError):
        raise NotRegistered(_not_registered(title, version)) from None


def registered() -> list[Analysis]:
    """List all analyses by title and version."""
    return [_registry[key] for key in sorted(_registry)]


def get_executable(title: str, version: str) -> Analysis:
    """Return the analysis for its execution in this process.

    Raises `NotRegistered`, or `UnsuitablePool` if only other processes can run it.
    """
    found = get(title, version)
    if not found.is_executable:
        raise UnsuitablePool(
            f"{found} is an async function, which a worker with the pool {detect_environment()!r} "
            "cannot run. Start a worker with --pool prefork, solo or threads, and set QUEUE on the "
            "runner so that only such workers get its runs."
        )
    return found


@contextmanager
def temporarily_registered(*analyses: Analysis | Callable[..., Any]) -> Iterator[None]:
    """Register decorated functions or analyses for one test, replacing those of the same name.

    The registry is restored on exit, so analyses declared inside the block disappear too.
    """
    before = dict(_registry)
    try:
        for each in analyses:
            declared = getattr(each, "analysis", each)
            if not isinstance(declared, Analysis):
                raise ImproperAnalysis(
                    f"{each!r} is not an analysis. Decorate it with @analysis(title, version=...)."
                )
            _registry[declared.title, declared.version] = declared
        yield
    finally:
        _registry.clear()
        _registry.update(before)


@contextmanager
def forgetting_declared() -> Iterator[None]:
    """Restore the registry on exit.

    What modules first imported inside the block have registered stays, because Python does not
    import them again.
    """
    before, imported = dict(_registry), set(sys.modules)
    try:
        yield
    finally:
        new = sys.modules.keys() - imported
        staying = {
            key: each
            for key, each in _registry.items()
            if each.function.__module__ in new and "<locals>" not in each.function.__qualname__
        }
        _registry.clear()
        _registry.update(staying | before)


@dataclass(frozen=True)
class Analysis:
    """One version of an analysis: its function and that function's arguments."""

    title: str
    version: str
    function: Callable[..., Any]
    batch: int | None = None
    concurrency: int | None = None

    def __str__(self) -> str:
        return f"{self.title} v{self.version}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    @cached_property
    def call(self) -> Callable[..., Any]:
        """The function; an async one runs until it returns."""
        if not self.is_async:
            return self.function
        from autorun.state import coroutines  # which needs Django

        return partial(coroutines.run, self.function)

    @cached_property
    def is_async(self) -> bool:
        """Whether the function is async, or wraps an async one."""
        return iscoroutinefunction(inspect.unwrap(self.function))

    @cached_property
    def is_concurrent(self) -> bool:
        """Whether it can be called for several rows at a time."""
        return self.concurrency is not None and self.is_async and self.batch is None

    @property
    def calls_at_once(self) -> int:
        """The most calls that a worker process makes at a time."""
        return (self.concurrency or 1) if self.is_concurrent else 1

    @cached_property
    def is_executable(self) -> bool:
        """Whether this process can run it: on gevent and eventlet, event loops disturb others."""
        return not self.is_async or detect_environment() == "default"

    @property
    def location(self) -> str:
        """The function as `module:qualname`."""
        return f"{self.function.__module__}:{self.function.__qualname__}"

    @property
    def signature(self) -> inspect.Signature:
        return self.arguments.signature

    @cached_property
    def return_annotation(self) -> Any:
        """The return annotation, of one row for a batch; Any without one."""
        returned = self.arguments.returned
        return returned if self.batch is None else of_one(returned)

    @cached_property
    def check_outputs(self) -> Callable[[Any], None] | None:
        """A check that raises OutputError for outputs that do not fit; None without annotation."""
        returned = self.return_annotation
        return None if returned in (Any, object) else partial(check_outputs, annotation=returned)

    def check(self, configuration: Mapping[str, object], *receivers: str) -> list[Problem]:
        """List the reasons why the function cannot take `configuration` and these arguments."""
        return self.arguments.check(configuration, *receivers)

    @cached_property
    def arguments(self) -> Arguments:
        return Arguments(self.function, owner=str(self), location=self.location)


def _register(declared: Analysis) -> None:
    other = _registry.get((declared.title, declared.version))
    # The same location means that the module was reloaded.
    if other is not None and other.location != declared.location:
        raise AlreadyRegistered(
            f"{declared.location} declares version {declared.version!r} of the analysis "
            f"{declared.title!r}, which {other.location} declares already. "
            "Give one of them another title or version."
        )
    _registry[declared.title, declared.version] = declared


def _check_is_called(title: object) -> None:
    if inspect.isroutine(title) or inspect.isclass(title):
        words = title.__name__.replace("_", " ").title()
        raise ImproperAnalysis(
            f"@analysis needs a title and a version. Write @analysis({words!r}, version='1.0') "
            f"above {title.__qualname__}."
        )


def _check_name(what: str, value: object, max_length: int) -> None:
    if isinstance(value, (int, float)):
        raise ImproperAnalysis(f"An analysis's {what} must be a string. Quote it: {str(value)!r}.")
    if not isinstance(value, str):
        raise ImproperAnalysis(f"An analysis's {what} must be a string, not {value!r}.")
    if not value.strip() or value != value.strip():
        raise ImproperAnalysis(
            f"An analysis's {what} must not be empty, nor begin or end with a space: {value!r}. "
            "Write @analysis('Title', version='1.0')."
        )
    if len(value) > max_length:
        raise ImproperAnalysis(
            f"An analysis's {what} must have at most {max_length} characters: {value!r}."
        )


def _check_number(what: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_AT_ONCE:
        raise ImproperAnalysis(
            f"An analysis's {what} must be an integer from 1 to {MOST_AT_ONCE:,}, not {value!r}."
        )


def _not_registered(title: object, version: object) -> str:
    versions = [repr(known) for other, known in sorted(_registry) if other == title]
    if versions:
        quote = "" if isinstance(version, str) else " A version is a string: quote it."
        return (
            f"No version {version!r} of the analysis {title!r} is registered.{quote} "
            f"Registered versions: {', '.join(versions)}."
        )
    titles = sorted({known for known, _ in _registry})
    close = meant(str(title), titles)
    if close:
        return f"No analysis is registered as {title!r}. Did you mean {close!r}?"
    known = f"Registered: {', '.join(map(repr, titles))}" if titles else "None is registered"
    return (
        f"No analysis is registered as {title!r}. {known}. Declare it with "
        "@analysis(title, version=...) in the 'analyses' module of an installed app."
    )
