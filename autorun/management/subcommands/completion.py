"""completion: a script that completes subcommands, options and runners in a shell."""

import argparse
from collections.abc import Iterator
from typing import Any, ClassVar

from autorun.declare import registry
from autorun.management.subcommands.parsing import argument
from autorun.management.subcommands.subcommand import Subcommand

PROGRAMS = "manage.py django-admin python python3"
#: The script is read by zsh as well, with bash's functions loaded first.
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"
BASH = """_autorun() {
  local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"
  local name="" words="" at
  for ((at = 1; at < COMP_CWORD; at++)); do
    [[ "${COMP_WORDS[at]}" == autorun ]] && break
  done
  ((at < COMP_CWORD)) || return
  ((at + 1 < COMP_CWORD)) && name="${COMP_WORDS[at+1]}"
  case "$name $before" in
CASES
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _autorun PROGRAMS
"""
FISH = """function __autorun_at
  set -l words (commandline -opc)
  set -l at (contains -i -- autorun $words); or return 1
  test "$words["(math $at + 1)"]" = "$argv[1]"
end
for program in PROGRAMS
CASES
end
"""


class Completion(Subcommand):
    """Print a script for a shell: with it, the Tab key completes subcommands, options and runners.

    The script holds the names of the runners, so that the shell need not load the project. Print it
    again when they have changed.
    """

    arguments = (argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish")),)
    runs_despite_check_errors = True
    #: All of them, this one included; set beside their list.
    subcommands: ClassVar[tuple[type[Subcommand], ...]] = ()

    def handle(self, **options: Any) -> None:
        runners = " ".join(registry.labels())
        cases = _in_fish if options["shell"] == "fish" else _in_bash
        script = FISH if options["shell"] == "fish" else BASH
        script = script.replace("CASES", "\n".join(cases(self.subcommands, runners)))
        prefix = ZSH if options["shell"] == "zsh" else ""
        self.terminal.stream.write(prefix + script.replace("PROGRAMS", PROGRAMS))


def _actions(subcommand: type[Subcommand]) -> list[argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    subcommand.add_arguments(parser)
    return parser._actions


def _values(action: argparse.Action, runners: str) -> str:
    """The words for a value of the argument; '' if it may be anything."""
    takes_runners = action.dest in ("runner", "runners", "target")
    return runners if takes_runners else " ".join(map(str, action.choices or ()))


def _in_bash(subcommands: tuple[type[Subcommand], ...], runners: str) -> Iterator[str]:
    for each in subcommands:
        words: list[str] = []
        for action in _actions(each):
            words += action.option_strings or [_values(action, runners)]
            if action.option_strings and action.choices:
                pattern = "|".join(f'"{each.name} {name}"' for name in action.option_strings)
                yield f'    {pattern}) words="{_values(action, runners)}" ;;'
        yield f'    "{each.name} "*) words="{" ".join(filter(None, words))}" ;;'
    yield f'    " "*) words="{" ".join(each.name for each in subcommands)}" ;;'


def _in_fish(subcommands: tuple[type[Subcommand], ...], runners: str) -> Iterator[str]:
    names = " ".join(each.name for each in subcommands)
    yield f"  complete -c $program -f -n '__autorun_at \"\"' -a '{names}'"
    for each in subcommands:
        start = f"  complete -c $program -f -n '__autorun_at {each.name}'"
        for action in _actions(each):
            values = _values(action, runners)
            options = "".join(f" -l {name[2:]}" for name in action.option_strings)
            if options:
                yield f"{start}{options}" + (f" -x -a '{values}'" if values else "")
            elif values:
                yield f"{start} -a '{values}'"
