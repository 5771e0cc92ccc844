"""pause, resume and cancel: of a batch by its number, or of a runner by its label."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import CommandError

from autorun.control import halting
from autorun.declare import registry
from autorun.management.subcommands.subcommand import LARGEST_KEY, Subcommand, requested_by
from autorun.management.subcommands.terminal import plural
from autorun.models import Batch, Chunk
from autorun.planning import batches

WHAT = "a runner's label, or a batch's number (see: batches)"


class _Holding(Subcommand):
    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("what", metavar="RUNNER|BATCH", help=WHAT)

    def handle(self, **options: Any) -> None:
        what = options["what"]
        if what.isdecimal():
            is_number = len(what) < len(str(LARGEST_KEY))
            batch = Batch.objects.filter(pk=int(what)).first() if is_number else None
            if batch is None:
                raise CommandError(f"There is no batch {what}. See: manage.py autorun batches")
            self.hold_batch(batch)
        else:
            self.hold_runner(what)

    def hold_batch(self, batch: Batch) -> None:
        raise NotImplementedError

    def hold_runner(self, label: str) -> None:
        raise NotImplementedError


class Pause(_Holding):
    """Start no more runs of a runner, or of a batch; what is in flight goes on.

    A paused runner's rows are still planned. Runners that share a node are paused together.
    """

    name = "pause"
    summary = "start no more runs of a runner or a batch"

    def hold_batch(self, batch: Batch) -> None:
        if not batches.pause(batch):
            raise CommandError(f"Batch {batch.pk} is {batch.state}: only a running one can pause.")
        self.terminal.say((f"Batch {batch.pk}", "bold"), " is paused; what is in flight goes on.")
        self.terminal.hint(f"manage.py autorun resume {batch.pk}")

    def hold_runner(self, label: str) -> None:
        runner = registry.get(label)
        was = "" if halting.pause(runner) else " already"
        self.terminal.say((label, "bold"), f" is paused{was}; what is in flight goes on.")
        self.terminal.hint(f"manage.py autorun resume {label}")


class Resume(_Holding):
    """Let a paused runner, or a paused batch, go on."""

    name = "resume"
    summary = "let a paused runner or batch go on"

    def hold_batch(self, batch: Batch) -> None:
        if not batches.resume(batch):
            raise CommandError(f"Batch {batch.pk} is {batch.state}, not paused.")
        self.terminal.say((f"Batch {batch.pk}", "bold"), " goes on.")

    def hold_runner(self, label: str) -> None:
        resumed = halting.resume(registry.get(label))
        self.terminal.say((label, "bold"), " goes on." if resumed else " was not paused.")


class Cancel(_Holding):
    """Give up what a batch, or a runner in all, has planned and not started.

    What is running goes on. The rows are pending again, so the next sweep plans them: `pause` or
    `ignore` keeps that from happening.
    """

    name = "cancel"
    summary = "give up what a runner or a batch has not started"

    def hold_batch(self, batch: Batch) -> None:
        if batch.state not in (Batch.State.RUNNING, Batch.State.PAUSED):
            raise CommandError(f"Batch {batch.pk} is {batch.state} already.")
        number = batches.cancel(batch, reason=f"Cancelled by {requested_by()}.")
        self.terminal.say((f"Batch {batch.pk}", "bold"), f": {plural(number, 'run')} cancelled.")

    def hold_runner(self, label: str) -> None:
        if registry.find(label) is None and not Chunk.objects.filter(runner=label).exists():
            registry.get(label)  # raises, naming those there are
        number = halting.cancel(label, reason=f"Cancelled by {requested_by()}.")
        self.terminal.say((label, "bold"), f": {plural(number, 'run')} cancelled.")
