"""pause, resume and cancel: of a batch by its number, or of a runner by its label."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from autorun.control import halting
from autorun.declare import registry
from autorun.management.subcommands.parsing import argument
from autorun.management.subcommands.subcommand import LARGEST_KEY, Subcommand, requested_by
from autorun.models import Batch, Chunk
from autorun.planning import batches
from autorun.state.words import counted


class _Holding(Subcommand):
    arguments = (
        argument("target", metavar="RUNNER|BATCH", help="runner label, or number of a batch"),
    )

    def handle(self, **options: Any) -> None:
        target = options["target"]
        if not target.isdecimal():
            self.hold_runner(target)
            return
        fits = len(target) < len(str(LARGEST_KEY))
        batch = Batch.objects.filter(pk=int(target)).first() if fits else None
        if batch is None:
            raise CommandError(f"There is no batch {target}. See: manage.py autorun batches")
        self.hold_batch(batch)

    def hold_batch(self, batch: Batch) -> None:
        raise NotImplementedError

    def hold_runner(self, label: str) -> None:
        raise NotImplementedError


class Pause(_Holding):
    """Pause a runner or a batch: no more of its runs start; runs in progress will finish.

    A paused runner's rows are still planned. Runners that share a node are paused together.
    """

    name = "pause"
    summary = "start no more runs of a runner or batch"

    def hold_batch(self, batch: Batch) -> None:
        if not batches.pause(batch):
            raise CommandError(f"Batch {batch.pk} is {batch.state}: only a running one can pause.")
        self._report(f"Batch {batch.pk}", "paused", str(batch.pk))

    def hold_runner(self, label: str) -> None:
        is_new = halting.pause_runner(registry.get(label))
        self._report(label, "paused" if is_new else "was already paused", label)

    def _report(self, name: str, outcome: str, target: str) -> None:
        self.terminal.say((name, "bold"), f" {outcome}; runs in progress will finish.")
        self.terminal.hint(f"Resume: manage.py autorun resume {target}")


class Resume(_Holding):
    """Resume a paused runner or batch."""

    name = "resume"
    summary = "resume a paused runner or batch"

    def hold_batch(self, batch: Batch) -> None:
        if not batches.resume(batch):
            raise CommandError(f"Batch {batch.pk} is {batch.state}, not paused.")
        self.terminal.say((f"Batch {batch.pk}", "bold"), " resumed.")

    def hold_runner(self, label: str) -> None:
        resumed = halting.resume_runner(registry.get(label))
        self.terminal.say((label, "bold"), " resumed." if resumed else " was not paused.")


class Cancel(_Holding):
    """Cancel the runs of a batch, or all of a runner, that have not started.

    Runs in progress will finish. Rows of cancelled runs are pending again, so the next sweep plans
    them: use `pause` or `ignore` to prevent that.
    """

    name = "cancel"
    summary = "cancel the runs of a runner or batch that have not started"

    def hold_batch(self, batch: Batch) -> None:
        if batch.state not in (Batch.State.RUNNING, Batch.State.PAUSED):
            raise CommandError(f"Batch {batch.pk} is {batch.state} already.")
        number = batches.cancel(batch, reason=f"Cancelled by {requested_by()}.")
        self._report(f"Batch {batch.pk}", number)

    def hold_runner(self, label: str) -> None:
        if registry.find(label) is None and not Chunk.objects.filter(runner=label).exists():
            registry.get(label)  # raises, and lists the known labels
        self._report(label, halting.cancel_runner(label, reason=f"Cancelled by {requested_by()}."))

    def _report(self, name: str, number: int) -> None:
        self.terminal.say((name, "bold"), f": {counted(number, 'run')} cancelled.")
