"""For tests of projects that use autorun: rows are processed here and now, without a worker.

from autorun.declare.registry import dependencies_of
from autorun.testing import AutorunTestCase

class ScanTests(AutorunTestCase, TestCase):
    def test_a_new_scan_is_preprocessed(self):
        with self.run_inline():
            scan = Scan.objects.create(path="a.nii")

        self.assert_ran(ScanPreprocessingRunner, scan, outputs={"mean": 0.0})

With pytest the fixture `autorun` has the same methods. No broker is needed, and nothing has to be
committed: Django's TestCase and pytest-django's `db` do.
"""

from __future__ import annotations

import json
import unittest
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self
from unittest.mock import ANY

from django.db import connections

from autorun import analysis as analyses
from autorun.declare import registry
from autorun.declare.registry import dependencies_of
from autorun.declare.runner import Runner
from autorun.dispatch.inline import Inbox, committed_at_once
from autorun.dispatch.messages import EXECUTE
from autorun.dispatch.releasing import release_everywhere
from autorun.exceptions import OutputError
from autorun.execution.execute import execute
from autorun.models import Chunk, Failure, Run
from autorun.observe.explanation import Explanation, explain, next_look
from autorun.planning.pending import pending
from autorun.runner import QuerySetRunner
from autorun.state.encoding import encode_outputs, name_exception
from autorun.triggers import delivery, on_save
from autorun.upkeep.rounds import drain_spilled

RunnerName = QuerySetRunner | type[QuerySetRunner] | str

#: What gets runs on their way done in a test, by the code of their explanation.
ADVICE = {
    "queued": " `work_off()` executes it.",
    "waiting": " `work_off()` executes it.",
    "retrying": " `work_off(retry_now=True)` makes all attempts at once.",
}


@contextmanager
def run_inline() -> Iterator[None]:
    """Process what is saved, and what `run()` and `backfill()` plan, when it happens.

    That is in the thread of the `with` block and before the call returns; saves inside of an
    `atomic()` that was opened in the block are processed when that is left. What was saved before
    the block waits for its commit as ever; for it there is `work_off`.
    """
    with committed_at_once(Inbox(at_once=True)):
        yield


def work_off(*, saved: bool = True, retry_now: bool = False, rounds: int = 50) -> int:
    """Plan what has been saved, and execute what is queued and what that releases; how many chunks.

    Without `saved`, rows that were saved wait for their commit as ever. With `retry_now`, runs that
    wait for another attempt get it at once, so that they end. Raises RuntimeError where there is
    still something to do after so many `rounds`.
    """
    worked = 0
    inbox = Inbox()
    with committed_at_once(inbox):
        if saved:
            _submit_uncommitted()
        for done in range(rounds + 1):
            drain_spilled()
            # The database says what is queued, and what of it is urgent, as it does to workers.
            inbox.execute(without=EXECUTE)
            if retry_now:
                Chunk.objects.waiting().update(not_before=None)
            release_everywhere()
            queued = Chunk.objects.queued().order_by("-priority", "pk")
            chunk_ids = list(queued.values_list("pk", flat=True))
            if not chunk_ids:
                return worked
            if done == rounds:
                break
            for chunk_id in chunk_ids:
                execute(chunk_id)
            worked += len(chunk_ids)
    raise _still_busy(rounds)


@contextmanager
def registered(*runner_classes: type[QuerySetRunner]) -> Iterator[None]:
    """Register runners, and analyses that they name by function, for the length of a `with` block.

    They take the place of those of the same label or the same title and version. What is declared
    inside the block is forgotten after it as well.
    """
    classes = [_runner_class(each, "Give the class itself.") for each in runner_classes]
    named = [each.ANALYSIS for each in classes if not isinstance(each.ANALYSIS, str | None)]
    with analyses.temporarily_registered(*named), registry.registered(*classes):
        yield


def assert_pending(runner: RunnerName, *instances: Any) -> None:
    """Fail unless the runner would process each of `instances`; without any, some row or other."""
    found = _runner(runner)
    for instance in instances:
        explanation = explain(found, instance)
        if not explanation.is_pending:
            raise _wrong(found, instance, "pending", explanation)
    if not instances and not pending(found).exists():
        raise AssertionError(f"No row is pending for {found.label}.")


def assert_not_pending(runner: RunnerName, *instances: Any) -> None:
    """Fail where the runner would process one of `instances`; without any, one row or other."""
    found = _runner(runner)
    for instance in instances:
        explanation = explain(found, instance)
        if explanation.is_pending:
            raise _wrong(found, instance, "up to date", explanation)
    if not instances and (rows := list(pending(found)[:5])):
        raise AssertionError(f"Rows are pending for {found.label}: {rows}. {_planning(found)}")


def assert_ran(runner: RunnerName, instance: Any, *, outputs: Any = ANY) -> Run:
    """Fail unless the runner has succeeded on the row as it is now, with `outputs` if given.

    `outputs` is what the analysis returned, or what JSON makes of it. Returns the run.
    """
    found = _runner(runner)
    explanation = explain(found, instance)
    run = explanation.run
    if run is None or explanation.code != "succeeded" or not run.attempts:
        raise _wrong(found, instance, "processed", explanation)
    if run.outputs != outputs and run.outputs != _encoded(outputs):
        raise AssertionError(
            f"{found.label} returned {run.outputs!r} for {instance!r}, not {outputs!r}."
        )
    return run


def assert_failed(
    runner: RunnerName, instance: Any, *, exception: type[BaseException] | str | None = None
) -> Failure:
    """Fail unless the runner has failed for good on the row as it is now, by `exception` if given.

    That is a class, or its name as `autorun failures` shows it; what was recorded is a name, so
    only the very class counts, none of its bases. Returns what the last attempt threw.
    `work_off(retry_now=True)` uses the attempts up.
    """
    expected = None if exception is None else _exception_name(exception)
    found = _runner(runner)
    explanation = explain(found, instance)
    failure = _last_failure(explanation)
    if explanation.code != "failed" or failure is None:
        raise _wrong(found, instance, "failed", explanation)
    if expected not in (None, failure.exception_class):
        raise _with_traceback(
            f"{found.label} raised {failure.exception_class}, not {expected}, on {instance!r}. "
            "Only the very class counts, none of its bases.",
            failure,
        )
    return failure


class Functions:
    """The functions of this module as methods."""

    run_inline = staticmethod(run_inline)
    work_off = staticmethod(work_off)
    registered = staticmethod(registered)
    assert_pending = staticmethod(assert_pending)
    assert_not_pending = staticmethod(assert_not_pending)
    assert_ran = staticmethod(assert_ran)
    assert_failed = staticmethod(assert_failed)


class AutorunTestCase(Functions, unittest.TestCase):
    """To inherit from beside one of Django's test cases, and before it.

    Analyses that a test declares are forgotten when it ends.
    """

    # Around `setUp`, too, which test cases override without `super()`.
    def run(self, result: unittest.TestResult | None = None) -> unittest.TestResult | None:
        with analyses.forgetting_declared():
            return super().run(result)

    def register(self, *runner_classes: type[QuerySetRunner]) -> None:
        """`registered`, until the test ends."""
        self.enterContext(registered(*runner_classes))


class AutorunFixture(Functions):
    """What the pytest fixture `autorun` is."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(analyses.forgetting_declared())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def register(self, *runner_classes: type[QuerySetRunner]) -> None:
        """`registered`, until the test ends."""
        self._stack.enter_context(registered(*runner_classes))


def _runner(given: RunnerName) -> Runner:
    if isinstance(given, str):
        return registry.get(given)
    if isinstance(given, QuerySetRunner):
        return given
    labels = ", ".join(each.label for each in registry.runners()) or "none"
    return _runner_class(
        given, f"Give a runner's class, instance or label. Registered: {labels}."
    )()


def _runner_class(given: object, advice: str) -> type[QuerySetRunner]:
    if isinstance(given, type) and issubclass(given, QuerySetRunner):
        return given
    raise TypeError(f"{given!r} is not a runner class, a subclass of QuerySetRunner. {advice}")


def _exception_name(given: object) -> str:
    if isinstance(given, str):
        return given
    if isinstance(given, type) and issubclass(given, BaseException):
        return name_exception(given)
    raise TypeError(
        f"exception={given!r} is not an exception's class. Give the class, or its name as "
        "`manage.py autorun failures` shows it."
    )


def _submit_uncommitted() -> None:
    """Have rows planned whose save has not been committed, which in a TestCase it never is.

    They stay with their transaction: what `setUpTestData` saved is there for every test.
    """
    for connection in connections.all(initialized_only=True):
        if saved := on_save.uncommitted(connection.alias):
            delivery.submit(saved)
    delivery.wait_until_idle()


def _still_busy(rounds: int) -> RuntimeError:
    queued = Chunk.objects.queued()
    labels = ", ".join(sorted(set(queued.values_list("runner", flat=True))))
    return RuntimeError(
        f"There is still something to do after {rounds} round{'s' * (rounds != 1)}, for {labels}. "
        "A body that saves what its own runner looks at plans itself for ever: have it save other "
        "fields than INPUT_FIELDS. What does come to an end needs more: `work_off(rounds=...)`."
    )


def _encoded(outputs: Any) -> Any:
    try:
        return json.loads(encode_outputs(outputs, max_bytes=None))
    except OutputError:
        return outputs


def _wrong(
    runner: Runner, instance: Any, expected: str, explanation: Explanation
) -> AssertionError:
    return _with_traceback(
        f"{instance!r} is not {expected} for {runner.label}. "
        + _reason(runner, instance, explanation),
        _last_failure(explanation),
    )


def _reason(runner: Runner, instance: Any, explanation: Explanation) -> str:
    """The reason, and what a test does about it, where that is not what one does in production."""
    if explanation.code == "dependency":
        unmet = ((each, explain(each, instance)) for each in dependencies_of(runner))
        reasons = (
            f" {each.label}: {_reason(each, instance, its)}"
            for each, its in unmet
            if its.code != "succeeded"
        )
        return explanation.reason + "".join(reasons)
    in_production = f"; {next_look(runner)}."
    if explanation.is_pending and explanation.reason.endswith(in_production):
        return f"{explanation.reason.removesuffix(in_production)}. {_planning(runner)}"
    return explanation.reason + ADVICE.get(explanation.code, "")


def _planning(runner: Runner) -> str:
    """How a test has pending rows planned and executed."""
    name = type(runner).__name__
    if not isinstance(registry.find(runner.label), type(runner)):
        return f"{name} is not registered: call `register({name})` before the row is saved."
    run = f"`{name}().run()` before `work_off()`"
    if not runner.ON_SAVE:
        return f"{name} does not look at saved rows: call {run}."
    return (
        "In a test, call `work_off()` after the save, or save inside `with run_inline():`. A row "
        "that came otherwise (by `update()` or `bulk_create()`, in a commit, or before "
        f"`register()`) takes {run}."
    )


def _with_traceback(message: str, failure: Failure | None) -> AssertionError:
    shown = "" if failure is None or not failure.traceback else f"\n\n{failure.traceback}"
    return AssertionError(f"{message}{shown}")


def _last_failure(explanation: Explanation) -> Failure | None:
    if explanation.run is None:
        return None
    failures = Failure.objects.filter(run_id=explanation.run.pk)
    failure: Failure | None = failures.order_by("-attempt").first()
    return failure
