import time
from argparse import ArgumentParser
from statistics import median
from typing import Any

import numpy as np
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db.models import QuerySet
from rich.console import Console

from autorun.models import Run
from autorun.outputs import with_outputs
from autorun.runner import get_runner
from sample_app.embeddings.analyses import embed
from sample_app.embeddings.runners import DescriptionRunner
from sample_app.models import Scan
from sample_app.processes import Processes, termination_as_interrupt
from settings.environment import var_directory

RUNNERS = ("embeddings.DescriptionByRowRunner", "embeddings.DescriptionRunner")
QUESTION = "a picture of the head"
NEAREST = 5


class Command(BaseCommand):
    help = "Embed the descriptions of scans, by row and by batch, and search them by meaning."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("question", nargs="?", default=QUESTION, help="what to search for")
        parser.add_argument(
            "--patience", type=float, default=300, help="the most seconds that a step may take"
        )

    def handle(self, *, question: str, patience: float, **options: Any) -> None:
        self.console = Console()
        call_command("migrate", verbosity=0)
        call_command("load_scans", "--bulk")
        with (
            termination_as_interrupt(),
            Processes(logs=var_directory(), patience=3) as processes,
        ):
            processes.start_worker()
            rates = [self._embed(label, processes, patience) for label in RUNNERS]
        self.console.print(f"A batch is {rates[1] / rates[0]:.1f} times as fast as single rows.")
        self._search(question)

    def _embed(self, label: str, processes: Processes, patience: float) -> float:
        """Embed all descriptions with a runner; the rows a second of one worker process."""
        runner = get_runner(label)
        call_command("autorun", "backfill", label)
        deadline = time.monotonic() + patience
        while runner.progress().unfinished or runner.pending().exists():
            if ended := processes.ended():
                raise CommandError(f"{', '.join(ended)} exited unexpectedly; see its log.")
            if time.monotonic() > deadline:
                raise CommandError(f"Not done after {patience:.0f} s; see the worker's log.")
            time.sleep(0.25)
        # The median leaves out the calls that loaded the model.
        runs = Run.objects.current().succeeded().of(runner.get_node())
        seconds: list[Any] = list(runs.values_list("seconds", flat=True))
        rate: float = 1 / median(seconds)
        how = "32 rows a call" if label == RUNNERS[1] else "one row a call"
        self.console.print(
            f"{len(seconds)} descriptions embedded, {how}: {rate:.0f} rows a second and process."
        )
        return rate

    def _search(self, question: str) -> None:
        scans: QuerySet[Any] = with_outputs(Scan.objects.all(), vector=DescriptionRunner)
        # One scan for each description.
        found = {each.description: each for each in scans.filter(vector__isnull=False)}
        vectors = np.array([each.vector for each in found.values()])
        (wanted,) = embed([question])
        likeness = dict(zip(found, vectors @ np.array(wanted), strict=True))
        self.console.print(f"\nThe scans whose descriptions are nearest to “{question}”:")
        for description in sorted(found, key=likeness.__getitem__, reverse=True)[:NEAREST]:
            told = f"  {likeness[description]:.2f}  {description}: {found[description]}"
            self.console.print(told, markup=False)
