"""Versions that no sweep has planned yet, and those whose sweeps and saves are held."""

import datetime as dt

from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from autorun.models import Batch, Node
from autorun.state.words import counted, moment


def is_new(label: str) -> Q:
    """The condition on nodes that no sweep has planned them, and that the runner had another."""
    swept = Batch.objects.filter(node=OuterRef("pk"), trigger=Batch.Trigger.SWEEP)
    alike = Node.objects.filter(title=OuterRef("title"), content_type=OuterRef("content_type"))
    earlier = alike.filter(created_at__lt=OuterRef("created_at"), chunks__runner=label)
    return ~Q(Exists(swept.exclude(planned_at=None))) & Q(Exists(earlier))


def held(node: Node) -> str:
    """Since when, and by whom, a held node's sweeps and saves are held."""
    by = f" by {node.held_by}" if node.held_by else ""
    return f"sweeps and saves are held since {moment(node.held_at)}{by}"


def about_version(
    version: str, node: Node | None, pending: int | None, *, next_sweep: dt.datetime | None
) -> str:
    """The sentence about a version that is new, or whose node is held."""
    rows = "its pending rows" if pending is None else counted(pending, "row")
    if node is not None and node.held_at is not None:
        return f"v{version}: {held(node)}; {rows} stay{'s' * (pending == 1)} pending."
    sweep = "next sweep"
    if next_sweep is not None and next_sweep - timezone.now() < dt.timedelta(days=1):
        sweep = f"{timezone.localtime(next_sweep):%H:%M} sweep"
    return f"v{version} is new: {rows} start{'s' * (pending == 1)} with the {sweep}."
