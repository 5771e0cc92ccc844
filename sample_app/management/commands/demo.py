import importlib
import os
import sys
import time
from argparse import ArgumentParser
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.live import Live
from rich.table import Table

from autorun.declare import registry
from autorun.runner import get_runner, get_runners
from sample_app import runners
from sample_app.models import Scan, Subject
from sample_app.processes import CHECKOUT, Processes, termination_as_interrupt, typed
from settings.environment import var_directory

SCANS = "sample_app.ScanPreprocessingRunner"
SUBJECTS = "sample_app.SubjectIntensityRunner"
SAVED_AT_FIRST = 60

ABOUT_THE_FILES = """
The scans are the images that pydicom and nibabel are tested with, the real ones at hand on every
machine. [bold]Nearly all of them succeed.[/bold] A few are damaged, or compressed in a rare way,
and will fail: an analysis of ten thousand scans meets such files, too, and autorun reports which
failed and why."""

ABOUT_THE_FAILURES = """
The files cause these failures, not autorun: they were cut short, given a broken header, or
compressed as no decoder here can read, to test the libraries that read them. Each run has two
attempts before it fails, one bad file never stops the others, and each cause is one line here
instead of one traceback per file.
"""

ABOUT_THE_SUBJECTS = """
A subject is processed once all of its scans are, and again when one of them has a new result. So a
subject with a broken scan waits, and can be asked why:
"""


class Command(BaseCommand):
    help = "Demonstrate autorun on real scans: saves, a sweep, a new version and its backfill."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--patience", type=float, default=90, help="the most seconds that one step may take"
        )

    def handle(self, *, patience: float, **options: Any) -> None:
        self.console = Console()
        self.patience = patience
        call_command("migrate", verbosity=0)
        if Scan.objects.exists():
            raise CommandError("The demo needs an empty database: `make demo` creates one.")
        self._say(ABOUT_THE_FILES)
        with (
            termination_as_interrupt(),
            Processes(logs=var_directory(), patience=3) as processes,
        ):
            try:
                self._play(processes)
            except KeyboardInterrupt:
                self.console.print("\nInterrupted. Stopping worker and beat...")
                sys.exit(130)
            self.console.print("\nStopping worker and beat...")
        self.console.print("To see all this in the admin pages, run:")
        self.console.print(f"  {_command_to_look()}", soft_wrap=True, markup=False)

    def _play(self, processes: Processes) -> None:
        self._title("A real worker and beat, on SQLite and a broker that is a file")
        processes.start_worker()
        processes.start_beat()
        logs = os.path.relpath(var_directory())
        self.console.print(f"Their logs are in {logs}. The worker takes a few seconds to start.")

        self._title("Scans are saved: every save plans its runs")
        self._command("load_scans", "--limit", str(SAVED_AT_FIRST))
        self._watch(processes)

        self._title("Scans are written with bulk_create, which sends no signal")
        self._command("load_scans", "--bulk")
        for runner in get_runners():
            self.console.print(f"{runner.label}: {runner.pending().count()} pending")
        self._title("A sweep finds them; beat does this every night")
        for runner in get_runners():
            self._command("autorun", "sweep", runner.label)
        self._watch(processes)

        self._title("Version 1.1 of the analysis: worker and beat restart with it")
        processes.stop()
        self._raise_version("1.1")
        processes.start_worker()
        processes.start_beat()
        self._title("A preview of the backfill, and then the backfill")
        self._command("autorun", "plan", SCANS)
        for runner in get_runners():
            if runner.get_model() is Scan:  # the subjects follow their scans
                self._command("autorun", "backfill", runner.label)
        self._watch(processes)

        self._title("The result")
        self._command("autorun", "status")
        self.console.print()
        self._command("autorun", "failures", SCANS)
        self._say(ABOUT_THE_FAILURES)
        self._explain_a_subject()

    def _explain_a_subject(self) -> None:
        """Show why a subject with a broken scan has no result."""
        runner = get_runner(SUBJECTS)
        for subject in Subject.objects.all():
            if runner.explain(subject).code == "dependency":
                self._say(ABOUT_THE_SUBJECTS)
                self._command("autorun", "explain", SUBJECTS, str(subject.pk))
                break

    def _title(self, text: str) -> None:
        self.console.print(f"\n[bold]{text}[/bold]")

    def _say(self, paragraph: str) -> None:
        self.console.print(f"\n{' '.join(paragraph.split())}")

    def _command(self, *arguments: str) -> None:
        self.console.print(f"[dim]$ manage.py {' '.join(arguments)}[/dim]")
        call_command(*arguments)

    def _raise_version(self, version: str) -> None:
        # Processes that are started later inherit it.
        os.environ["SCAN_PREPROCESSING_VERSION"] = version
        importlib.reload(runners)
        registry.register_module(runners.__name__)

    def _watch(self, processes: Processes) -> None:
        """Show the progress of all runners until nothing is pending or in progress."""
        watched = get_runners()
        started = time.monotonic()
        # Transient and drawn again below: a live table leaves the cursor behind its last row.
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(_draw(watched), refresh=True)
                if all(
                    not each.progress().unfinished and not each.pending().exists()
                    for each in watched
                ):
                    break
                if ended := processes.ended():
                    raise CommandError(f"{', '.join(ended)} exited unexpectedly; see its log.")
                if time.monotonic() - started > self.patience:
                    raise CommandError(f"Not done after {self.patience:.0f} s; see the logs.")
                time.sleep(0.25)
        self.console.print(_draw(watched))
        self.console.print(f"Done after {time.monotonic() - started:.1f} s.")


def _command_to_look() -> str:
    """The command that starts web, worker and beat on the demo's data."""
    if var_directory() == CHECKOUT / "var" / "demo":
        return "make up DEMO=1"
    return typed("up")


def _draw(watched: list[Any]) -> Table:
    table = Table("Runner", "pending", "waiting", "queued", "running", "done", "failed", box=None)
    for runner in watched:
        progress = runner.progress()
        counts = (runner.pending().count(), progress.waiting, progress.queued, progress.running)
        ended = (progress.succeeded, progress.failed)
        name = f"{type(runner).__name__.removesuffix('Runner')} {runner.ANALYSIS_VERSION}"
        table.add_row(name, *(str(count) for count in (*counts, *ended)))
    return table
