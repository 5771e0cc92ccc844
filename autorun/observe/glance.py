"""One line that says whether all is well, for the overview and for `status`."""

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from celery import current_app
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from autorun.conf import settings
from autorun.models import Batch, Node, Pulse
from autorun.state.clock import from_now
from autorun.state.counts import Progress
from autorun.state.words import ago, number

#: Rounds of upkeep, and at least so many seconds, that may be missing on a machine under load.
UPKEEP_TURNS = 10
LEAST_UPKEEP_SILENCE = 60.0

Topic = Literal["workers", "runners", "failures", "held_up", "paused", "held", "sweeps"]


@dataclass(frozen=True)
class Fact:
    """One part of the line; `topic` is the page that tells more."""

    topic: Topic
    level: Literal["ok", "warning", "error"]
    what: str
    at: dt.datetime | None = None

    @property
    def words(self) -> str:
        return f"{self.what} {ago(self.at)}" if self.at else self.what


def at_a_glance(progresses: Mapping[Node, Progress], *, broken: int, is_stuck: bool) -> list[Fact]:
    """Return what an operator has to know, the worst first; two queries.

    `progresses` are those of all current nodes, of which at least one `is_stuck`, and `broken` is
    the number of runners that cannot run.
    """
    order = ("error", "warning", "ok")
    facts = [*_of_workers(is_stuck=is_stuck), *_of_runs(progresses, broken), *_of_sweeps()]
    return sorted(facts, key=lambda each: order.index(each.level))


def is_upkeep_silent() -> bool:
    """Whether no worker has made a round of upkeep for long."""
    recent = Pulse.objects.filter(name="upkeep", beat_at__gt=from_now(-upkeep_patience()))
    return not recent.exists()


def upkeep_patience() -> float:
    """Seconds without a round of upkeep after which no worker seems to be running."""
    return max(LEAST_UPKEEP_SILENCE, UPKEEP_TURNS * settings.UPKEEP_INTERVAL)


def _of_workers(*, is_stuck: bool) -> Iterator[Fact]:
    if current_app.conf.task_always_eager:
        return
    if is_stuck:
        yield Fact("workers", "error", _("No worker is picking up tasks"))
    elif is_upkeep_silent():
        yield Fact("workers", "error", _("No worker is running"))
    else:
        yield Fact("workers", "ok", _("Workers are running"))


def _of_runs(progresses: Mapping[Node, Progress], broken: int) -> Iterator[Fact]:
    if broken:
        told = ngettext("%s runner cannot run", "%s runners cannot run", broken)
        yield Fact("runners", "error", told % number(broken))
    failed = sum(each.failed for each in progresses.values())
    if failed:
        yield Fact("failures", "error", _("%s failed") % number(failed))
    parked = sum(each.parked for each in progresses.values())
    if parked:
        yield Fact("held_up", "warning", _("%s held up") % number(parked))
    paused = sum(node.paused_at is not None for node in progresses)
    if paused:
        yield Fact("paused", "warning", _("%s paused") % number(paused))
    held = sum(node.held_at is not None for node in progresses)
    if held:
        yield Fact("held", "warning", _("sweeps of %s held") % number(held))


def _of_sweeps() -> Iterator[Fact]:
    last = Batch.objects.filter(trigger=Batch.Trigger.SWEEP).defer("scope").order_by("-pk").first()
    if last is None:
        return
    has_failed = last.state == Batch.State.FAILED
    level, what = ("error", _("last sweep failed")) if has_failed else ("ok", _("last sweep"))
    yield Fact("sweeps", level, what, last.created_at)  # type: ignore[arg-type]
