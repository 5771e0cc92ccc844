"""batches, and pause, hold, resume and cancel: by the number of a batch or a runner's label."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from django.core.management.base import CommandError

from autorun.conf import settings
from autorun.control import interventions
from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.management.subcommands import parsing
from autorun.management.subcommands.subcommand import Subcommand, requested_by
from autorun.models import Batch, Chunk
from autorun.observe.glance import take_tally
from autorun.observe.listing import EMPTY_SWEEP
from autorun.observe.run_states import describe_batch
from autorun.planning import batches
from autorun.planning.scope import Scope
from autorun.state.counts import BatchCounts, batch_counts
from autorun.state.managers import ChunkQuerySet
from autorun.state.origins import CANCELLED
from autorun.state.parameters import read_number
from autorun.state.words import counted, duration, moment

STATE_STYLES = {"running": "cyan", "paused": "yellow", "finished": "green"} | dict.fromkeys(
    ("failed", "no worker"), "red"
)


class Batches(Subcommand):
    """Show recent batches: what sweeps, backfills and run() planned, and the results so far."""

    arguments = (
        parsing.RUNNER_OR_ALL,
        parsing.argument("--state", choices=Batch.State.values),
        parsing.flag("--all", dest="with_empty", help="include sweeps that found nothing"),
        parsing.number("--limit", default=20, help="default: 20"),
        parsing.FORMAT,
    )

    def handle(self, **options: Any) -> None:
        found = Batch.objects.defer("scope").order_by("-pk")
        if options["runner"]:
            found = found.filter(runner=registry.get(options["runner"]).label)
        if options["state"]:
            found = found.filter(state=options["state"])
        shown = found if options["with_empty"] else found.exclude(EMPTY_SWEEP)
        recent = list(shown[: options["limit"]])
        counts = batch_counts(batch.pk for batch in recent)
        self.terminal.json([describe_batch(batch, counts[batch.pk]) for batch in recent])
        if not recent:
            self.terminal.say("No batches.")
        stuck = take_tally().stuck
        for batch in recent:
            self._show(batch, counts[batch.pk], is_stuck=batch.node_id in stuck)
        if any(batch.is_unfinished and batch.node_id in stuck for batch in recent):
            self.terminal.hint("Why no worker picks up tasks: manage.py autorun doctor")
        if any(batch.is_unfinished for batch in recent):
            self.terminal.hint("Pause, resume or cancel a batch: manage.py autorun pause NUMBER")
        if not options["with_empty"] and found.filter(EMPTY_SWEEP).exists():
            self.terminal.hint("Sweeps that found nothing are hidden; --all shows them.")

    def _show(self, batch: Batch, counts: BatchCounts, *, is_stuck: bool) -> None:
        state = str(batch.state)
        if state == Batch.State.RUNNING and is_stuck:
            state = "no worker"
        elif state == Batch.State.RUNNING and batch.planned_at is None:
            state = "planning"
        trigger = "run" if batch.trigger == Batch.Trigger.CODE else batch.trigger
        name = f" {trigger} of {batch.runner}"
        gap = self.terminal.layout_width - len(f"{batch.pk}{name}{state}")
        self.terminal.say(
            (str(batch.pk), "bold"), name, " " * max(1, gap), (state, STATE_STYLES.get(state, ""))
        )
        numbers = (
            (counts.succeeded, "done", ""),
            (counts.failed, "failed", "red"),
            (counts.not_applicable, "not applicable", ""),
            (counts.cancelled, "cancelled", ""),
            (counts.left, "remaining", ""),
        )
        parts = [(f", {number:,} {word}", style) for number, word, style in numbers if number]
        plain = ("", str(Scope()))
        rows = "" if batch.description in plain else f"{batch.description}: "
        when = f"  {moment(batch.created_at)}  {rows}"
        self.terminal.say(f"{when}{batch.planned:,} planned", *parts)
        if batch.reason:
            self.terminal.hint(f"  {batch.reason}")


TARGET = parsing.argument("target", metavar="RUNNER|BATCH", help="runner label or batch number")
TARGET_OR_ALL = (
    parsing.argument(*TARGET[0], nargs="?", **TARGET[1]),
    parsing.flag("--all", dest="is_all", help="all runners"),
)


class _OnTarget(Subcommand):
    arguments: ClassVar[tuple[parsing.Argument, ...]] = TARGET_OR_ALL
    #: What --all does to each runner.
    change: ClassVar[staticmethod[[Runner], bool]]
    outcome: ClassVar[str]

    def handle(self, **options: Any) -> None:
        target = options["target"]
        if (target is None) != options.get("is_all", False):
            raise CommandError("Name a runner or a batch, or use --all for all runners.")
        if target is None:
            changed, left = interventions.change_all(self.change)
            for label, error in left.items():
                self.terminal.say((label, "bold"), f" was not changed: {error}")
            self.report(counted(len(changed), "runner"), self.outcome, "--all")
        elif not target.isdecimal():
            self.on_runner(target)
        elif batch := Batch.objects.filter(pk=read_number(target) or 0).first():
            self.on_batch(batch)
        else:
            raise CommandError(f"There is no batch {target}. See: manage.py autorun batches")

    @abstractmethod
    def on_batch(self, batch: Batch) -> None: ...

    @abstractmethod
    def on_runner(self, label: str) -> None: ...

    def report(self, name: str, outcome: str, target: str) -> None:
        self.terminal.say((name, "bold"), f" {outcome}.")


class Pause(_OnTarget):
    """Pause a runner or a batch: no more of its runs start; runs in progress will finish.

    A paused runner's rows are still planned. Runners that share a node are paused together.
    """

    change = staticmethod(interventions.pause_runner)
    outcome = "paused"

    def on_batch(self, batch: Batch) -> None:
        if not batches.pause(batch):
            raise CommandError(f"Batch {batch.pk} is {batch.state}: only a running one can pause.")
        self.report(f"Batch {batch.pk}", "paused", str(batch.pk))

    def on_runner(self, label: str) -> None:
        is_new = interventions.pause_runner(registry.get(label))
        self.report(label, "paused" if is_new else "was already paused", label)

    def report(self, name: str, outcome: str, target: str) -> None:
        super().report(name, f"{outcome}; runs in progress will finish", target)
        self.terminal.hint(f"Resume: manage.py autorun resume {target}")


class Hold(Subcommand):
    """Hold a runner's sweeps and saved rows: they stay pending until `resume`.

    Backfills, retries and `run` still plan rows. Runners that share a node are held
    together.
    """

    arguments = (parsing.RUNNER,)

    def handle(self, **options: Any) -> None:
        label = options["runner"]
        is_new = interventions.hold_runner(registry.get(label), by=requested_by())
        outcome = "held: its rows stay pending." if is_new else "was already held."
        self.terminal.say((label, "bold"), f" {outcome}")
        self.terminal.hint(f"Try ten rows: manage.py autorun backfill {label} --try 10")
        self.terminal.hint(f"Resume: manage.py autorun resume {label}")


class Resume(_OnTarget):
    """Resume a paused or held runner, or a paused batch. With --all, held runners stay held."""

    change = staticmethod(interventions.resume_runner)
    outcome = "resumed"

    def on_batch(self, batch: Batch) -> None:
        if not batches.resume(batch):
            raise CommandError(f"Batch {batch.pk} is {batch.state}, not paused.")
        self.report(f"Batch {batch.pk}", "resumed", str(batch.pk))

    def on_runner(self, label: str) -> None:
        runner = registry.get(label)
        resumed = [interventions.resume_runner(runner), interventions.lift_hold(runner)]
        self.report(label, "resumed" if any(resumed) else "was neither paused nor held", label)


class Cancel(_OnTarget):
    """Cancel the runs of a batch, or all of a runner, that have not started.

    Runs in progress will finish, or are stopped with --running. Each row gets its last result for
    the same input back, or is pending, so that the next sweep plans it. To prevent that, use
    `pause` or `ignore`.
    """

    arguments = (
        TARGET,
        parsing.flag("--running", dest="with_running", help="stop runs in progress as well"),
    )

    def handle(self, **options: Any) -> None:
        self.with_running = options["with_running"]
        super().handle(**options)

    def on_batch(self, batch: Batch) -> None:
        if not batch.is_unfinished:
            raise CommandError(f"Batch {batch.pk} is {batch.state} already.")
        number = batches.cancel(batch, reason=CANCELLED % requested_by())
        self._say(f"Batch {batch.pk}", number, Chunk.objects.filter(batch=batch))

    def on_runner(self, label: str) -> None:
        if registry.find(label) is None and not Chunk.objects.filter(runner=label).exists():
            registry.get(label)  # raises, and lists the known labels
        number = interventions.cancel_runner(label, reason=CANCELLED % requested_by())
        self._say(label, number, Chunk.objects.filter(runner=label))

    def _say(self, name: str, number: int, chunks: ChunkQuerySet[Chunk]) -> None:
        words = f"{counted(number, 'run')} cancelled"
        if self.with_running and (number := interventions.stop_running(chunks)):
            running = counted(number, "run in progress", "runs in progress")
            words += f", {running} will stop within {duration(settings.HEARTBEAT)}"
        self.terminal.say((name, "bold"), f": {words}.")
