"""The runs of a chunk whose async body is called for several rows at a time."""

import asyncio
from typing import Any

from autorun.declare.interruption import Termination
from autorun.execution import running
from autorun.execution.calls import Call
from autorun.execution.results import Result
from autorun.state.coroutines import Together


def perform_together(work: Any, termination: Termination) -> None:
    """Execute the runs of a `Work` in one event loop, as many at a time as the analysis allows.

    The loop stands still while results are written. Raises LeaseLost, or Interrupted.
    """
    begun: dict[asyncio.Task[Any], Call] = {}
    body = work.body
    with Together() as together:

        def rest(seconds: float) -> None:
            with body.going_on(termination):
                together.rest(seconds)

        while True:
            while len(begun) < body.together and (call := work.next_call(termination, rest)):
                running.current.set((work, call))
                task = body.begin(call, together, termination)
                if isinstance(task, Result):
                    work.settle(call, [task])
                else:
                    begun[task] = call
            if not begun:
                return
            with body.going_on(termination):
                done = together.step()
            for each in done:
                call = begun.pop(each)
                work.settle(call, [body.ended(call, each)])
