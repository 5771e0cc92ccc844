"""workers and runs: what the pages list, for a terminal or a script."""

from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError

from autorun.declare import registry
from autorun.management.subcommands import parsing
from autorun.management.subcommands.subcommand import Subcommand
from autorun.observe.at_work import workers_at_work
from autorun.observe.listing import MOST_COMPARED, RunFilter
from autorun.observe.run_states import STATES, describe_run, stale_among, state_of
from autorun.state.draining import drain, pulse_of, seen, undrain
from autorun.state.parameters import SINCE
from autorun.state.words import ago, duration, moment, suggestion

FILTERS = ("runner", "state", "worker", "batch", "row", "since", "ended_from", "ended_until")


class Workers(Subcommand):
    """Show the workers: their queues and chunks, and their runs of the last ten minutes.

    A drained worker finishes the chunks it has and takes no others. A restart undoes the drain.
    """

    arguments = (
        parsing.argument("--drain", metavar="NAME", help="let this worker take no more chunks"),
        parsing.argument("--undrain", metavar="NAME", help="let it take chunks again"),
        parsing.FORMAT,
    )

    def handle(self, **options: Any) -> None:
        if options["drain"] and options["undrain"]:
            raise CommandError("Choose one of --drain and --undrain.")
        if worker := options["drain"]:
            running = {each.name for each in workers_at_work()}
            if worker not in running and pulse_of(worker) not in seen():
                hint = suggestion(worker, running, otherwise="See: manage.py autorun workers")
                raise CommandError(f"No running worker has the name {worker}. {hint}")
            outcome = " takes no more chunks." if drain(worker) else " was drained already."
            self.terminal.say((worker, "bold"), outcome)
        if worker := options["undrain"]:
            outcome = " takes chunks again." if undrain(worker) else " was not drained."
            self.terminal.say((worker, "bold"), outcome)
        found = workers_at_work()
        self.terminal.json([asdict(each) for each in found])
        if not found:
            self.terminal.say("No worker is running.")
            self.terminal.hint("Which workers are listening: manage.py autorun doctor")
            return
        self.terminal.table(
            ("=worker", "state", "queues", "at work on", "#chunks", "oldest", "#runs", "last seen"),
            [
                (
                    *(each.name, each.state, each.queues, each.runners, f"{each.chunks:,}"),
                    *(ago(each.since) if each.since else "", f"{each.runs:,}"),
                    ago(each.last_seen) if each.last_seen else "",
                )
                for each in found
            ],
        )


class Runs(Subcommand):
    """List runs, the newest or the slowest first: by runner, state, worker, batch, row or time."""

    arguments = (
        parsing.RUNNER_OR_ALL,
        parsing.argument("--state", choices=list(STATES)),
        parsing.argument("--worker", metavar="NAME", help="a name that `workers` prints"),
        parsing.argument("--batch", metavar="NUMBER", help="the number of a batch"),
        parsing.argument("--row", metavar="PK", help="a row's primary key"),
        parsing.argument("--since", choices=tuple(SINCE), help="finished within that time"),
        parsing.argument("--ended-from", metavar="TIME", help="finished from 2031-05-04T03:00 on"),
        parsing.argument("--ended-until", metavar="TIME", help="finished before that"),
        parsing.flag("--slowest", help="the slowest of the newest runs"),
        parsing.number("--limit", default=20, help="default: 20"),
        parsing.FORMAT,
    )

    def handle(self, **options: Any) -> None:
        given = {name: options.get(name) or "" for name in FILTERS}
        if given["runner"]:
            given["runner"] = registry.get(given["runner"]).label
        if problems := RunFilter.not_understood(given):
            raise CommandError(" ".join(problems))
        chosen, limit, is_all = RunFilter.read(given), options["limit"], True
        if options["slowest"]:
            runs, is_all = chosen.slowest(size=limit)
        else:
            runs = chosen.page(size=limit).runs
        stale = dict.fromkeys(stale_among(runs), ", stale")
        self.terminal.json([{**describe_run(run), "stale": run.pk in stale} for run in runs])
        if not runs:
            self.terminal.say("No runs match.")
            return
        self.terminal.table(
            ("#run", "row", "state", "runner", "#attempts", "#took", "finished"),
            [
                (
                    *(str(run.pk), run.key_text, f"{state_of(run)}{stale.get(run.pk, '')}"),
                    f"{run.chunk.runner} v{run.node.version}",
                    *(str(run.attempts), duration(run.seconds), moment(run.finished_at)[5:16]),
                )
                for run in runs
            ],
        )
        if not is_all:
            self.terminal.hint(f"Of about the newest {MOST_COMPARED:,} runs.")
