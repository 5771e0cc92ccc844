from __future__ import annotations

from dataclasses import replace
from typing import Any

from django.core.management.base import CommandError

from autorun.conf import settings
from autorun.declare.nodes import node_of
from autorun.declare.runner import Runner
from autorun.dispatch.publishing import Message, publish
from autorun.management.subcommands.batch_list import as_json
from autorun.management.subcommands.parsing import (
    FORMAT,
    KEYS,
    QUEUE,
    RUNNER,
    argument,
    count,
    flag,
)
from autorun.management.subcommands.plan import SCOPE, scope_of
from autorun.management.subcommands.subcommand import OnRows, requested_by
from autorun.management.subcommands.watching import (
    WATCH,
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
from autorun.state.words import counted


class Backfill(OnRows):
    """Plan and start runs for existing rows, a window of runs at a time.

    Without --only and --force it plans pending rows; `manage.py autorun plan` previews it.
    """

    name = "backfill"
    summary = "plan and start runs for existing rows"
    arguments = (
        RUNNER,
        KEYS,
        *SCOPE,
        argument("--window", type=count, metavar="N", help="keep at most N runs in flight"),
        flag("--dry", help="only count; see also: plan"),
        *WATCH,
        QUEUE,
        FORMAT,
    )

    def handle_rows(self, runner: Runner, **options: Any) -> None:
        require_watchable(options)
        scope = replace(scope_of(options), pks=tuple(options["keys"]) or None)
        scope.queryset(runner)  # raises for an unknown filter
        if options["dry"]:
            number = preview(runner, scope, limit=options["limit"]).planned
            self.terminal.json({"runner": runner.label, "planned": number})
            self.terminal.say((runner.label, "bold"), f": would plan {counted(number, 'run')}.")
            return
        if options["queue"]:
            batch = self._queue(runner.label, scope, options)
        else:
            limits = {name: options[name] for name in ("limit", "window")}
            batch = backfill_now(runner, scope, **limits, requested_by=requested_by())
            self.terminal.json(as_json(batch))
            self._report(batch)
            self._report_failed(runner, scope)
        if options["watch"] and batch is not None:
            watch(batch, self.terminal, check=options["check"])

    def _queue(self, label: str, scope: Scope, options: dict[str, Any]) -> Batch | None:
        before = last_batch(label)
        pks = None if scope.pks is None else list(scope.pks)
        arguments = (label, scope.filter, pks, scope.only, scope.force)
        limits = (options["limit"], options["window"])
        publish([Message("autorun.backfill", (*arguments, *limits), queue=settings.QUEUE)])
        self.terminal.json({"runner": label, "queued": True})
        self.terminal.say((label, "bold"), ": backfill queued.")
        if not options["watch"]:
            return None
        batch = find_new_batch(label, after=before)
        if batch is None:
            raise CommandError(
                "No worker has started the backfill. To find out why, run "
                "`manage.py autorun doctor`."
            )
        return batch

    def _report(self, batch: Batch) -> None:
        self.terminal.say(
            (f"{batch.runner}", "bold"),
            f": batch {batch.pk}, {counted(batch.candidates, 'candidate')}, "
            f"{counted(batch.planned, 'run')} planned.",
        )
        if batch.unprepared:
            self.terminal.say(
                (f"The input of {counted(batch.unprepared, 'row')} could not be prepared.", "red")
            )
        if batch.state not in (Batch.State.FINISHED, Batch.State.FAILED):
            self.terminal.hint(f"Pause: manage.py autorun pause {batch.pk}")
            self.terminal.hint(f"Cancel: manage.py autorun cancel {batch.pk}")

    def _report_failed(self, runner: Runner, scope: Scope) -> None:
        """Report the failed rows that a backfill of all pending rows skips."""
        if scope == Scope() and (failed := progress(node_of(runner)).failed):
            rows = counted(failed, "failed row")
            self.terminal.say((f"Skipped {rows} (no attempts left).", "red"))
            self.terminal.hint(f"Retry failed runs: manage.py autorun retry {runner.label}")
