"""run, sweep and touch: plan and start rows that are pending, or that are said to have changed."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.core.management.base import CommandError

from autorun.conf import settings
from autorun.declare import console, registry
from autorun.declare.base import Runner
from autorun.declare.hooks import every_row
from autorun.declare.nodes import find_node, node_of
from autorun.dispatch.publishing import Message, publish
from autorun.execution.unlanded import land_unlanded
from autorun.management.subcommands import parsing
from autorun.management.subcommands.subcommand import (
    KEYS_PER_QUERY,
    OnRows,
    Subcommand,
    chosen_runners,
    requested_by,
)
from autorun.management.subcommands.terminal import Terminal
from autorun.observe.new_versions import held
from autorun.observe.run_states import describe_batch
from autorun.planning.on_demand import Swept, backfill_now, run_now, sweep_counting_undone
from autorun.planning.scope import Scope
from autorun.state.counts import progress
from autorun.state.words import counted


class RunPending(OnRows):
    """Plan and start pending rows, and print each step: RunnerClass().run() on the command line."""

    name = "run"
    arguments = (
        parsing.number("--max-total", help="start at most N runs"),
        parsing.flag("--dry", help="print what would start, and start nothing"),
        parsing.FORMAT,
    )

    def handle_rows(self, runner: Runner, scope: Scope, **options: Any) -> None:
        queryset = scope.queryset(runner)
        with _transcript_on(self.terminal):
            batch = run_now(
                runner,
                queryset,
                max_total=options["max_total"],
                dry=options["dry"],
                log_level=logging.DEBUG if self.terminal.as_json else logging.INFO,
            )
        self.terminal.json(describe_batch(batch))
        if options["dry"]:
            return
        if batch.planned:
            self.terminal.hint(
                f"Watch batch {batch.pk} ({counted(batch.planned, 'run')}): "
                f"manage.py autorun status {runner.label} --watch"
            )
        if queryset is None and progress(node_of(runner)).failed:
            self.terminal.hint(f"Retry failed runs: manage.py autorun retry {runner.label}")


@contextmanager
def _transcript_on(terminal: Terminal) -> Iterator[None]:
    """Print the transcript here, once, whatever the project's logging does with its records."""
    logger = console.logger
    handler = logging.StreamHandler(terminal.stream)
    level, propagates = logger.level, logger.propagate
    if not terminal.as_json:
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
        logger.setLevel(level)


class Sweep(Subcommand):
    """Plan and start all pending rows, as beat does on the runner's schedule."""

    arguments = (
        parsing.argument("runners", metavar="RUNNER", nargs="*", help="runner labels"),
        parsing.flag("--all", dest="everything", help="every runner"),
        parsing.QUEUE,
        parsing.FORMAT,
    )

    def handle(self, **options: Any) -> None:
        if not options["runners"] and not options["everything"]:
            known = ", ".join(registry.labels()) or "none"
            raise CommandError(f"Which runner? Name one, or --all. Registered: {known}.")
        if options["runners"] and options["everything"]:
            raise CommandError("Name runners or give --all, not both.")
        done = []
        for runner in chosen_runners(options["runners"]):
            node = find_node(runner)
            is_held = node.held_at is not None
            is_queued = options["queue"] and not is_held
            swept = None if is_queued else sweep_counting_undone(runner)
            if swept is not None:
                land_unlanded(runner)
            if is_queued:
                publish([Message("autorun.sweep", (runner.label,), queue=settings.QUEUE)])
            done.append(
                {
                    "runner": runner.label,
                    "queued": is_queued,
                    "failed_for_good": swept and swept.failed,
                    "under_way": swept and swept.under_way,
                    "batch": swept and describe_batch(swept.batch),
                }
            )
            why = held(node) if is_held else ""
            self._show(runner.label, swept, is_queued=is_queued, held=why)
        self.terminal.json(done)

    def _show(self, label: str, swept: Swept | None, *, is_queued: bool, held: str) -> None:
        if swept is None:
            fate = "sweep queued." if is_queued else "skipped: another sweep of it is running."
            if held:
                fate = f"skipped: {held}."
            self.terminal.say((label, "bold"), f": {fate}")
            return
        batch, failed, under_way = swept.batch, swept.failed, swept.under_way
        done = batch.existing - failed - under_way
        self.terminal.say(
            (label, "bold"),
            f": {counted(batch.candidates, 'candidate')}, {done:,} up to date, ",
            f"{under_way:,} in progress, " if under_way else "",
            (f"{failed:,} failed, ", "red") if failed else "",
            f"{counted(batch.planned, 'run')} planned.",
        )
        if failed:
            self.terminal.hint(f"Retry failed runs: manage.py autorun retry {label}")


class Touch(Subcommand):
    """Run rows again whose input has changed outside of the database, such as a rewritten file.

    All runners of the model run them. A runner that depends on another one runs after it.
    """

    arguments = (
        parsing.argument("model", metavar="MODEL", help="app_label.ModelName"),
        parsing.argument(
            "values",
            metavar="PK",
            nargs="+",
            help="keys of rows; - reads them from standard input, one a line",
        ),
        parsing.argument("--field", default="pk", help="name rows by this field instead"),
        parsing.FORMAT,
    )

    def handle(self, **options: Any) -> None:
        model, field = options["model"], options["field"]
        values = options["values"]
        if values == ["-"]:
            values = [line for line in sys.stdin.read().splitlines() if line.strip()]
        batches, unknown = [], set(values)
        for runner in _first_runners_of(model):
            keys, absent = _keys_by(runner, field, values)
            unknown &= absent
            if keys:
                scope = Scope(pks=tuple(keys), force=True)
                batch = backfill_now(runner, scope, requested_by=requested_by())
                batches.append(describe_batch(batch))
                planned = f"batch {batch.pk}, {counted(batch.planned, 'run')} planned."
                self.terminal.say((runner.label, "bold"), f": {planned}")
        self.terminal.json(batches)
        if unknown:
            raise CommandError(f"No {model} has the {field} {', '.join(sorted(unknown))}.")


def _first_runners_of(model: str) -> list[Runner]:
    """The runners of a model that wait for no other runner. Raises CommandError for none."""
    runners = registry.runners()
    found = [each for each in runners if each.get_model()._meta.label_lower == model.lower()]
    if not found:
        known = ", ".join(sorted({each.get_model()._meta.label for each in runners})) or "none"
        raise CommandError(f"No runner processes {model!r}. Models with runners: {known}.")
    first = [each for each in found if not each.depends_on]
    if not first:
        raise CommandError(f"All runners of {model} depend on others: touch the rows of those.")
    return first


def _keys_by(runner: Runner, name: str, lines: list[str]) -> tuple[list[Any], set[str]]:
    """The keys of the rows with these values of a field, and the lines that no row has."""
    options = runner.get_model()._meta
    try:
        field: Any = options.pk if name == "pk" else options.get_field(name)
        wanted = {field.to_python(line): line for line in lines}
    except (FieldDoesNotExist, AttributeError, ValidationError) as error:
        raise CommandError(f"{options.label}, --field {name}: {error}") from error
    keys, values = [], list(wanted)
    for start in range(0, len(values), KEYS_PER_QUERY):
        rows = every_row(runner).filter(**{f"{name}__in": values[start : start + KEYS_PER_QUERY]})
        for pk, value in rows.values_list("pk", name):
            keys.append(pk)
            wanted.pop(value, None)
    return keys, set(wanted.values())
