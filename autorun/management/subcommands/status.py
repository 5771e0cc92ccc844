import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

from django.core.management.base import CommandError
from django.db import Error as DatabaseError
from django.db.models import Case, CharField, OuterRef, Q, Value, When
from rich.live import Live
from rich.text import Text

from autorun.declare.base import Runner
from autorun.exceptions import AutorunError
from autorun.management.subcommands.parsing import FORMAT, argument, check, flag
from autorun.management.subcommands.subcommand import Subcommand, chosen_runners, condition_not_met
from autorun.management.subcommands.terminal import SIGNS, Terminal
from autorun.models import Node
from autorun.observe.glance import Standing, at_a_glance, standings_of, take_tally
from autorun.observe.held_up import HeldUp, held_up, limits_in_use
from autorun.observe.new_versions import about_version, edits, is_new, used_before
from autorun.planning.pending import pending, stale
from autorun.planning.rows import unnameable
from autorun.state.words import ago, because, duration, estimate, schedule, short_number
from autorun.triggers.installing import statuses

BAR_WIDTH = 16
REFRESH_EVERY = 1.0  # seconds
#: The most of the time that `--watch` runs that counting pending rows may take.
COUNTING_SHARE = 0.2

#: The states of triggers with which writes are noted.
FINE = ("installed", "not needed")

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
JSON_FIELDS = (
    *("analysis", "model", "schedule", "pending", "stale", "paused_at", "held_at", "is_new"),
    *("run_seconds", "seconds_left", "is_stuck", "skipped", "error"),
)


@dataclass(frozen=True, kw_only=True)
class RunnerState(Standing):
    """How far a runner has got, what it declares, and its rows that are pending, if counted."""

    analysis: str
    model: str = ""
    schedule: str = ""
    version: str = ""
    pending: int | None = None
    stale: int | None = None
    #: That rows are skipped because of their keys.
    skipped: str = ""
    is_new: bool = False
    held_up: list[HeldUp] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        left = self.progress.failed or self.progress.unfinished or self.pending or self.stale
        return not (left or self.error)

    @property
    def urgency(self) -> int:
        """The place of the runner in the list: the troubled ones come first."""
        found = self.progress
        marks: tuple[Any, ...] = (
            *(self.error, self.is_stuck, found.failed, self.held_up, self.paused_at),
            *(found.unfinished, self.pending or self.stale, True),
        )
        return next(index for index, each in enumerate(marks) if each)

    def as_json(self) -> dict[str, Any]:
        return {
            "runner": self.runner.label,
            "limit": self.runner.LIMIT,
            **{name: getattr(self, name) for name in JSON_FIELDS},
            "held_up": [asdict(reason) for reason in self.held_up],
            **asdict(self.progress),
        }


class Status(Subcommand):
    """Show how far each runner has got: runs done, failed and in progress, and pending rows.

    A result is stale once a runner that it depends on has no success on the row any more.
    """

    arguments = (
        argument("runners", metavar="RUNNER", nargs="*", help="runner labels (default: all)"),
        flag(
            "--no-pending",
            action="store_false",
            dest="with_pending",
            help="do not count pending rows, which reads every row",
        ),
        flag("--watch", help="refresh until Ctrl-C"),
        FORMAT,
        check("unless everything is done: nothing failed, stale, pending or in progress"),
    )

    def handle(self, **options: Any) -> None:
        runners = chosen_runners(options["runners"])
        with_pending = options["with_pending"]
        if options["watch"]:
            if options["format"] == "json" or options["check"]:
                raise CommandError("--watch cannot be combined with --format json or --check.")
            self._watch(runners, with_pending=with_pending)
            return
        states = states_of(runners, with_pending=with_pending)
        self.terminal.json([state.as_json() for state in states])
        self._show(states, runners)
        undone = [state.runner.label for state in states if not state.is_done]
        if options["check"] and undone:
            raise condition_not_met(f"Not done: {', '.join(undone)}.")

    def _show(self, states: list[RunnerState], runners: list[Runner]) -> None:
        if not states:
            self.terminal.say("No runner is registered.")
            self.terminal.hint(
                "Declare one, with a DATA_MODEL, in the module `runners` of an installed app."
            )
            return
        shown = [drawn(states, self.terminal), *_triggers(states)]
        self.terminal.console.print(*shown, sep="\n", soft_wrap=True)
        for limit in limits_in_use({each.LIMIT for each in runners if each.LIMIT}):
            self.terminal.say(str(limit))
        for state in states:
            if state.skipped:
                self.terminal.say((state.skipped, "yellow"))
        for edit in edits(runners):
            self.terminal.say((str(edit), "yellow"))
            self.terminal.hint(edit.advice)
        if any(state.progress.failed for state in states):
            self.terminal.hint("Why runs failed: manage.py autorun failures")
        if any(state.held_up for state in states):
            self.terminal.hint("Why rows are held up: manage.py autorun doctor")
        if any(state.pending and not state.paused_at for state in states):
            self.terminal.hint("Start pending rows: manage.py autorun sweep RUNNER")
        if any(state.paused_at for state in states):
            self.terminal.hint("Resume paused runners: manage.py autorun resume RUNNER")

    def _watch(self, runners: list[Runner], *, with_pending: bool) -> None:
        console = self.terminal.console
        live = Live(console=console, auto_refresh=False) if self.terminal.is_interactive else None
        show = partial(live.update, refresh=True) if live else console.print
        try:
            with live or nullcontext():
                for states in _watched(runners, with_pending=with_pending):
                    show(drawn(states, self.terminal))
                    time.sleep(REFRESH_EVERY)
        except KeyboardInterrupt:
            self.terminal.hint("Stopped watching; the runs continue.")


def _watched(runners: list[Runner], *, with_pending: bool) -> Iterator[list[RunnerState]]:
    """Read states repeatedly, and count pending rows only as often as that is cheap."""
    counted: dict[str, RunnerState] = {}
    count_at = 0.0
    while True:
        started = time.monotonic()
        counts = with_pending and started >= count_at
        states = states_of(runners, with_pending=counts)
        if counts:
            counted = {state.runner.label: state for state in states}
            now = time.monotonic()
            count_at = now + (now - started) / COUNTING_SHARE
        last = [counted.get(state.runner.label, state) for state in states]
        yield [
            replace(state, pending=known.pending, stale=known.stale)
            for state, known in zip(states, last, strict=True)
        ]


def states_of(runners: list[Runner], *, with_pending: bool) -> list[RunnerState]:
    """The state of each runner, in their order; seven queries, and those that count rows."""
    standings = standings_of(runners)
    new = _with_new_version(standings)
    held = held_up(*(each.label for each in runners if len(runners) == 1))
    states = []
    for each in standings:
        label = each.runner.label
        known = RunnerState(
            **{**vars(each), "error": ""},
            analysis=str(each.runner.ANALYSIS),
            is_new=label in new,
            held_up=[reason for reason in held if reason.runner == label],
        )
        found = _state(_declared, known)
        states.append(_state(_counted, found) if with_pending else found)
    return states


def _with_new_version(standings: list[Standing]) -> set[str]:
    """The labels of runners whose version is new; for those that share a node, the first counts."""
    labels = {each.node.pk: each.runner.label for each in reversed(standings) if each.node}
    cases = [When(pk=pk, then=Value(label)) for pk, label in labels.items()]
    nodes = Node.objects.annotate(label=Case(*cases, output_field=CharField()))
    is_found = Q(pk__in=labels) & is_new(OuterRef("label"))
    new = set(nodes.filter(is_found).values_list("pk", flat=True))
    known = {each.runner.label for each in standings if each.node and each.node.pk in new}
    titles = {
        each.runner.label: each.runner.get_analysis().title
        for each in standings
        if each.digest and not each.node
    }
    used = used_before(titles) if titles else set()
    return known | {label for label, title in titles.items() if (label, title) in used}


def _state(find: Callable[[RunnerState], RunnerState], known: RunnerState) -> RunnerState:
    """The result of `find`, or `known` with the error that it raises."""
    try:
        return find(known)
    except AutorunError as error:
        return replace(known, error=str(error))
    except DatabaseError:
        raise
    except Exception as error:  # noqa: BLE001  a hook of the project's own: show the other runners
        return replace(known, error=f"{type(error).__name__}: {error}")


def _declared(known: RunnerState) -> RunnerState:
    runner = known.runner
    return replace(
        known,
        analysis=str(runner.get_analysis()),
        model=runner.get_model()._meta.label,
        schedule=schedule(runner.get_schedule()),
        version=runner.get_analysis().version,
    )


def _counted(known: RunnerState) -> RunnerState:
    if known.error:
        return known
    runner = known.runner
    found = replace(known, pending=pending(runner).count(), stale=stale(runner).count())
    if keys := unnameable(runner):
        words = f"{runner.label}: rows are skipped because their keys cannot be stored or read"
        found = replace(found, skipped=f"{words}, such as {keys}.")
    return found


def drawn(states: list[RunnerState], terminal: Terminal) -> Text:
    """A line for all, then two or more per runner, the troubled ones first."""
    lines = [
        (
            _heading(state, terminal),
            _counts(state, terminal),
            *_why_paused(state),
            *_new_or_held(state),
            *map(_reason, state.held_up),
        )
        for state in sorted(states, key=lambda each: each.urgency)
    ]
    return Text("\n").join([_at_a_glance(states), *chain.from_iterable(lines)])


def _triggers(states: list[RunnerState]) -> Iterator[Text]:
    """A line for the tables whose writes the database does not note for these runners."""
    if any(state.runner.ON_WRITE is True for state in states):
        wrong = {each.table: each.state for each in statuses()}
        tables = [f"{table} ({state})" for table, state in wrong.items() if state not in FINE]
        if tables:
            sign, style = SIGNS["warning"]
            words = f"{sign} Triggers of ON_WRITE do not match the runners: {', '.join(tables)}."
            yield Text(f"{words} See: manage.py autorun triggers", style=style)


def _at_a_glance(states: list[RunnerState]) -> Text:
    signed = [(*SIGNS[each.level], each.words) for each in at_a_glance(states, take_tally())]
    return Text(" · ").join(Text(f"{sign} {words}", style=style) for sign, style, words in signed)


def _heading(state: RunnerState, terminal: Terminal) -> Text:
    label = state.runner.label
    line = Text().append(label, style="bold")
    details = " · ".join(filter(None, (state.analysis, state.schedule)))
    room = terminal.layout_width - len(label) - len(details)
    line.append(" " * max(2, room)).append(details, style="dim")
    return terminal.fitting(line)


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
    elif state.is_stuck:
        line.append(", no worker", style="bold red")
    elif state.run_seconds is not None and state.progress.unfinished:
        line.append(f", {duration(state.run_seconds)} each", style="dim")
        if state.seconds_left is not None:
            line.append(f", {estimate(state.seconds_left)} left", style="dim")
    return terminal.fitting(line)


def _why_paused(state: RunnerState) -> list[Text]:
    reason = state.node.paused_because if state.node is not None and state.paused_at else ""
    return [Text(f"  paused{because(reason)}", style="magenta")] if reason else []


def _new_or_held(state: RunnerState) -> list[Text]:
    node, is_held = state.node, state.held_at is not None
    will_start = state.is_new and state.pending != 0 and not state.paused_at
    if not (is_held or will_start):
        return []
    is_swept = state.schedule != schedule(None)
    sentence = about_version(state.version, node, state.pending, is_swept=is_swept)
    verb = "resume" if is_held else "hold"
    command = f"{verb.capitalize()} sweeps: manage.py autorun {verb} {state.runner.label}"
    return [Text(f"  {sentence}", style="magenta"), Text(f"  {command}", style="dim")]


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
