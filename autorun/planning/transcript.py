"""The transcript of a batch: the lines that `run()` logs, in the order of its stages."""

from typing import Any

from django.db.models import QuerySet

from autorun.declare import console, hooks
from autorun.declare.base import Runner
from autorun.planning.batches import Outcome
from autorun.planning.rows import eligible

# The last line: the analysis, the number of runs and the model.
STARTED = "🚀Successfully started %s execution over %d %s instances🚀"
WOULD_START = "Would start %s execution over %d %s instances."
RECORDED = "Recorded %s execution over %d %s instances; it starts when a broker answers."


class Transcript:
    def __init__(self, runner: Runner, *, level: int) -> None:
        self.runner = runner
        self.title = str(runner.get_analysis())
        self.model_name = runner.get_model().__name__
        self.level = level
        #: If not, nothing need be counted for it.
        self.is_heard = console.is_heard(level)

    def begin(self, queryset: QuerySet[Any] | None) -> QuerySet[Any]:
        """The eligible rows of `queryset`, or of the runner's base queryset."""
        self._say("%s: Batch Execution", self.title)
        if queryset is not None:
            self._say_apart("🔎 Input queryset validation:")
        else:
            self._say_apart("🔎 Default execution queryset generation:")
            self._say("Querying %s instances...", self.model_name)
            queryset = hooks.base_queryset(self.runner)
            if self.is_heard:
                self._say("%d instances found.", queryset.count())
        rows = eligible(self.runner, queryset, log_level=self.level)
        self._say_apart("⚖ Checking execution status for the input queryset:")
        self._say("Filtering existing runs...")
        return rows

    def end(self, outcome: Outcome, last_line: str, *, is_limited: bool) -> None:
        pending = outcome.candidates - outcome.existing - outcome.unprepared
        self._say("%d existing runs found.", outcome.existing)
        if outcome.failed:
            self._say("%d of them failed and will not be retried.", outcome.failed)
        self._say("%d instances pending execution.", pending)
        if not outcome.candidates:
            self._say_apart("No %s instances to process.", self.model_name)
            return
        if not pending and not outcome.unprepared:
            self._nothing_pending(outcome)
            return
        self._say_apart("🔀 Generating input specifications:")
        if outcome.unprepared:
            self._say("The input of %d instances could not be prepared.", outcome.unprepared)
        self._say("%d input specifications prepared.", pending)
        if is_limited and outcome.planned < pending:
            self._say("%d of them in this batch, as its limit says.", outcome.planned)
        self._say_apart(last_line, self.title, outcome.planned, self.model_name)

    def _nothing_pending(self, outcome: Outcome) -> None:
        number = outcome.candidates
        if outcome.under_way == number:
            line = "Nothing pending: all %d %s instances are in progress."
            self._say_apart(line, number, self.model_name)
            return
        up_to_date = number - outcome.failed - outcome.under_way
        share = "all" if up_to_date == number else f"{up_to_date} of"
        line = f"Nothing pending: {share} %d %s instances are up to date"
        if outcome.under_way:
            line += f", {outcome.under_way} in progress"
        if outcome.failed:
            line += f", {outcome.failed} failed: retry() runs these"
        self._say_apart(f"{line}.", number, self.model_name)

    def _say(self, line: str, *args: Any) -> None:
        console.say(line, *args, level=self.level)

    def _say_apart(self, line: str, *args: Any) -> None:
        self._say("")
        self._say(line, *args)
