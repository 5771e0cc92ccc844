"""`manage.py autorun SUBCOMMAND`."""

import argparse
import os
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError
from django.utils import translation

from autorun.exceptions import AutorunError
from autorun.management.subcommands import SUBCOMMANDS
from autorun.management.subcommands.parsing import SubcommandParser
from autorun.management.subcommands.terminal import Terminal
from autorun.state.words import harmless


class Command(BaseCommand):
    help = "Inspect and control autorun's runners."
    requires_system_checks = ("autorun",)
    suppressed_base_arguments = {
        *("--version", "--verbosity", "--settings", "--pythonpath", "--traceback"),
        *("--force-color", "--skip-checks"),
    }

    def __init__(
        self, stdout: Any = None, stderr: Any = None, no_color: bool = False, **options: Any
    ) -> None:
        # Django decides on coloured errors when the command is created, and ignores NO_COLOR.
        is_plain = no_color or (bool(os.environ.get("NO_COLOR")) and not options.get("force_color"))
        super().__init__(stdout, stderr, is_plain, **options)

    def add_arguments(self, parser: CommandParser) -> None:
        self._parser = parser
        subparsers = parser.add_subparsers(
            dest="subcommand",
            title="subcommands",
            metavar="SUBCOMMAND",
            parser_class=SubcommandParser,
        )
        for subcommand in SUBCOMMANDS:
            added = subparsers.add_parser(
                subcommand.name, help=subcommand.summary, description=subcommand.description()
            )
            subcommand.add_arguments(added)
            # People also type the options of every Django command after the subcommand.
            hidden: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
            for name in ("--no-color", "--force-color", "--traceback", "--skip-checks"):
                added.add_argument(name, action="store_true", **hidden)
            for name in ("--settings", "--pythonpath"):
                added.add_argument(name, **hidden)
            added.add_argument("-v", "--verbosity", type=int, choices=(0, 1, 2, 3), **hidden)

    def execute(self, *args: Any, **options: Any) -> Any:
        found = _find(options.get("subcommand"))
        if found is None or found.runs_despite_check_errors:
            options["skip_checks"] = True
        with translation.override("en"):  # a terminal, a script and a search engine read it
            return super().execute(*args, **options)

    def handle(self, *args: Any, subcommand: str | None, **options: Any) -> None:
        found = _find(subcommand)
        if found is None:
            self._parser.print_help(self.stdout)
            return
        terminal = Terminal(
            options.get("stdout") or self.stdout._out,
            aside=options.get("stderr") or self.stderr._out,
            no_color=options["no_color"],
            force_color=options["force_color"],
            as_json=options.get("format") == "json",
        )
        try:
            found(terminal).handle(**options)
        except CommandError as error:
            raise CommandError(harmless(str(error)), returncode=error.returncode) from error
        except AutorunError as error:
            raise CommandError(harmless(str(error))) from error
        except DatabaseError as error:
            raise CommandError(
                f"The database says: {harmless(str(error).strip())}\n"
                "If tables are missing, run `manage.py migrate`. For other causes, run "
                "`manage.py autorun doctor`."
            ) from error


def _find(name: str | None) -> Any:
    return next((each for each in SUBCOMMANDS if each.name == name), None)
