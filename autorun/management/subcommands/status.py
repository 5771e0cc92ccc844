import datetime as dt
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

from django.core.management.base import CommandError
from django.db import Error as DatabaseError
from rich.live import Live
from rich.text import Text

from autorun.declare.base import Runner
from autorun.declare.nodes import node_of
from autorun.exceptions import AutorunError
from autorun.management.subcommands.parsing import FORMAT, argument, check, flag, positive_seconds
from autorun.management.subcommands.subcommand import Subcommand, chosen_runners, condition_not_met
from autorun.management.subcommands.terminal import SIGNS, Terminal
from autorun.models import Node
from autorun.observe.edits import edits
from autorun.observe.glance import at_a_glance
from autorun.observe.held_up import HeldUp, held_up
from autorun.observe.limits_in_use import limits_in_use
from autorun.observe.new_versions import about_version, is_new
from autorun.planning.pending import pending, stale
from autorun.state.counts import Progress, progress, stuck_nodes
from autorun.state.words import ago, because, duration, schedule, short_number

BAR_WIDTH = 16
#: The most of the time that `--watch` runs that counting pending rows may take.
COUNTING_SHARE = 0.2

#: Words and styles of the counts, in the order they are shown.
COUNTS = (
    ("succeeded", "done", "green"),
    ("failed", "failed", "red"),
    ("stale", "stale", "yellow"),
    ("pending", "pending", "yellow"),
    ("parked", "parked", "magenta"),
    ("running", "running", "cyan"),
    ("queued", "queued", "cyan"),
    ("waiting", "waiting", "cyan"),
    ("postponed", "postponed", "cyan"),
    ("not_applicable", "not applicable", "dim"),
    ("ignored", "ignored", "dim"),
)


@dataclass(frozen=True)
class RunnerState:
    """How far one runner has got; `error` says why nothing more is known."""

    runner: str
    analysis: str
    model: str
    schedule: str
    progress: Progress = field(default_factory=Progress)
    pending: int | None = None
    stale: int | None = None
    paused_at: dt.datetime | None = None
    held_at: dt.datetime | None = None
    is_new: bool = False
    run_seconds: float | None = None
    held_up: list[HeldUp] = field(default_factory=list)
    limit: str | None = None
    error: str = ""
    node: Node | None = None

    @property
    def is_done(self) -> bool:
        left = self.progress.failed or self.progress.unfinished or self.pending or self.stale
        return not (left or self.error)

    def as_json(self) -> dict[str, Any]:
        values = asdict(replace(self, node=None))
        del values["node"]
        return {**values, **values.pop("progress")}


class Status(Subcommand):
    """Show how far each runner has got: runs done, failed and in progress, and pending rows.

    Done results are stale if a runner that they depend on has no success on the row any more.
    """

    arguments = (
        argument(
            "runners",
            metavar="RUNNER",
            nargs="*",
            help="runner labels: app_label.ClassName (default: all)",
        ),
        flag(
            "--no-pending",
            action="store_false",
            dest="with_pending",
            help="do not count pending rows, which reads every row",
        ),
        flag("--watch", help="refresh until Ctrl-C"),
        argument(
            "--interval",
            type=positive_seconds,
            default=1.0,
            metavar="S",
            help="seconds between two refreshes",
        ),
        FORMAT,
        check("unless everything is done: nothing failed, stale, pending or in progress"),
    )

    def handle(self, **options: Any) -> None:
        runners = chosen_runners(options["runners"])
        with_pending = options["with_pending"]
        if options["watch"]:
            if options["format"] == "json" or options["check"]:
                raise CommandError("--watch goes with neither --format json nor --check.")
            self._watch(runners, options["interval"], with_pending=with_pending)
            return
        states = [state_of(runner, with_pending=with_pending) for runner in runners]
        self.terminal.json([state.as_json() for state in states])
        self._show(states, runners)
        undone = [state.runner for state in states if not state.is_done]
        if options["check"] and undone:
            raise condition_not_met(f"Not done: {', '.join(undone)}.")

    def _show(self, states: list[RunnerState], runners: list[Runner]) -> None:
        if not states:
            self.terminal.say("No runner is registered.")
            self.terminal.hint(
                "Declare one, with a DATA_MODEL, in the module `runners` of an installed app."
            )
            return
        self.terminal.console.print(drawn(states, self.terminal), soft_wrap=True)
        for limit in limits_in_use({each.limit for each in states if each.limit}):
            self.terminal.say(str(limit))
        for edit in edits(runners):
            self.terminal.say((str(edit), "yellow"))
            self.terminal.hint(edit.advice)
        if any(state.progress.failed for state in states):
            self.terminal.hint("Why runs failed: manage.py autorun failures")
        if any(state.held_up for state in states):
            self.terminal.hint("How to let them go on: manage.py autorun doctor")
        if any(state.pending for state in states):
            self.terminal.hint("Start pending rows: manage.py autorun sweep RUNNER")

    def _watch(self, runners: list[Runner], interval: float, *, with_pending: bool) -> None:
        console = self.terminal.console
        live = Live(console=console, auto_refresh=False) if self.terminal.is_interactive else None
        show = partial(live.update, refresh=True) if live else console.print
        try:
            with live or nullcontext():
                for states in _watched(runners, with_pending=with_pending):
                    show(drawn(states, self.terminal))
                    time.sleep(interval)
        except KeyboardInterrupt:
            self.terminal.hint("Stopped watching; the runs continue.")


def _watched(runners: list[Runner], *, with_pending: bool) -> Iterator[list[RunnerState]]:
    """Read states repeatedly, and count pending rows only as often as that is cheap."""
    counted: dict[str, RunnerState] = {}
    count_at = 0.0
    while True:
        started = time.monotonic()
        counts = with_pending and started >= count_at
        states = [state_of(runner, with_pending=counts) for runner in runners]
        if counts:
            counted = {state.runner: state for state in states}
            now = time.monotonic()
            count_at = now + (now - started) / COUNTING_SHARE
        last = [counted.get(state.runner, state) for state in states]
        yield [
            replace(state, pending=known.pending, stale=known.stale)
            for state, known in zip(states, last, strict=True)
        ]


def state_of(runner: Runner, *, with_pending: bool) -> RunnerState:
    known = RunnerState(runner.label, analysis=str(runner.ANALYSIS), model="", schedule="")
    try:
        known = replace(known, analysis=str(runner.get_analysis()))
        known = replace(known, model=runner.get_model()._meta.label)
        known = replace(known, schedule=schedule(runner.get_schedule()))
        node = Node.objects.annotate(is_new=is_new(runner.label)).get(pk=node_of(runner).pk)
        return replace(
            known,
            node=node,
            progress=progress(node),
            pending=pending(runner).count() if with_pending else None,
            stale=stale(runner).count() if with_pending else None,
            paused_at=node.paused_at,
            held_at=node.held_at,
            is_new=node.is_new,
            run_seconds=node.run_seconds,
            held_up=held_up(runner.label),
            limit=runner.LIMIT,
        )
    except AutorunError as error:
        return replace(known, error=str(error))
    except DatabaseError:
        raise
    except Exception as error:  # noqa: BLE001  a hook of the project's own: show the other runners
        return replace(known, error=f"{type(error).__name__}: {error}")


def drawn(states: list[RunnerState], terminal: Terminal) -> Text:
    """A line for all, and two per runner, with one for each reason why rows are held up."""
    width = terminal.layout_width
    lines = [
        (
            _heading(state, width),
            _counts(state, terminal),
            *_why_paused(state),
            *_new_or_held(state),
            *map(_reason, state.held_up),
        )
        for state in states
    ]
    return Text("\n").join([_at_a_glance(states), *chain.from_iterable(lines)])


def _at_a_glance(states: list[RunnerState]) -> Text:
    progresses = {state.node: state.progress for state in states if state.node is not None}
    facts = at_a_glance(
        progresses,
        broken=sum(bool(state.error) for state in states),
        is_stuck=bool(stuck_nodes(node.pk for node in progresses)),
    )
    told = [(*SIGNS[each.level], each.words) for each in facts]
    return Text(" · ").join(Text(f"{sign} {words}", style=style) for sign, style, words in told)


def _heading(state: RunnerState, width: int) -> Text:
    line = Text().append(state.runner, style="bold")
    details = f"{state.analysis} · {state.schedule}" if state.schedule else state.analysis
    for text in (details, state.analysis):
        room = width - len(state.runner) - len(text)
        if room >= 2:
            line.append(" " * room).append(text, style="dim")
            break
    line.truncate(width, overflow="ellipsis")
    return line


def _counts(state: RunnerState, terminal: Terminal) -> Text:
    line = Text("  ")
    if state.error:
        return line.append(state.error, style="red")
    line.append_text(_bar(state, terminal)).append("  ")
    counts = {**asdict(state.progress), "pending": state.pending, "stale": state.stale}
    shown = [
        Text(f"{short_number(counts[name])} {word}", style=style)
        for name, word, style in COUNTS
        if counts[name]
    ]
    nothing = "no runs" if state.pending is None else "no rows"
    line.append_text(Text(", ").join(shown or [Text(nothing, style="dim")]))
    if state.paused_at is not None:
        line.append(f", paused {ago(state.paused_at)}", style="bold yellow")
    elif state.run_seconds is not None and state.progress.unfinished:
        line.append(f", {duration(state.run_seconds)} each", style="dim")
    line.truncate(terminal.layout_width, overflow="ellipsis")
    return line


def _why_paused(state: RunnerState) -> list[Text]:
    reason = state.node.paused_because if state.node is not None and state.paused_at else ""
    return [Text(f"  paused{because(reason)}", style="magenta")] if reason else []


def _new_or_held(state: RunnerState) -> list[Text]:
    node, is_held = state.node, state.held_at is not None
    if node is None or not (is_held or (state.is_new and state.pending != 0)):
        return []
    told = about_version(node.version, node, state.pending, next_sweep=None)
    command = f"manage.py autorun {'resume' if is_held else 'hold'} {state.runner}"
    return [Text(f"  {told}", style="magenta"), Text(f"  {command}", style="dim")]


def _reason(found: HeldUp) -> Text:
    words = f"  {found.what}, since {ago(found.since)}: {found.reason.rstrip('.')}"
    if found.next_try is not None:
        words += f"; next try {ago(found.next_try)}"
    return Text(words, style="magenta")


def _bar(state: RunnerState, terminal: Terminal) -> Text:
    """Runs done, failed and in progress, and pending rows, in proportion; none too short to see."""
    progress = state.progress
    parts = (
        (progress.succeeded + progress.ignored + progress.not_applicable, "#", "green"),
        (progress.failed, "x", "red"),
        (progress.unfinished, "=", "cyan"),
        (state.pending or 0, ".", "dim"),
    )
    total = sum(count for count, _, _ in parts)
    if not total:
        return Text("." * BAR_WIDTH, style="dim")
    widths = [max(1, BAR_WIDTH * count // total) if count else 0 for count, _, _ in parts]
    largest = max(range(len(parts)), key=lambda index: parts[index][0])
    widths[largest] += BAR_WIDTH - sum(widths)
    bar = Text()
    for width, (_, sign, style) in zip(widths, parts, strict=True):
        bar.append(("━" if terminal.has_colour else sign) * width, style=style)
    return bar
