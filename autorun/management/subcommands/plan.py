"""plan and backfill: preview and start runs for existing rows."""

from dataclasses import asdict, replace
from typing import Any

from django.core.management.base import CommandError
from rich.text import Text

from autorun.control.interventions import request_backfill
from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.declare.nodes import node_of
from autorun.management.subcommands import parsing, watching
from autorun.management.subcommands.subcommand import (
    OnRows,
    Subcommand,
    condition_not_met,
    requested_by,
)
from autorun.models import Batch
from autorun.observe.run_states import describe_batch
from autorun.planning.counting import Group, Preview, preview
from autorun.planning.on_demand import backfill_now
from autorun.planning.pending import keys_to_try
from autorun.planning.reasons import SELECTIONS, Reason
from autorun.planning.scope import Scope
from autorun.state.counts import progress
from autorun.state.keys import as_json as as_keys
from autorun.state.words import REASONS, counted, estimate

#: Arguments that choose rows, and the reasons to plan them.
SCOPE = (
    parsing.FILTER,
    parsing.argument(
        "--only", choices=tuple(SELECTIONS), help="one reason (default: pending rows)"
    ),
    parsing.flag("--force", help="include rows that are up to date"),
    parsing.number("--limit", help="plan at most N runs"),
)


class Plan(Subcommand):
    """Preview a backfill: count its rows by reason, and change nothing.

    Takes the arguments of `backfill`: without --only and --force it counts pending rows.
    """

    arguments = (
        parsing.RUNNER,
        *SCOPE,
        parsing.number("--sample", default=0, help="show N keys per reason"),
        parsing.FORMAT,
        parsing.check("if anything would be planned"),
    )

    def handle(self, **options: Any) -> None:
        runner = registry.get(options["runner"])
        found = preview(
            runner, scope_of(options), limit=options["limit"], samples=options["sample"]
        )
        self.terminal.json(
            {
                "runner": runner.label,
                "planned": found.planned,
                "seconds": found.seconds,
                "same_input": found.same_input,
                "groups": [asdict(group) for group in found.groups],
            }
        )
        name = runner.get_model()._meta.verbose_name_plural
        self._show(f"{runner.label}: {runner.get_analysis()} over {name}", found, options)
        if options["check"] and found.planned:
            raise condition_not_met(f"{counted(found.planned, 'run')} to plan for {runner.label}.")

    def _show(self, title: str, found: Preview, options: dict[str, Any]) -> None:
        self.terminal.say((title, "bold"))
        self.terminal.table(
            ("#rows", "reason", "", *(("examples",) if options["sample"] else ())),
            [_row(group, options) for group in found.groups if group.rows],
        )
        if not found.planned:
            self.terminal.say("Nothing to plan.")
            return
        time = "" if found.seconds is None else f", about {estimate(found.seconds)} of work"
        self.terminal.say((f"{counted(found.planned, 'run')} to plan{time}.", "green"))
        names = [name for name in ("filter", "only", "limit") if options[name]]
        words = [options["runner"], *(f"--{name} {options[name]}" for name in names)]
        words += ["--force"] if options["force"] else []
        self.terminal.hint(f"Start them: manage.py autorun backfill {' '.join(words)}")
        rows = {group.reason: group.rows for group in found.groups}
        # That no row at all is up to date is rarely a change of the data.
        keep = f"keep results: manage.py autorun adopt {options['runner']}"
        if found.same_input:
            same = f"{counted(found.same_input, 'changed row')} changed only by INPUT_FIELDS"
            self.terminal.hint(f"{same}; {keep} --same-input")
        elif rows.get(Reason.CHANGED) and not rows.get(Reason.DONE):
            self.terminal.hint(f"If only the definition of the input changed, {keep}")


def scope_of(options: dict[str, Any]) -> Scope:
    """The scope that the arguments SCOPE name. Raises CommandError if they conflict."""
    scope = Scope(filter=options["filter"], only=options["only"], force=options["force"])
    if options["force"] and options["only"] not in (None, "all"):
        raise CommandError("--force plans rows whatever the reason, so leave --only out.")
    return scope


def _row(group: Group, options: dict[str, Any]) -> tuple[str | Text, ...]:
    fate = Text("planned", style="green") if group.is_planned else Text("skipped", style="dim")
    if group.reason == "unprepared":
        fate = Text("recorded as failed", style="red")
    forced = ", forced" if group.reason == "done" and group.is_planned else ""
    row = (f"{group.rows:,}", f"{REASONS[group.reason]}{forced}", fate)
    return (*row, ", ".join(group.samples)) if options["sample"] else row


class Backfill(OnRows):
    """Plan and start runs for existing rows, a window of runs at a time.

    Without --only and --force it plans pending rows; `manage.py autorun plan` previews it.
    """

    arguments = (
        *SCOPE,
        parsing.number("--window", help="keep at most N runs in flight"),
        parsing.number("--try", help="only N of the rows, those that a candidate would run on"),
        parsing.flag("--dry", help="only count; see also: plan"),
        *watching.WATCH,
        parsing.QUEUE,
        parsing.FORMAT,
    )

    def handle_rows(self, runner: Runner, scope: Scope, **options: Any) -> None:
        watching.require_watchable(options)
        scope = replace(scope_of(options), pks=scope.pks)
        among = scope.queryset(runner)  # raises for an unknown filter
        if options["try"]:
            scope = replace(scope, pks=tuple(as_keys(keys_to_try(runner, options["try"], among))))
        if options["dry"]:
            number = preview(runner, scope, limit=options["limit"]).planned
            self.terminal.json({"runner": runner.label, "planned": number})
            self.terminal.say((runner.label, "bold"), f": would plan {counted(number, 'run')}.")
            return
        begin = request_backfill if options["queue"] else backfill_now
        limits = {name: options[name] for name in ("limit", "window")}
        batch = begin(runner, scope, **limits, requested_by=requested_by())
        self.terminal.json(describe_batch(batch))
        if options["queue"]:
            self.terminal.say((runner.label, "bold"), ": backfill queued.")
        else:
            self._report(batch)
            # A backfill of all pending rows skips failed ones.
            if scope == Scope() and (failed := progress(node_of(runner)).failed):
                rows = counted(failed, "failed row")
                self.terminal.say((f"Skipped {rows} (no attempts left).", "red"))
                self.terminal.hint(f"Retry failed runs: manage.py autorun retry {runner.label}")
        if options["watch"]:
            watching.watch(batch, self.terminal, check=options["check"])

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
