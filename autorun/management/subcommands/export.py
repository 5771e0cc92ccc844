"""export: the results of a runner's rows, for other programs."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from autorun.declare import registry
from autorun.management.subcommands import parsing
from autorun.management.subcommands.subcommand import Subcommand
from autorun.observe.formats import TEXTS, as_text, write_parquet
from autorun.observe.provenance import write_crate
from autorun.observe.records import Records
from autorun.planning.scope import Scope
from autorun.state.words import harmless


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
            "--provenance",
            help="write a folder with the results, W3C PROV-JSON of their runs and an RO-Crate",
        ),
        parsing.flag("--stale", help="for rows without a current success, take their last one"),
        parsing.argument(
            "--output", metavar="FILE", help="the file, or the folder (default: standard output)"
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
