"""workers, runs, outputs, export and compare: what the pages list, and the results."""

import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError
from rich.text import Text

from autorun.declare import registry
from autorun.management.subcommands import parsing
from autorun.management.subcommands.subcommand import Subcommand
from autorun.models import Run
from autorun.observe.at_work import workers_at_work
from autorun.observe.comparison import Comparison, OutputChange, compare
from autorun.observe.formats import TEXTS, as_text, write_crate, write_parquet
from autorun.observe.listing import MOST_COMPARED, RunFilter
from autorun.observe.records import Records
from autorun.observe.run_states import STATES, describe_run, stale_among, state_of
from autorun.planning.scope import Scope
from autorun.state.draining import drain, pulse_of, seen, undrain
from autorun.state.parameters import SINCE
from autorun.state.words import ago, counted, duration, harmless, in_one_line, moment, suggestion

FILTERS = ("runner", "state", "worker", "batch", "row", "since", "ended_from", "ended_until")
#: A text that is too long for a line, such as a picture; the start of it is shown.
LONG_TEXT = re.compile(r"""((["'])[^"'\\]{40})[^"'\\]{20,}\2""")


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


class Outputs(Subcommand):
    """List the outputs of a runner's newest successes, or of one row; `export` writes them all."""

    arguments = (
        parsing.RUNNER,
        parsing.argument("--row", metavar="PK", help="a row's primary key"),
        parsing.number("--limit", default=20, help="default: 20"),
        parsing.FORMAT,
    )

    def handle(self, **options: Any) -> None:
        label = registry.get(options["runner"]).label
        chosen = RunFilter(runner=label, state="succeeded", row=options["row"] or "")
        runs = chosen.page(size=options["limit"]).runs
        outputs = dict(
            Run.objects.filter(pk__in=[run.pk for run in runs]).values_list("pk", "outputs")
        )
        self.terminal.json([{**describe_run(run), "outputs": outputs.get(run.pk)} for run in runs])
        if not runs:
            self.terminal.say("No outputs yet.")
            return
        self.terminal.table(
            ("row", "finished", "outputs"),
            [
                (
                    *(run.key_text, moment(run.finished_at)[5:16]),
                    _in_short(json.dumps(outputs.get(run.pk), ensure_ascii=False)),
                )
                for run in runs
            ],
        )
        self.terminal.hint(f"All of them: manage.py autorun export {label} --output results.csv")


class Export(Subcommand):
    """Export the results of a runner's rows: one line per row, one column per output.

    In CSV, texts that a spreadsheet would read as a formula get an apostrophe in front.
    """

    arguments = (
        parsing.RUNNER,
        parsing.FILTER,
        parsing.argument(
            "--format", choices=(*TEXTS, "parquet"), default="csv", help="default: csv"
        ),
        parsing.flag(
            "--provenance", help="write an RO-Crate: a folder, with PROV-JSON of the runs"
        ),
        parsing.flag("--stale", help="for rows without a current success, take their last one"),
        parsing.argument(
            "--output", metavar="FILE", help="file or folder (default: standard output)"
        ),
    )

    def handle(self, **options: Any) -> None:
        runner = registry.get(options["runner"])
        rows = Scope(filter=options["filter"]).queryset(runner)
        records = Records(runner, rows, options["stale"])
        form, output = options["format"], options["output"]
        if options["provenance"]:
            self._write_crate(records, form, output)
            return
        if output is None:
            if form not in TEXTS:
                raise CommandError("Parquet is written to a file: add --output FILE.")
            self._print(as_text(records, form))
            return
        # Written under another name first, so that a file of that name is always whole.
        part = Path(f"{output}.part")
        try:
            if form in TEXTS:
                with part.open("w", encoding="utf-8", newline="") as file:
                    file.writelines(as_text(records, form))
            else:
                write_parquet(records, str(part))
            part.replace(output)
        except (OSError, ImportError) as error:
            raise CommandError(str(error).replace(str(part), output)) from error
        finally:
            part.unlink(missing_ok=True)
        self.terminal.say((runner.label, "bold"), f": results written to {output}.")

    def _write_crate(self, records: Records, form: str, output: str | None) -> None:
        if output is None:
            raise CommandError("Provenance is written to a folder: add --output FOLDER.")
        try:
            write_crate(records, Path(output), form)
        except FileExistsError:
            raise CommandError(f"{output} exists already. Name a new folder.") from None
        except (OSError, ImportError) as error:
            raise CommandError(str(error)) from error
        self.terminal.say(
            (records.runner.label, "bold"), f": results and provenance written to {output}."
        )

    def _print(self, parts: Iterable[str]) -> None:
        # Bytes, as the terminal replaces characters that its encoding lacks.
        buffer = getattr(self.terminal.stream, "buffer", None)
        shown = harmless if self.terminal.console.is_terminal else str
        try:
            for part in map(shown, parts):
                if buffer is None:
                    self.terminal.stream.write(part)
                else:
                    buffer.write(part.encode())
                    buffer.flush()
        except BrokenPipeError:  # the reader has enough, as `| head` has
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Compare(Subcommand):
    """Compare the results of two versions on the rows that both have processed.

    Without versions, the runner's own is compared with its candidate.
    """

    arguments = (
        parsing.RUNNER,
        parsing.argument("before", nargs="?", metavar="BEFORE", help="the version to compare"),
        parsing.argument("after", nargs="?", metavar="AFTER", help="the one to compare it with"),
        parsing.argument(
            "--tolerance",
            type=float,
            default=0.0,
            metavar="SHARE",
            help="numbers that differ by at most this share are the same (default: 0)",
        ),
        parsing.FORMAT,
    )

    def handle(self, **options: Any) -> None:
        runner = registry.get(options["runner"])
        before, after = options["before"], options["after"]
        if before is not None and after is None:
            raise CommandError("Name both versions, or none to compare with the candidate.")
        try:
            found = compare(runner, before, after, tolerance=options["tolerance"])
        except ValueError as error:
            raise CommandError(str(error)) from error
        self.terminal.json(asdict(found))
        self._say(found)

    def _say(self, found: Comparison) -> None:
        counts = (
            f"{found.same:,} same, {found.different:,} different, "
            f"{found.newly_failed:,} newly failed, {found.newly_fixed:,} newly fixed"
        )
        self.terminal.say(
            (found.runner, "bold"), f": v{found.before} and v{found.after}: {counts}."
        )
        if found.other_input:
            rows = counted(found.other_input, "row has", "rows have")
            self.terminal.say(f"{rows} changed in between and cannot be compared.")
        if found.outputs:
            headings = ("output", "#different", "#median before", "#median after", "differ most")
            self.terminal.table(headings, map(_line, found.outputs))


def _line(change: OutputChange) -> tuple[str | Text, ...]:
    medians = (
        "" if each is None else f"{each:g}" for each in (change.median_before, change.median_after)
    )
    rows = (
        in_one_line(_in_short(f"{each.key}: {each.before!r} -> {each.after!r}"))
        for each in change.rows
    )
    return change.name, f"{change.different:,}", *medians, Text("\n".join(rows))


def _in_short(text: str) -> str:
    return LONG_TEXT.sub(r"\1…\2", text)
