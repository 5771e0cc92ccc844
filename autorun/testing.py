"""Tools for the tests of your project: rows are processed at once, without a worker.

from autorun.testing import AutorunTestCase

class ScanTests(AutorunTestCase, TestCase):
    def test_a_new_scan_is_preprocessed(self):
        with self.run_inline():
            scan = Scan.objects.create(path="a.nii")

        self.assert_ran(ScanPreprocessingRunner, scan, outputs={"mean": 0.0})

With pytest, use the fixture `autorun`, which has the same methods. No broker and no commit are
needed: Django's TestCase and pytest-django's `db` are enough.
"""

import json
import unittest
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self
from unittest.mock import ANY

from django.db import connections

from autorun import analysis as analyses
from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.dispatch.inline import Inbox, committed_at_once
from autorun.dispatch.limiting import forget_clocks, unpaced
from autorun.dispatch.messages import EXECUTE
from autorun.dispatch.releasing import release_everywhere
from autorun.exceptions import OutputError
from autorun.execution.execute import execute
from autorun.models import Chunk, Failure, Run
from autorun.observe.explanation import Explanation, explain, last_failure, next_step
from autorun.planning.pending import pending
from autorun.runner import QuerySetRunner
from autorun.state.encoding import encode_outputs
from autorun.state.exception_text import name_exception
from autorun.state.words import counted
from autorun.triggers import delivery, on_save
from autorun.upkeep.rounds import hand_on_batches
from autorun.upkeep.spilled import hand_out_spilled
from autorun.upkeep.writes import hand_out_written

RunnerName = QuerySetRunner | type[QuerySetRunner] | str

#: How a test finishes a run in progress, by the code of its explanation.
ADVICE = {
    "queued": " `work_off()` executes it.",
    "waiting": " `work_off()` executes it.",
    "postponed": " `work_off(retry_now=True)` lets it go on at once.",
    "retrying": " `work_off(retry_now=True)` makes all attempts at once.",
}


@contextmanager
def run_inline() -> Iterator[None]:
    """Process saved rows, and rows that `run()` and `backfill()` plan, before the call returns.

    Rows saved inside an `atomic()` block are processed when the block is left. Rows saved before
    the `with` block still wait for their commit; use `work_off` for them.
    """
    with committed_at_once(Inbox().execute), unpaced():
        yield


def work_off(*, saved: bool = True, retry_now: bool = False, rounds: int = 50) -> int:
    """Plan saved rows, execute queued runs and those they release; return the number of chunks.

    Without `saved`, saved rows still wait for their commit. With `retry_now`, runs waiting for
    another attempt get it at once, so that all of them finish, and no limit is held back. The rate
    of a limit does not slow a test down. Raises RuntimeError if runs are still queued after
    `rounds` rounds.
    """
    worked = 0
    inbox = Inbox()
    with committed_at_once(inbox.take), unpaced():
        if saved:
            _submit_uncommitted()
        for done in range(rounds + 1):
            if hand_out_written():
                hand_on_batches()
            hand_out_spilled()
            # Chunks are executed below, in the order of their priority, as workers do.
            inbox.execute(without=EXECUTE)
            if retry_now:
                Chunk.objects.waiting().update(not_before=None)
                forget_clocks()
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
    """Register runners, and analyses that they name by function, within a `with` block.

    They replace runners of the same label, and analyses of the same title and version. What is
    declared inside the block is removed after it.
    """
    classes = [_runner_class(each, "Give the class itself.") for each in runner_classes]
    named = [each.ANALYSIS for each in classes if not isinstance(each.ANALYSIS, str | None)]
    with analyses.temporarily_registered(*named), registry.registered(*classes):
        yield


def assert_pending(runner: RunnerName, *instances: Any) -> None:
    """Fail unless each of `instances` is pending; without instances, unless any row is."""
    found = _runner(runner)
    _require(found, instances, are_pending=True)
    if not instances and not pending(found).exists():
        raise AssertionError(f"No row is pending for {found.label}.")


def assert_not_pending(runner: RunnerName, *instances: Any) -> None:
    """Fail if one of `instances` is pending; without instances, if any row is."""
    found = _runner(runner)
    _require(found, instances, are_pending=False)
    if not instances and (rows := list(pending(found)[:5])):
        raise AssertionError(f"Rows are pending for {found.label}: {rows}. {_planning(found)}")


def assert_ran(runner: RunnerName, instance: Any, *, outputs: Any = ANY) -> Run:
    """Fail unless the runner has succeeded on the current row, with `outputs` if given.

    `outputs` is the analysis's return value, or its JSON form. Returns the run.
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
    """Fail unless the runner has failed on the current row, with no attempts left.

    `exception` is a class, or its name as `autorun failures` shows it. The name is recorded, so
    only this exact class counts, not a base class. Returns the failure of the last attempt.
    `work_off(retry_now=True)` uses the attempts up.
    """
    expected = None if exception is None else _exception_name(exception)
    found = _runner(runner)
    explanation = explain(found, instance)
    failure = _failure(explanation)
    if explanation.code != "failed" or failure is None:
        raise _wrong(found, instance, "failed", explanation)
    if expected not in (None, failure.exception_class):
        raise _with_traceback(
            f"{found.label} raised {failure.exception_class}, not {expected}, on {instance!r}. "
            "Only the exact class counts, not a base class.",
            failure,
        )
    return failure


def assert_not_applicable(runner: RunnerName, instance: Any, *, reason: Any = ANY) -> Run:
    """Fail unless the body raised NotApplicable on the current row, with `reason` if given."""
    found = _runner(runner)
    explanation = explain(found, instance)
    run = explanation.run
    if run is None or explanation.code != "not_applicable":
        raise _wrong(found, instance, "recorded as not applicable", explanation)
    if run.outputs != reason:
        raise AssertionError(f"{found.label} gave the reason {run.outputs!r}, not {reason!r}.")
    return run


class Functions:
    """This module's functions as methods."""

    run_inline = staticmethod(run_inline)
    work_off = staticmethod(work_off)
    registered = staticmethod(registered)
    assert_pending = staticmethod(assert_pending)
    assert_not_pending = staticmethod(assert_not_pending)
    assert_ran = staticmethod(assert_ran)
    assert_failed = staticmethod(assert_failed)
    assert_not_applicable = staticmethod(assert_not_applicable)


class AutorunTestCase(Functions, unittest.TestCase):
    """A base to list before Django's; analyses that a test declares are removed when it ends."""

    # Not in `setUp`, which test cases override without `super()`.
    def run(self, result: unittest.TestResult | None = None) -> unittest.TestResult | None:
        with analyses.forgetting_declared():
            return super().run(result)

    def register(self, *runner_classes: type[QuerySetRunner]) -> None:
        """Do as `registered` does, until the test ends."""
        self.enterContext(registered(*runner_classes))


class AutorunFixture(Functions, ExitStack):
    """The value of the pytest fixture `autorun`."""

    def __enter__(self) -> Self:
        self.enter_context(analyses.forgetting_declared())
        return self

    def register(self, *runner_classes: type[QuerySetRunner]) -> None:
        """Do as `registered` does, until the test ends."""
        self.enter_context(registered(*runner_classes))


def _runner(given: RunnerName) -> Runner:
    if isinstance(given, str):
        return registry.get(given)
    if isinstance(given, QuerySetRunner):
        return given
    labels = ", ".join(registry.labels()) or "none"
    advice = f"Give a runner's class, instance or label. Registered: {labels}."
    return _runner_class(given, advice)()


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
    """Plan saved rows whose transaction is open, because a TestCase never commits.

    They also stay with their transaction: rows from `setUpTestData` are there for every test.
    """
    for connection in connections.all(initialized_only=True):
        if saved := on_save.uncommitted(connection.alias):
            delivery.submit(saved)
    delivery.wait_until_idle()


def _still_busy(rounds: int) -> RuntimeError:
    queued = Chunk.objects.queued()
    labels = ", ".join(sorted(set(queued.values_list("runner", flat=True))))
    return RuntimeError(
        f"Runs are still queued after {counted(rounds, 'round')}, for {labels}. A body that saves "
        "its own runner's INPUT_FIELDS plans itself for ever: have it save other fields. If the "
        "runs do come to an end, allow more rounds: `work_off(rounds=...)`."
    )


def _encoded(outputs: Any) -> Any:
    try:
        return json.loads(encode_outputs(outputs, max_bytes=None))
    except OutputError:
        return outputs


def _require(runner: Runner, instances: Sequence[Any], *, are_pending: bool) -> None:
    for instance in instances:
        explanation = explain(runner, instance)
        if explanation.is_pending != are_pending:
            raise _wrong(runner, instance, "pending" if are_pending else "up to date", explanation)


def _wrong(
    runner: Runner, instance: Any, expected: str, explanation: Explanation
) -> AssertionError:
    reason = _reason(runner, instance, explanation)
    message = f"{instance!r} is not {expected} for {runner.label}. {reason}"
    return _with_traceback(message, _failure(explanation))


def _reason(runner: Runner, instance: Any, explanation: Explanation) -> str:
    """The reason, with the advice for a test if that differs from production."""
    if explanation.code == "dependency":
        unmet = ((each, explain(each, instance)) for each in registry.dependencies_of(runner))
        return explanation.reason + "".join(
            f" {each.label}: {_reason(each, instance, its)}"
            for each, its in unmet
            if its.code != "succeeded"
        )
    in_production = f"; {next_step(runner)}."
    if explanation.is_pending and explanation.reason.endswith(in_production):
        return f"{explanation.reason.removesuffix(in_production)}. {_planning(runner)}"
    return explanation.reason + ADVICE.get(explanation.code, "")


def _planning(runner: Runner) -> str:
    name = type(runner).__name__
    if not isinstance(registry.find(runner.label), type(runner)):
        return f"{name} is not registered: call `register({name})` before the row is saved."
    run = f"`{name}().run()` before `work_off()`"
    if not (runner.ON_SAVE or runner.ON_WRITE):
        return f"{name} does not process saved rows: call {run}."
    return (
        "In a test, call `work_off()` after the save, or save inside `with run_inline():`. For a "
        "row written in another way (by `update()` or `bulk_create()`, in a commit, or before "
        f"`register()`), call {run}."
    )


def _with_traceback(message: str, failure: Failure | None) -> AssertionError:
    shown = "" if failure is None or not failure.traceback else f"\n\n{failure.traceback}"
    return AssertionError(f"{message}{shown}")


def _failure(explanation: Explanation) -> Failure | None:
    return None if explanation.run is None else last_failure(explanation.run)
