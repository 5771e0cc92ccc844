from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from autorun.declare import registry
from autorun.declare.hooks import every_row
from autorun.management.subcommands.parsing import FORMAT, RUNNER, argument, check
from autorun.management.subcommands.subcommand import Subcommand, condition_not_met, primary_key
from autorun.models import Run
from autorun.observe.explanation import explain

CODE_STYLES = {"succeeded": "green", "failed": "red", "unprepared": "red", "parked": "magenta"}


class Explain(Subcommand):
    """Explain why one row is pending for a runner, or why it is not."""

    name = "explain"
    summary = "why a row is pending, or why it is not"
    arguments = (
        RUNNER,
        argument("pk", metavar="PK", help="the row's primary key"),
        FORMAT,
        check("unless the row's current input has succeeded"),
    )

    def handle(self, **options: Any) -> None:
        runner = registry.get(options["runner"])
        model = runner.get_model()
        instance = every_row(runner).filter(pk=primary_key(runner, options["pk"])).first()
        if instance is None:
            raise CommandError(f"There is no {model._meta.label} with the key {options['pk']!r}.")
        found = explain(runner, instance)
        self.terminal.json(
            {
                "runner": runner.label,
                "model": model._meta.label,
                "pk": str(instance.pk),
                "is_pending": found.is_pending,
                "code": found.code,
                "reason": found.reason,
                "run": None if found.run is None else _as_json(found.run),
            }
        )
        self.terminal.say((f"{model._meta.verbose_name} {instance.pk}: ", "bold"), str(instance))
        self.terminal.say(
            ("pending, " if found.is_pending else "", "yellow"),
            (found.code, CODE_STYLES.get(found.code, "yellow" if found.is_pending else "cyan")),
            f": {found.reason}",
        )
        if options["check"] and found.code != "succeeded":
            raise condition_not_met(f"{model._meta.label} {instance.pk}: {found.code}.")


def _as_json(run: Run) -> dict[str, Any]:
    return {
        "id": run.pk,
        "status": Run.Status(run.status).name.lower(),
        "attempts": run.attempts,
        "finished_at": run.finished_at,
    }
