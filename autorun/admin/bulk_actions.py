"""The actions on many runs, which the list and the page of a run offer."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from autorun.admin.permissions import Permission
from autorun.control import interventions
from autorun.models import Run
from autorun.observe.listing import RunFilter


@dataclass(frozen=True)
class BulkAction:
    """An action on the runs in `states`; `choice` names it in the list's menu."""

    name: str
    choice: str
    permission: Permission
    states: tuple[str, ...]
    explanation: str
    #: Changes the runs and returns how many; None for retries, which create batches.
    change: Callable[[Iterable[list[Run]]], int] | None = None
    #: The result, for one run and for many.
    done: tuple[str, str] = ("", "")
    #: States that it also accepts if a filter or a ticked run names them.
    named: tuple[str, ...] = ()

    @property
    def verb(self) -> str:
        return self.name.capitalize()

    @property
    def accepts(self) -> tuple[str, ...]:
        return (*self.states, *self.named)

    def narrowed(self, chosen: RunFilter) -> list[RunFilter]:
        states = [chosen.state] if chosen.state else self.states
        return [replace(chosen, state=state) for state in states]


ACTIONS: Mapping[str, BulkAction] = {
    each.name: each
    for each in (
        BulkAction(
            "retry",
            "Retry failed and ignored runs",
            Permission.RETRY,
            ("failed",),
            "They start again with a fresh set of attempts.",
            named=("ignored", "not_applicable"),
        ),
        BulkAction(
            "ignore",
            "Ignore failed runs",
            Permission.CANCEL,
            ("failed",),
            "They are left alone until the input of their row changes.",
            interventions.ignore_runs,
            ("failed run is ignored from now on.", "failed runs are ignored from now on."),
        ),
        BulkAction(
            "cancel",
            "Cancel unfinished runs",
            Permission.CANCEL,
            ("waiting", "postponed", "queued", "parked"),
            "They do not start, and those that are running are stopped within seconds. A later "
            "sweep plans their rows again.",
            interventions.cancel_runs,
            ("run cancelled.", "runs cancelled."),
            named=("running",),
        ),
    )
}
