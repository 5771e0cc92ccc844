from __future__ import annotations

import argparse
import datetime as dt
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from celery.schedules import crontab
from django.core.management.base import CommandError
from django.db import Error as DatabaseError
from rich.live import Live
from rich.text import Text

from autorun.declare.nodes import node_of
from autorun.declare.runner import Runner
from autorun.exceptions import AutorunError
from autorun.management.subcommands.subcommand import (
    ConditionNotMet,
    Subcommand,
    add_check,
    add_format,
    chosen_runners,
    positive_seconds,
)
from autorun.management.subcommands.terminal import Terminal, moment, number, seconds
from autorun.models import Node
from autorun.planning.pending import pending
from autorun.state.counts import Progress, progress

BAR = 16
#: Counting the pending rows may take no more than this part of the time that `--watch` runs.
COUNTING_SHARE = 0.2

#: Words and styles of the counts, in the order they are shown.
COUNTS = (
    ("succeeded", "done", "green"),
    ("failed", "failed", "red"),
    ("pending", "pending", "yellow"),
    ("parked", "parked", "magenta"),
    ("running", "running", "cyan"),
    ("queued", "queued", "cyan"),
    ("waiting", "waiting", "cyan"),
    ("ignored", "ignored", "dim"),
)


@dataclass(frozen=True)
class State:
    """What `status` knows of one runner; `error` says why it knows no more."""

    runner: str
    analysis: str
    model: str
    schedule: str
    progress: Progress = field(default_factory=Progress)
    pending: int | None = None
    paused_at: dt.datetime | None = None
    run_seconds: float | None = None
    error: str = ""

    @property
    def is_done(self) -> bool:
        """Whether nothing has failed, and nothing is left to do."""
        left = self.progress.failed or self.progress.unfinished or self.pending or self.error
        return not left

    def as_json(self) -> dict[str, Any]:
        values = {each: value for each, value in asdict(self).items() if each != "progress"}
        return {**values, **asdict(self.progress)}


class Status(Subcommand):
    """Show how far each runner is: what is done, failed, pending, and on its way."""

    name = "status"
    summary = "how far each runner is"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "runners", metavar="RUNNER", nargs="*", help="labels: app_label.ClassName; else all"
        )
        parser.add_argument(
            "--no-pending",
            action="store_false",
            dest="with_pending",
            help="do not count pending rows, which looks at every row",
        )
        parser.add_argument("--watch", action="store_true", help="show it until Ctrl-C")
        parser.add_argument(
            "--interval",
            type=positive_seconds,
            default=1.0,
            metavar="S",
            help="seconds between two looks",
        )
        add_format(parser)
        add_check(parser, "unless everything is done: nothing failed, pending or on its way")

    def handle(self, **options: Any) -> None:
        runners = chosen_runners(options["runners"])
        if options["watch"]:
            if options["format"] == "json" or options["check"]:
                raise CommandError("--watch goes with neither --format json nor --check.")
            self._watch(runners, options["interval"], with_pending=options["with_pending"])
            return
        states = [look(runner, with_pending=options["with_pending"]) for runner in runners]
        if options["format"] == "json":
            self.terminal.json([state.as_json() for state in states])
        else:
            self._show(states)
        undone = [state.runner for state in states if not state.is_done]
        if options["check"] and undone:
            raise ConditionNotMet(f"Not done: {', '.join(undone)}.")

    def _show(self, states: list[State]) -> None:
        if not states:
            self.terminal.say("No runner is registered.")
            self.terminal.hint(
                "Declare one, with a DATA_MODEL, in the module `runners` of an installed app."
            )
            return
        self.terminal.console.print(drawn(states, self.terminal), soft_wrap=True)
        if any(state.progress.failed for state in states):
            self.terminal.hint("Why: manage.py autorun failures")
        if any(state.progress.parked for state in states):
            self.terminal.hint("Why parked: manage.py autorun doctor")
        if any(state.pending for state in states):
            self.terminal.hint("Start what is pending: manage.py autorun sweep RUNNER")

    def _watch(self, runners: list[Runner], interval: float, *, with_pending: bool) -> None:
        watched = _Watched(runners, with_pending=with_pending)
        try:
            if not self.terminal.is_interactive:
                while True:
                    self.terminal.console.print(drawn(watched.look(), self.terminal))
                    time.sleep(interval)
            with Live(console=self.terminal.console, auto_refresh=False) as live:
                while True:
                    live.update(drawn(watched.look(), self.terminal), refresh=True)
                    time.sleep(interval)
        except KeyboardInterrupt:
            self.terminal.hint("No longer watching; the work goes on.")


class _Watched:
    """Looks again and again, and counts pending rows only as often as that is cheap."""

    def __init__(self, runners: list[Runner], *, with_pending: bool) -> None:
        self.runners = runners
        self.with_pending = with_pending
        self._pending: dict[str, int | None] = {}
        self._count_at = 0.0

    def look(self) -> list[State]:
        begun = time.monotonic()
        counts = self.with_pending and begun >= self._count_at
        states = [look(runner, with_pending=counts) for runner in self.runners]
        if counts:
            self._pending = {state.runner: state.pending for state in states}
            now = time.monotonic()
            self._count_at = now + (now - begun) / COUNTING_SHARE
            return states
        return [
            State(**{**vars(state), "pending": self._pending.get(state.runner)}) for state in states
        ]


def look(runner: Runner, *, with_pending: bool) -> State:
    """What is the case with a runner now."""
    known: dict[str, Any] = {
        "runner": runner.label,
        "analysis": str(runner.ANALYSIS),
        "model": "",
        "schedule": "",
    }
    try:
        known["analysis"] = str(runner.get_analysis())
        known["model"] = runner.get_model()._meta.label
        known["schedule"] = schedule_text(runner.get_schedule())
        node = Node.objects.get(pk=node_of(runner).pk)
        return State(
            **known,
            progress=progress(node),
            pending=pending(runner).count() if with_pending else None,
            paused_at=node.paused_at,
            run_seconds=node.run_seconds,
        )
    except AutorunError as error:
        return State(**known, error=str(error))
    except DatabaseError:
        raise
    except Exception as error:  # noqa: BLE001  a hook of the project's own: the others are shown
        return State(**known, error=f"{type(error).__name__}: {error}")


def drawn(states: list[State], terminal: Terminal) -> Text:
    """Two lines a runner."""
    lines = Text()
    for index, state in enumerate(states):
        if index:
            lines.append("\n")
        lines.append_text(_heading(state, terminal.layout_width))
        lines.append("\n")
        lines.append_text(_counts(state, terminal))
    return lines


def _heading(state: State, width: int) -> Text:
    line = Text()
    line.append(state.runner, style="bold")
    about = f"{state.analysis} · {state.schedule}" if state.schedule else state.analysis
    for text in (about, state.analysis):
        room = width - len(state.runner) - len(text)
        if room >= 2:
            line.append(" " * room)
            line.append(text, style="dim")
            break
    line.truncate(width, overflow="ellipsis")
    return line


def _counts(state: State, terminal: Terminal) -> Text:
    line = Text("  ")
    if state.error:
        line.append(state.error, style="red")
        return line
    counts = {**asdict(state.progress), "pending": state.pending or 0}
    line.append_text(_bar(state, terminal))
    line.append("  ")
    shown = [(word, style, counts[name]) for name, word, style in COUNTS if counts[name]]
    for index, (word, style, count) in enumerate(shown):
        line.append(", " if index else "")
        line.append(f"{number(count)} {word}", style=style)
    if not shown:
        line.append("no rows", style="dim")
    if state.paused_at is not None:
        line.append(f", paused since {moment(state.paused_at)}", style="bold yellow")
    elif state.run_seconds is not None and state.progress.unfinished:
        line.append(f", {seconds(state.run_seconds)} each", style="dim")
    line.truncate(terminal.layout_width, overflow="ellipsis")
    return line


def _bar(state: State, terminal: Terminal) -> Text:
    """Done, failed, on the way and pending, in proportion; what is there at all is seen."""
    progress = state.progress
    parts = (
        (progress.succeeded + progress.ignored, "#", "green"),
        (progress.failed, "x", "red"),
        (progress.unfinished, "=", "cyan"),
        (state.pending or 0, ".", "dim"),
    )
    bar = Text()
    total = sum(count for count, _, _ in parts)
    if not total:
        return Text("." * BAR, style="dim")
    widths = [max(1, BAR * count // total) if count else 0 for count, _, _ in parts]
    largest = max(range(len(parts)), key=lambda index: parts[index][0])
    widths[largest] += BAR - sum(widths)
    for width, (_, sign, style) in zip(widths, parts, strict=True):
        bar.append(("━" if terminal.has_colour else sign) * width, style=style)
    return bar


def schedule_text(schedule: crontab | dt.timedelta | None) -> str:
    """When sweeps are, in a few characters."""
    if schedule is None:
        return "no sweeps"
    if isinstance(schedule, dt.timedelta):
        return f"every {seconds(schedule.total_seconds())}"
    parts = [
        str(getattr(schedule, f"_orig_{name}"))
        for name in ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
    ]
    minute, hour, *days = parts
    if minute.isdigit() and hour.isdigit() and days == ["*", "*", "*"]:
        return f"daily {int(hour):02}:{int(minute):02}"
    return f"cron {' '.join(parts)}"
