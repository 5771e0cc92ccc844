import time
from argparse import ArgumentParser
from ipaddress import ip_address
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from sample_app.models import Scan
from sample_app.processes import Processes, termination_as_interrupt, typed

WELCOME = """
http://{address}/admin/{user}

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
        admin = users.filter(username="admin", is_active=True).first()
        is_open = not users.exists() or (admin is not None and admin.check_password("admin"))
        if is_open and not _is_loopback(address):
            raise CommandError(
                f"{address} can be reached from other machines, and anyone knows the password of "
                "the user admin. Give that user another one first: "
                f"{typed('changepassword' if admin else 'createsuperuser')}"
            )
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
                        user=" (user admin, password admin)" if is_open else "",
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


def _is_loopback(address: str) -> bool:
    """Whether runserver listens on this machine alone if it is given `address`."""
    if address.isdecimal():  # a port
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
