import time
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from sample_app.models import Scan
from sample_app.processes import Processes, termination_as_interrupt, typed

WELCOME = """
http://{address}/admin/ (user admin, password admin)

{scans} scans are recorded. In another terminal, run:
  {load}
  {status}
Ctrl-C stops web, worker and beat.
"""


class Command(BaseCommand):
    help = "Start web, worker and beat to try autorun; Ctrl-C stops them."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("address", nargs="?", default="127.0.0.1:8000")

    def handle(self, *, address: str, **options: Any) -> None:
        call_command("migrate", verbosity=0)
        users = get_user_model()._default_manager
        if not users.exists():
            users.create_superuser("admin", password="admin")  # noqa: S106
        with termination_as_interrupt(), Processes(patience=3) as processes:
            try:
                processes.start_web(address)
                processes.start_worker(loglevel="WARNING")
                processes.start_beat()
                self.stdout.write(
                    WELCOME.format(
                        address=address,
                        scans=Scan.objects.count(),
                        load=typed("load_scans"),
                        status=typed("autorun", "status"),
                    )
                )
                while not (ended := processes.ended()):
                    time.sleep(0.5)
            except KeyboardInterrupt:
                self.stdout.write("\nStopping web, worker and beat...")
                return
        names = " and ".join(f"{name} (exit code {code})" for name, code in ended.items())
        raise CommandError(f"{names} exited unexpectedly; see the lines above.")
