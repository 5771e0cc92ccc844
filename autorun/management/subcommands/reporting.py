"""outputs, export and compare: the results."""

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
from autorun.observe.comparison import Comparison, OutputChange, compare
from autorun.observe.formats import TEXTS, as_text, write_crate, write_parquet
from autorun.observe.listing import RunFilter
from autorun.observe.records import Records
from autorun.observe.run_states import describe_run
from autorun.planning.scope import Scope
from autorun.state.words import counted, harmless, in_one_line, moment

#: A text that is too long for a line, such as a picture; the start of it is shown.
LONG_TEXT = re.compile(r"""((["'])[^"'\\]{40})[^"'\\]{20,}\2""")


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
