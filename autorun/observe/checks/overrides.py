"""Checks of the hooks that a runner overrides."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from django.core.checks import CheckMessage
from django.db import Error as DatabaseError, connections
from django.db.models import Manager, Model, QuerySet

from autorun.declare.base import Runner
from autorun.declare.console import SILENT
from autorun.declare.hooks import as_plain, is_of
from autorun.observe.checks.declarations import model_of
from autorun.observe.checks.expectations import OPTION_VALUES
from autorun.observe.checks.problems import error, place, shown

#: The positional arguments of each hook, and the names of its keyword arguments.
CALLS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "get_base_queryset": ((), ()),
    "filter_queryset": (("queryset",), ("log_level",)),
    "log_filter_start": (("log_level",), ()),
    "log_filter_end": (("n_candidates", "log_level"), ()),
    "get_instance_representation": (("instance",), ()),
    "create_configuration": ((), ()),
    "get_schedule": ((), ()),
    "get_timeout": ((), ()),
    "get_retry_backoff": (("attempt",), ()),
}
#: Hooks that compute an option, and the arguments to try them with.
COMPUTED: Mapping[str, tuple[Any, ...]] = {
    "get_schedule": (),
    "get_timeout": (),
    "get_retry_backoff": (1,),
}
#: Every query and every transaction calls one of these.
WAYS = ("ensure_connection", "cursor", "chunked_cursor")


def check_overrides(runner: Runner) -> Iterator[CheckMessage]:
    """E011 and E012: hooks that raise, return a wrong value, or cannot be called."""
    overridden = [name for name in CALLS if runner.overrides(name)]
    improper = {name: problem for name in overridden if (problem := _signature(runner, name))}
    proper = [name for name in overridden if name not in improper]
    yield from improper.values()
    model = model_of(runner)
    if model is not None and "get_base_queryset" not in improper:
        yield from _querysets(runner, model, proper)
    for name in COMPUTED:
        if name in proper:
            yield from _computed(runner, name)


def _signature(runner: Runner, name: str) -> CheckMessage | None:
    method = getattr(runner, name)
    positional, named = CALLS[name]
    arguments = ", ".join(("self", *positional, *named))
    if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
        problem = "is async, but it is called without await."
    else:
        try:
            inspect.signature(method).bind(*positional, **dict.fromkeys(named))
        except TypeError as mismatch:
            problem = f"cannot be called as it is: {mismatch}."
        except ValueError:  # a callable without a signature
            return None
        else:
            return None
    return error(runner, "E012")(
        f"{name}() {problem}", f"Declare it in {place(runner)} as `def {name}({arguments}):`."
    )


def _querysets(
    runner: Runner, model: type[Model], proper: Collection[str]
) -> Iterator[CheckMessage]:
    base = _called(runner.get_base_queryset)
    # The default fails only because of BASE_QUERY, which has its own check.
    if "get_base_queryset" in proper:
        complaints = list(_given(runner, "get_base_queryset", base, model))
        yield from complaints
        if complaints:
            return
    if base.is_known and "filter_queryset" in proper:
        yield from _filter(runner, model, base.value)


def _filter(runner: Runner, model: type[Model], base: Any) -> Iterator[CheckMessage]:
    rows = _called(as_plain, runner, base)
    if not rows.is_known:
        return
    found = _called(runner.filter_queryset, rows.value, log_level=SILENT)
    if not found.is_known and found.error is None:
        # A filter that logs how many rows pass needs no query for an empty queryset. But an
        # exception may be due to the empty queryset, so it is dropped.
        found = _called(runner.filter_queryset, rows.value.none(), log_level=SILENT)
        found = replace(found, error=None)
    complaints = list(_given(runner, "filter_queryset", found, model))
    yield from complaints
    if found.is_known and not complaints and found.value.query.is_sliced:
        yield error(runner, "E011")(
            "filter_queryset() returns a slice. Workers call it with the rows of a chunk, and a "
            "slice of those differs from the one that was planned.",
            f"Remove the slice from filter_queryset() in {place(runner)}. FILTERS and the queryset "
            "for run() may have slices.",
        )


def _given(runner: Runner, name: str, found: Called, model: type[Model]) -> Iterator[CheckMessage]:
    """Errors of a hook that raises, or does not return a queryset of the model."""
    if found.error is not None:
        yield _raised(runner, name, found.error)
    if not found.is_known:
        return
    rows: Any = found.value
    # A base queryset may be a manager; a manager is not a filtered queryset.
    kinds = (QuerySet,) if name == "filter_queryset" else (QuerySet, Manager)
    given = rows.model if isinstance(rows, kinds) else None
    if given is not None and is_of(rows, model):
        return
    with _queries_refused():  # repr() of a list of querysets would query
        what = f"a queryset of {given._meta.label}" if given else shown(rows)
    arguments = "queryset, log_level" if name == "filter_queryset" else ""
    yield error(runner, "E011")(
        f"{name}() returns {what}, not a queryset of {model._meta.label}.",
        f"Edit {name}() in {place(runner)}: `return super().{name}({arguments}).filter(...)`.",
    )


@dataclass(frozen=True)
class Called:
    """The result or exception of a hook; neither if it queried a database."""

    value: Any = None
    error: Exception | None = None
    is_known: bool = False


def _called(hook: Callable[..., Any], *arguments: Any, **options: Any) -> Called:
    # The tables may not exist yet, so a hook that queries is not judged, even if it catches the
    # refusal.
    with _queries_refused() as refusal:
        try:
            found = Called(hook(*arguments, **options), is_known=True)
        except Exception as problem:  # noqa: BLE001
            found = Called(error=problem)
    has_queried = refusal.called or isinstance(found.error, DatabaseError)
    return Called() if has_queried else found


def _computed(runner: Runner, name: str) -> Iterator[CheckMessage]:
    expected = OPTION_VALUES[name.removeprefix("get_").upper()]
    found = _called(getattr(runner, name), *COMPUTED[name])
    if found.error is not None:
        yield _raised(runner, name, found.error)
    elif found.is_known and not expected.holds(found.value):
        yield error(runner, "E011")(
            f"{name}() returns {shown(found.value)}. It must be {expected.words}.",
            f"Edit {name}() in {place(runner)} to return {expected.example}, for example.",
        )


def _raised(runner: Runner, name: str, problem: Exception) -> CheckMessage:
    return error(runner, "E011")(
        f"{name}() raises {type(problem).__name__}: {problem}",
        f"Correct {name}() in {place(runner)}.",
    )


@contextmanager
def _queries_refused() -> Iterator[mock.Mock]:
    """Raise DatabaseError for each query of this thread within the block: tables may not exist."""
    refusal = mock.Mock(side_effect=DatabaseError("System checks query no database."))
    with ExitStack() as stack:
        for connection in connections.all():
            # Not `execute_wrapper`, which is called only after the connection is open.
            for way in WAYS:
                stack.enter_context(mock.patch.object(connection, way, refusal))
        yield refusal
