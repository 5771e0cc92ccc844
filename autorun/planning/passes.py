"""Planning passes over rows of a runner, window by window."""

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import Any

from django.db.models import QuerySet

from autorun.declare.base import Runner
from autorun.declare.nodes import node_of
from autorun.dispatch.releasing import release
from autorun.exceptions import LeaseLost
from autorun.models import Batch
from autorun.planning import batches
from autorun.planning.batches import Outcome
from autorun.planning.planner import Planner
from autorun.planning.reasons import PENDING, Selection
from autorun.planning.retiring import retire_missing
from autorun.planning.windows import Window, Windows, fits_in_one, in_halves, whole
from autorun.state import probes
from autorun.state.counts import progress
from autorun.state.logs import get_logger
from autorun.state.origins import ORIGINS
from autorun.state.transactions import once_committed, repeated_on_conflict

logger = get_logger(__name__)

#: Windows without pending rows are booked together, after so many seconds: saving the cursor took a
#: tenth of the time of a window of 2,000 rows.
BOOK_EVERY = 1.0


@dataclass
class Pass:
    runner: Runner
    rows: QuerySet[Any]
    _: KW_ONLY
    is_given: bool = False
    selection: Selection = PENDING
    counts_undone: bool = False
    among: QuerySet[Any] | None = None
    outcome: Outcome = field(default_factory=Outcome)
    was_refused: bool = False
    #: The outcome that is not saved in the batch yet, and when the last one was.
    _unbooked: Outcome = field(default_factory=Outcome)
    _booked_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.counts_undone:  # only if there are some, which the index does not tell
            found = progress(node_of(self.runner))
            self.counts_undone = found.failed + found.unfinished > 0

    def counted(self, *, limit: int | None) -> Batch:
        """An unsaved batch with the outcome that planning would have."""
        node = node_of(self.runner)
        return self._counted(Batch(runner=self.runner.label, node=node, limit=limit))

    def executed(self, batch: Batch) -> Batch:
        """Plan and release window by window until the rows, the limit or the lease end.

        In the caller's transaction they are only counted, and planned after the commit.
        """
        work, count = partial(self._executed, batch), partial(self._counted, batch)
        return once_committed(work, meanwhile=count)

    def _counted(self, batch: Batch) -> Batch:
        """The batch with the numbers that it will have, as far as they are known."""
        planner = self._planner(batch)

        def count(window: Window) -> None:
            self.outcome += planner.count(window)

        for window in self._windows(batch):
            in_halves(self.runner, self.rows, window, count)
        if batch.limit is not None:
            self.outcome = replace(self.outcome, planned=min(batch.limit, self.outcome.planned))
        for name in ("candidates", "existing", "planned", "unprepared"):
            setattr(batch, name, getattr(self.outcome, name))
        return batch

    def _executed(self, batch: Batch) -> Batch:
        if self.outcome.candidates:  # they were counted for the caller
            self.outcome = Outcome()
            batch.refresh_from_db()
        with probes.span("autorun.plan") as span:
            span.note(runner=batch.runner, batch=batch.pk, trigger=str(batch.trigger))
            self._execute(batch)
            span.note(candidates=self.outcome.candidates, planned=self.outcome.planned)
        return batch

    def _execute(self, batch: Batch) -> None:
        plan = partial(self._plan_window, self._planner(batch), batch)
        probes.crash_point("backfill.begun")
        try:
            for window in self._windows(batch):
                in_halves(self.runner, self.rows, window, plan)
                probes.crash_point("backfill.window")
                if batch.limit is not None and self._left(batch) == 0:
                    break
        except LeaseLost as stopped:
            logger.info("%s: %s", self.runner.label, stopped)
        except Exception as error:
            batches.break_off(batch, error)
            raise
        else:
            probes.crash_point("backfill.unfinished")
            batches.planned(batch)
            if not self.is_given and batch.trigger != Batch.Trigger.BACKFILL:
                # Unless the rows account for all current runs, some are of deleted rows.
                is_whole = batch.limit is None
                if not is_whole or progress(batch.node).total != self.outcome.candidates:
                    retire_missing(self.runner)
        with suppress(Batch.DoesNotExist):  # the database has forgotten it
            batch.refresh_from_db()
        numbers = (self.outcome.candidates, self.outcome.planned)
        # The transcript of `run()` says it, and no other line may stand between its lines.
        level = logging.DEBUG if batch.trigger == Batch.Trigger.CODE else logging.INFO
        line = "%s: %s of %d candidates planned %d runs."
        logger.log(level, line, self.runner.label, batch, *numbers)

    def _plan_window(self, planner: Planner, batch: Batch, window: Window) -> None:
        """Plan a window and book it: with its runs, or within a second if it has none."""
        is_booked = False

        def book(outcome: Outcome) -> None:
            nonlocal is_booked
            batches.advance(batch, self._unbooked + outcome, cursor=window.last_key)
            is_booked = True

        outcome = planner.plan(window, limit=self._left(batch), also=book)
        self.outcome += outcome
        is_last = not window.last_key or self._left(batch) == 0
        # At once after a death: the next process begins where this one ends.
        is_late = batch.tries > 1 or time.monotonic() - self._booked_at >= BOOK_EVERY
        is_due = is_last or is_late
        if is_due and not is_booked:
            repeated_on_conflict(lambda: book(outcome))
        if is_booked:
            batch.cursor = window.last_key or batch.cursor
            self._unbooked, self._booked_at = Outcome(), time.monotonic()
        else:
            self._unbooked += outcome
        if outcome.planned and not self.was_refused:
            self.was_refused = release(batch.node_id).was_refused

    def _left(self, batch: Batch) -> int | None:
        """How many runs the batch may still plan; `batch.planned` is what earlier processes did."""
        if batch.limit is None:
            return None
        return max(0, batch.limit - batch.planned - self.outcome.planned)

    def _windows(self, batch: Batch) -> Iterator[Window]:
        node_id = batch.node_id
        # Another process has planned a batch with a cursor up to there.
        if self.is_given and not batch.cursor and fits_in_one(self.rows):
            return whole(self.runner, self.rows, node_id=node_id)
        deaths = max(batch.tries - 1, 0)
        cut = (batch.cursor, batch.upper_bound, deaths, self.among)
        return iter(Windows(self.runner, self.rows, node_id, *cut))

    def _planner(self, batch: Batch) -> Planner:
        return Planner(
            self.runner,
            node_id=batch.node_id,
            priority=ORIGINS[batch.trigger or Batch.Trigger.CODE].priority,
            selection=self.selection,
            batch=batch,
            counts_undone=self.counts_undone,
        )
