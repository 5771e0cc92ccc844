from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import CommandError

from autorun.conf import settings
from autorun.declare.nodes import node_of
from autorun.declare.runner import Runner
from autorun.dispatch.publishing import Message, publish
from autorun.management.subcommands.batch_list import as_json
from autorun.management.subcommands.plan import add_scope, scope_of
from autorun.management.subcommands.subcommand import (
    OnRows,
    add_format,
    add_keys,
    add_queue,
    add_runner,
    positive,
    requested_by,
)
from autorun.management.subcommands.terminal import plural
from autorun.management.subcommands.watching import (
    add_watch,
    find_new_batch,
    last_batch,
    require_watchable,
    watch,
)
from autorun.models import Batch
from autorun.planning.looks import backfill_now
from autorun.planning.preview import preview
from autorun.planning.scope import Scope
from autorun.state.counts import progress


class Backfill(OnRows):
    """Plan and start what is there already, a window of runs at a time.

    Without --only and --force, what is pending is planned; `manage.py autorun plan` shows it first.
    """

    name = "backfill"
    summary = "plan and start what is already there"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add_runner(parser)
        add_keys(parser)
        add_scope(parser)
        parser.add_argument(
            "--window", type=positive, metavar="N", help="keep at most N runs in flight"
        )
        parser.add_argument("--dry", action="store_true", help="count only; see also: plan")
        add_watch(parser)
        add_queue(parser)
        add_format(parser)

    def handle_rows(self, runner: Runner, **options: Any) -> None:
        is_json = options["format"] == "json"
        require_watchable(options)
        scope = scope_of(options)
        scope = Scope(
            filter=scope.filter,
            pks=tuple(options["keys"]) or None,
            only=scope.only,
            force=scope.force,
        )
        scope.queryset(runner)  # raises for an unknown filter
        if options["dry"]:
            number = preview(runner, scope, limit=options["limit"]).planned
            if is_json:
                self.terminal.json({"runner": runner.label, "planned": number})
                return
            self.terminal.say((runner.label, "bold"), f": would plan {plural(number, 'run')}.")
            return
        if options["queue"]:
            batch = self._queued(runner.label, scope, options)
            if is_json:
                self.terminal.json({"runner": runner.label, "queued": True})
        else:
            batch = backfill_now(
                runner,
                scope,
                limit=options["limit"],
                window=options["window"],
                requested_by=requested_by(),
            )
            if is_json:
                self.terminal.json(as_json(batch))
            else:
                self._report(batch)
                self._tell_of_failed(runner, scope)
        if options["watch"] and batch is not None:
            watch(batch, self.terminal, check=options["check"])

    def _queued(self, label: str, scope: Scope, options: dict[str, Any]) -> Batch | None:
        before = last_batch(label)
        pks = None if scope.pks is None else list(scope.pks)
        arguments = (label, scope.filter, pks, scope.only, scope.force)
        limits = (options["limit"], options["window"])
        publish([Message("autorun.backfill", (*arguments, *limits), queue=settings.QUEUE)])
        if options["format"] != "json":
            self.terminal.say((label, "bold"), ": a worker will plan the backfill.")
        if not options["watch"]:
            return None
        batch = find_new_batch(label, after=before)
        if batch is None:
            raise CommandError("No worker has begun it. `manage.py autorun doctor` looks why.")
        return batch

    def _report(self, batch: Batch) -> None:
        self.terminal.say(
            (f"{batch.runner}", "bold"),
            f": batch {batch.pk}, {plural(batch.candidates, 'candidate')}, "
            f"{plural(batch.planned, 'run')} planned.",
        )
        if batch.unprepared:
            self.terminal.say(
                (f"The input of {plural(batch.unprepared, 'row')} could not be prepared.", "red")
            )
        if batch.state not in (Batch.State.FINISHED, Batch.State.FAILED):
            self.terminal.hint(
                f"Hold it back: manage.py autorun pause {batch.pk}. "
                f"Give it up: manage.py autorun cancel {batch.pk}"
            )

    def _tell_of_failed(self, runner: Runner, scope: Scope) -> None:
        """Say what a backfill of all pending rows leaves alone."""
        is_whole = scope.filter is None and scope.pks is None
        if not is_whole or scope.only is not None or scope.force:
            return
        if failed := progress(node_of(runner)).failed:
            self.terminal.say(
                (f"{plural(failed, 'row')} that failed for good ", "red"),
                ("was" if failed == 1 else "were", "red"),
                (" left alone.", "red"),
            )
            self.terminal.hint(f"Run these again: manage.py autorun retry {runner.label}")
