"""The body of an analysis, called for one row or for many; what it does becomes results."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from typing import Any

from autorun.analysis import Analysis
from autorun.conf import settings
from autorun.declare import interruption
from autorun.declare.base import Runner
from autorun.declare.hooks import backoff_of, timeout_of
from autorun.dispatch.limiting import calls_at_once
from autorun.exceptions import (
    ConfigurationError,
    NotApplicable,
    OutputError,
    RetryLater,
    RunTimeout,
    SmallerBatch,
)
from autorun.execution.assignments import Assignment
from autorun.execution.calls import Call, Portions, values_of
from autorun.execution.results import Result
from autorun.execution.tails import log_tail
from autorun.models import Run
from autorun.planning.rows import NOT_REPRESENTED, Row
from autorun.state import probes
from autorun.state.coroutines import Together, within
from autorun.state.encoding import encode_outputs
from autorun.state.exception_text import describe_exception, one_line
from autorun.state.user_code import UserCode

#: The reason why a row is not applicable is cut to this size.
MAX_REASON_BYTES = 1_000
_STATUS_NAMES = {status: status.name.lower() for status in Run.Status}


class Body:
    """Calls the body for the rows of a chunk.

    `refused_by` is the last RetryLater with `limit`, which the other rows wait for, too.
    """

    def __init__(self, runner: Runner, analysis: Analysis, configuration: dict[str, Any]) -> None:
        self.runner = runner
        self.analysis = analysis
        self.timeout = timeout_of(runner)
        #: The calls that run at the same time.
        self.together = calls_at_once(runner.label) if analysis.is_concurrent else 1
        #: None if a call takes one row.
        self.portions = None if analysis.batch is None else Portions(analysis.batch)
        self.refused_by: RetryLater | None = None
        #: The error that ends the present call if one of its runs is cancelled.
        self.stop: list[Exception] = []
        self._bind = partial(analysis.arguments.bind, configuration, kept={})
        self._encode = partial(
            encode_outputs,
            max_bytes=settings.MAX_OUTPUT_BYTES,
            check=analysis.check_outputs,
            expected=analysis.return_annotation,
        )
        self._user_code = UserCode(runner.label)
        # One value for each number of attempts, so that the runs are retried in one chunk.
        self._backoff = cache(backoff_of)

    @property
    def rows_a_call(self) -> int:
        return 1 if self.portions is None else self.portions.next

    def call(self, call: Call, termination: interruption.Termination) -> list[Result]:
        """Call the body. Rows without a result have to be called again. Raises Interrupted."""
        if self.portions is not None:
            return self._of_many(self.portions, call, termination)
        (assignment,) = call.assignments
        row = assignment.row
        with probes.span("autorun.run") as span:
            try:
                with (
                    self._user_code,
                    interruption.Interruptible(termination),
                    interruption.time_limit(self.timeout, stop=self.stop),
                ):
                    arguments = self._bind(self._inputs(row))
                    outputs = self._encode(self.analysis.call(**arguments))
                result = self._success(assignment, outputs, seconds=time.monotonic() - call.since)
            except interruption.Interrupted:
                raise interruption.Interrupted from None
            # Anything a body raises is its failure, even SystemExit and KeyboardInterrupt: a Ctrl-C
            # arrives as Interrupted.
            except BaseException as error:  # noqa: BLE001
                result = self.result_of(assignment, error, call)
            span.note(
                run=result.run_id,
                key=row.key,
                attempt=result.attempts,
                status=_STATUS_NAMES[result.status],
            )
            if result.failure is not None:
                span.fail(result.failure)
        return [result]

    def call_together(
        self,
        next_call: Callable[[Callable[[float], object]], Call | None],
        settle: Callable[[Call, Sequence[Result]], object],
        termination: interruption.Termination,
    ) -> None:
        """Execute calls in one event loop, as many at a time as the analysis allows.

        The loop pauses while results are written. Raises LeaseLost, or Interrupted.
        """
        begun: dict[asyncio.Task[Any], Call] = {}
        with Together() as together:

            def rest(seconds: float) -> None:
                with self._going_on(termination):
                    together.rest(seconds)

            while True:
                while len(begun) < self.together and (call := next_call(rest)):
                    task = self._begin(call, together, termination)
                    if isinstance(task, Result):
                        settle(call, [task])
                    else:
                        begun[task] = call
                if not begun:
                    return
                with self._going_on(termination):
                    done = together.step()
                for each in done:
                    call = begun.pop(each)
                    settle(call, [self._result_of_task(call, each)])

    def _begin(
        self, call: Call, together: Together, termination: interruption.Termination
    ) -> asyncio.Task[Any] | Result:
        """Start a call beside others. Return its result if it cannot start. Raises Interrupted."""
        (assignment,) = call.assignments
        try:
            with (
                self._user_code,
                interruption.Interruptible(termination),
                interruption.time_limit(self.timeout),
            ):
                arguments = self._bind(self._inputs(assignment.row))
        except interruption.Interrupted:
            raise interruption.Interrupted from None
        except BaseException as error:  # noqa: BLE001  as in `call`
            return self.result_of(assignment, error, call)
        task = together.begin(self._traced(assignment, arguments))
        call.stop = partial(together.cancel, task)
        return task

    @contextmanager
    def _going_on(self, termination: interruption.Termination) -> Iterator[None]:
        """A block in which started calls continue. Raises Interrupted."""
        try:
            with (
                self._user_code,
                interruption.Interruptible(termination),
                interruption.blocking_limited(),
            ):
                yield
        except interruption.Interrupted:
            raise interruption.Interrupted from None

    def _result_of_task(self, call: Call, task: asyncio.Task[Any]) -> Result:
        (assignment,) = call.assignments
        value, error = task.result()
        if call.is_stopped and isinstance(error, asyncio.CancelledError):
            return Result.moved(assignment.run)
        try:
            if error is None:
                with self._user_code:
                    outputs = self._encode(value)
                return self._success(assignment, outputs, seconds=call.seconds_a_row)
        except Exception as misfit:  # noqa: BLE001
            error = misfit
        return self.result_of(assignment, error, call)

    async def _traced(
        self, assignment: Assignment, arguments: dict[str, Any]
    ) -> tuple[Any, BaseException | None]:
        """Call the body. Return its value and the error that it raises, including SystemExit."""
        run = assignment.run
        with probes.span("autorun.run") as span:
            span.note(run=run.pk, key=assignment.row.key, attempt=run.attempts + 1)
            late = interruption.too_long(self.timeout or 0.0)
            try:
                value = await within(self.timeout, late, self.analysis.function, **arguments)
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001  as in `call`
                others = {NotApplicable: "not_applicable", RetryLater: "pending"}
                span.note(status=others.get(type(error), "failed"))
                return None, error
            span.note(status="succeeded")
            return value, None

    def failure(self, assignment: Assignment, error: BaseException, call: Call) -> Result:
        """The run as failed with `error`, to be retried if it has attempts left."""
        most = settings.MAX_TRACEBACK_BYTES
        tail = log_tail(call.tail, error, max_bytes=most, rows=len(call.assignments))
        failure = replace(describe_exception(error, max_bytes=most), log_tail=tail)
        failed = Result.failed(
            assignment.run,
            failure,
            self.runner,
            fingerprint=assignment.row.fingerprint,
            backoff=self._backoff,
            is_lasting=isinstance(error, ConfigurationError),
        )
        return failed._replace(seconds=call.seconds_a_row)

    def failures(self, call: Call, error: BaseException) -> list[Result]:
        """The runs of a call as failed with `error`.

        Any of several may be at fault: they use an attempt, and are always retried.
        """
        if len(call.assignments) == 1:
            return [self.failure(call.assignments[0], error, call)]
        failure = describe_exception(error, max_bytes=settings.MAX_TRACEBACK_BYTES)
        return [
            Result.failed(each.run, failure, None, fingerprint=each.row.fingerprint)
            for each in call.assignments
        ]

    def _of_many(
        self, portions: Portions, call: Call, termination: interruption.Termination
    ) -> list[Result]:
        results: list[Result] = []
        ready: list[Assignment] = []
        inputs: list[Mapping[str, Any]] = []
        with probes.span("autorun.call") as span:
            span.note(rows=len(call.assignments))
            try:
                with (
                    self._user_code,
                    interruption.Interruptible(termination),
                    interruption.time_limit(self.timeout, stop=self.stop),
                ):
                    for each in call.assignments:
                        try:
                            inputs.append(self._inputs(each.row))
                            ready.append(each)
                        except Exception as error:
                            if isinstance(error, RunTimeout) and error is not each.row.error:
                                raise
                            results.append(self.result_of(each, error, call))
                    if ready:
                        names = self.runner.receivers
                        arguments = self._bind(
                            {name: [each[name] for each in inputs] for name in names}
                        )
                        returned = self.analysis.call(**arguments)
                        values = values_of(returned, len(ready), self.analysis)
                        ended = partial(self._result_of_value, call, call.seconds_a_row)
                        results += map(ended, ready, values)
            except interruption.Interrupted:
                raise interruption.Interrupted from None
            except BaseException as error:  # noqa: BLE001  as in `call`
                done = {result.run_id for result in results}
                rest = [each for each in call.assignments if each.run.pk not in done]
                results += self._after_raise(portions, rest, error, call)
            else:
                portions.returned(len(call.assignments))
        return results

    def _after_raise(
        self, portions: Portions, rest: Sequence[Assignment], error: BaseException, call: Call
    ) -> list[Result]:
        """The results of rows whose call raised; none if the rows are to be called again."""
        if self.stop:
            return [Result.moved(each.run) for each in rest]
        is_alone = len(rest) == 1
        if isinstance(error, SmallerBatch):
            if not is_alone:
                portions.too_many(len(rest))
                return []
            error = OutputError(
                f"{self.analysis} raised SmallerBatch for a single row. If a row is too large even "
                "alone, shorten its input in the body, or raise NotApplicable."
            )
        if is_alone or isinstance(error, RetryLater):
            portions.blamed()
            return [self.result_of(each, error, call) for each in rest]
        portions.raised(len(rest))
        return []

    def _result_of_value(
        self, call: Call, seconds: float, assignment: Assignment, value: Any
    ) -> Result:
        """The result of one row of a batch, from its place in the list."""
        if isinstance(value, BaseException):
            return self.result_of(assignment, value, call)
        try:
            return self._success(assignment, self._encode(value), seconds=seconds)
        except OutputError as misfit:
            error: BaseException = misfit
            if isinstance(value, type) and issubclass(value, BaseException):
                with suppress(TypeError):  # it takes arguments
                    error = value()  # as `raise` makes one of a class
            return self.result_of(assignment, error, call)

    def _inputs(self, row: Row) -> Mapping[str, Any]:
        if row.error is not None:
            raise row.error
        key = self.runner.get_input_key()
        if key in row.upstream:
            return row.upstream
        representation = row.representation
        if representation is NOT_REPRESENTED:
            representation = self.runner.get_instance_representation(row.instance)
        return {key: representation, **row.upstream}

    def _success(self, assignment: Assignment, outputs: str, *, seconds: float) -> Result:
        run, row = assignment.run, assignment.row
        ended = (run.pk, Run.Status.SUCCEEDED, run.attempts + 1, row.fingerprint, outputs)
        return Result(*ended, key=row.key, seconds=seconds)

    def result_of(self, assignment: Assignment, error: BaseException, call: Call) -> Result:
        """The result of a run whose body raised, or returned an exception in place of a value."""
        run, row = assignment.run, assignment.row
        if self.stop and error is self.stop[0]:
            return Result.moved(run)
        if isinstance(error, RetryLater):
            if error.limit:
                self.refused_by = error
            return Result.moved(run, again_in=error.seconds, postponed_by=one_line(error))
        if isinstance(error, NotApplicable):
            reason = describe_exception(error, max_bytes=MAX_REASON_BYTES).message
            ended = (run.pk, Run.Status.NOT_APPLICABLE, run.attempts + 1, row.fingerprint)
            return Result(*ended, json.dumps(reason), key=row.key, seconds=call.seconds_a_row)
        return self.failure(assignment, error, call)
