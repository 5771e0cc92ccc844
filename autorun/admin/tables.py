"""Runners and batches as lists show them: names, figures, and charts, drawn by templates as SVG."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.utils.text import capfirst
from django.utils.translation import gettext as _, pgettext_lazy

from autorun.admin.markup import time_since
from autorun.declare import registry
from autorun.models import Batch, Run
from autorun.observe.glance import Tally
from autorun.state.counts import BatchCounts, batch_counts
from autorun.state.origins import name_of_batch, requester
from autorun.state.words import estimate, in_words, number, number_in, some_of

WIDTH = 1000
#: Any part that exists can be seen.
NARROWEST = 6
HEIGHT = 100
#: The states of batches in words, which agree with "batch" and not with "run".
BATCH_STATES: Mapping[str, Any] = {
    Batch.State.RUNNING: pgettext_lazy("batch", "running"),
    Batch.State.PAUSED: pgettext_lazy("batch", "paused"),
    Batch.State.CANCELLED: pgettext_lazy("batch", "cancelled"),
    Batch.State.FINISHED: pgettext_lazy("batch", "finished"),
    Batch.State.FAILED: pgettext_lazy("batch", "failed"),
}


@dataclass(frozen=True)
class Figure:
    """A value under its name; the `note` beside it, or `otherwise` in place of none, is grey."""

    name: str
    value: str = ""
    note: str = ""
    otherwise: str = ""

    @property
    def grey(self) -> str:
        return self.note if self.value else self.otherwise


def time_left(seconds: float | None, *, is_paused: bool, is_stuck: bool) -> Figure:
    """The time until all runs have finished, or the reason why it is not known."""
    if is_paused or is_stuck:
        otherwise = _("paused") if is_paused else _("no worker is processing it")
        return Figure(_("Time left"), otherwise=otherwise)
    return Figure(_("Time left"), estimate(seconds), otherwise=_("unknown"))


@dataclass(frozen=True)
class Part:
    """A part of a stacked bar; `query` leads to the list of its runs."""

    name: str
    words: str
    number: int
    query: str = ""
    is_about: bool = False

    @property
    def count(self) -> str:
        return number(self.number, is_about=self.is_about)

    def __str__(self) -> str:
        return f"{self.count} {self.words}"


def stacked(parts: Iterable[Part], *, empty: str = "") -> dict[str, Any]:
    """The parts side by side over the whole width; the label says the same in words."""
    shown = [part for part in parts if part.number > 0]
    total = sum(part.number for part in shown)
    widths = [max(NARROWEST, WIDTH * part.number / total) for part in shown]
    scale = WIDTH / sum(widths) if widths else 1
    rectangles = []
    x = 0.0
    for part, width in zip(shown, widths, strict=True):
        size = f"{width * scale:.2f}"
        rectangles.append({"part": part, "x": f"{x:.2f}", "width": size})
        x += width * scale
    label = ", ".join(map(str, shown)) or empty or _("No runs yet")
    return {"label": label, "rectangles": rectangles}


def columns(numbers: Sequence[tuple[int, int]]) -> list[tuple[str, str]]:
    """A column for each (succeeded, failed), the second on top of the first.

    Those of one colour are the outline of one SVG path, under the name of the colour.
    """
    highest = max((good + bad for good, bad in numbers), default=0) or 1
    outlines: dict[str, str] = {}

    def draw(name: str, index: int, y: float, height: float) -> None:
        outline = f"M{index * 10} {y:.1f}h8v{height:.1f}h-8z"
        outlines[name] = outlines.get(name, "") + outline

    for index, (good, bad) in enumerate(numbers):
        bottom: float = HEIGHT
        for name, value in (("succeeded", good), ("failed", bad)):
            if value:
                height = max(4.0, HEIGHT * value / highest)
                bottom -= height
                draw(name, index, bottom, height)
        if not good and not bad:
            draw("nothing", index, HEIGHT - 3, 3)
    return list(outlines.items())


def counts_of(batches: Iterable[Batch], tally: Tally) -> dict[int, BatchCounts]:
    """The counts of each batch by its id, estimated for nodes in `tally.crowd`; one query."""
    about = {batch.pk: batch.node_id in tally.crowd for batch in batches}
    return batch_counts(about, [pk for pk, is_about in about.items() if is_about])


def batch_lines(batches: Iterable[Batch], tally: Tally) -> list[dict[str, Any]]:
    """The columns of each batch; one query for all, and that of the batches."""
    found = list(batches)
    counts = counts_of(found, tally)
    return [
        {
            "pk": batch.pk,
            "name": capfirst(name_of_batch(batch)),
            "description": _(batch.description),
            "runner": runner_name(batch.runner),
            "state": state_of_batch(batch, counts[batch.pk], is_stuck=batch.node_id in tally.stuck),
            "bar": stacked(parts_of(batch, counts[batch.pk], tally)),
            "runs": _runs(batch, counts[batch.pk]),
            "requested_by": requester(batch.requested_by) or "—",
            "started": time_since(batch.created_at),
        }
        for batch in found
    ]


def runner_name(label: str) -> str:
    """The runner's class in words, `Scan Preprocessing`, with its app if another has that name."""
    app, _dot, name = label.rpartition(".")
    alike = [label for label in registry.labels() if label.endswith(f".{name}")]
    parts = re.split(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", name)
    words = " ".join(parts).removesuffix(" Runner")
    return f"{words} ({app})" if len(alike) > 1 else words


def name_of_run(run: Run) -> str:
    """The name of the runner, and the version: `Scan Preprocessing v1.0`."""
    return f"{runner_name(run.chunk.runner)} v{run.node.version}"


def runner_options() -> list[tuple[str, str]]:
    return [(label, runner_name(label)) for label in registry.labels()]


def as_options(values: Iterable[str]) -> list[tuple[str, str]]:
    """The options of a list whose entries are data, and so are not translated."""
    return [(each, each) for each in values]


def named_options(names: Iterable[str]) -> list[tuple[str, str]]:
    """The options of a list of states or the like, in words."""
    return [(each, in_words(each)) for each in names]


def state_of_batch(batch: Batch, counts: BatchCounts, *, is_stuck: bool) -> tuple[str, str]:
    """The mark and the words of the batch's state; runs that failed are part of it."""
    if is_stuck and batch.state == Batch.State.RUNNING:
        return "stuck", _("no worker")
    if not counts.failed:
        return batch.state, str(BATCH_STATES[batch.state])
    mark = "failed" if batch.state == Batch.State.FINISHED else batch.state
    return mark, f"{BATCH_STATES[batch.state]}, {number_in('failed', counts.failed)}"


def parts_of(batch: Batch, counts: BatchCounts, tally: Tally) -> list[Part]:
    """The parts of the batch's bar; no successes only if nothing has finished."""
    parts = [
        Part(
            name,
            in_words(name, value),
            value,
            urlencode({"batch": batch.pk, "state": name}) if value else "",
        )
        for name in ("succeeded", "failed", "not_applicable", "cancelled")
        if (value := getattr(counts, name)) or (name == "succeeded" and not counts.finished)
    ]
    left = Part("waiting", _("remaining"), counts.left, is_about=batch.node_id in tally.crowd)
    return parts + ([left] if counts.left else [])


def _runs(batch: Batch, counts: BatchCounts) -> str:
    if not counts.total:
        return _("nothing was pending") if batch.planned_at else _("none yet")
    return some_of(counts.finished, counts.total)
