"""Runs whose process was told to stop: they start again, after a pause that doubles.

A deployment costs no attempt, even if it stops one worker after another during the same run. A body
that has its own process stopped would be given back in the same way, without end, and take the
place of other runs. So after the longest pause, a stop uses an attempt.
"""

from collections.abc import Sequence

from autorun.exceptions import WorkerLost
from autorun.execution.body import Body
from autorun.execution.calls import Call
from autorun.execution.results import Result
from autorun.models import Chunk

#: Why such a run waits, and the count.
STOPPED = "The process was told to stop during the run. Stops in a row: "
MOST = 9
#: The first one starts at once, but in another chunk than the runs that had not started.
AT_ONCE = 1e-6


def stops_before(chunk: Chunk) -> int:
    """How often in a row the runs of the chunk have been stopped."""
    count = chunk.postponed_by.removeprefix(STOPPED)
    return int(count) if count.isdecimal() else 0


def stopped(chunk: Chunk, calls: Sequence[Call], body: Body) -> list[Result]:
    """The results of the calls that were interrupted as their process was told to stop."""
    stops = stops_before(chunk) + 1
    if stops >= MOST:
        error = WorkerLost(
            f"{STOPPED}{stops}, after pauses of up to {2 ** (MOST - 3)} s. If no deployment stops "
            "it, the body or a program that it starts sends SIGTERM."
        )
        return [each for call in calls for each in body.failures(call, error)]
    pause = 2.0 ** (stops - 2) if stops > 1 else AT_ONCE
    runs = [each.run for call in calls for each in call.assignments]
    return [Result.moved(run, again_in=pause, postponed_by=f"{STOPPED}{stops}") for run in runs]
