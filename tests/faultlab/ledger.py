"""A ledger of what bodies really did: lines in a file, whatever databases and brokers do."""

import json
import os
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

ENVIRONMENT = "AUTORUN_LEDGER"


def write(event: str, **fields: Any) -> None:
    """Append a line; the lines of many processes do not mix."""
    fields |= {"event": event, "pid": os.getpid(), "at": time.monotonic()}
    line = json.dumps(fields).encode() + b"\n"
    number = os.open(os.environ[ENVIRONMENT], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(number, line)
    finally:
        os.close(number)


@dataclass(frozen=True)
class Execution:
    """A body's work on a row; `end` is None where it never came back."""

    row: int
    value: str
    pid: int
    begin: float
    end: float | None


class Ledger:
    """Return the lines so far. Times are the machine's, the same in all of its processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> Self:
        self.path.touch()
        return self

    def lines(self) -> list[dict[str, Any]]:
        text = self.path.read_text() if self.path.exists() else ""
        # The last line may be on its way.
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def executions(self) -> list[Execution]:
        ends = {line["id"]: line["at"] for line in self.lines() if line["event"] == "end"}
        return [
            Execution(line["row"], line["value"], line["pid"], line["at"], ends.get(line["id"]))
            for line in self.lines()
            if line["event"] == "begin"
        ]

    def times(self) -> Counter[int]:
        """How often each row was begun."""
        return Counter(each.row for each in self.executions())

    def began(self, row: int) -> list[Execution]:
        return [each for each in self.executions() if each.row == row]

    def overlaps(self) -> list[tuple[Execution, Execution]]:
        """Executions of one row that were both at work at some time."""
        by_row = defaultdict(list)
        for each in self.executions():
            by_row[each.row].append(each)
        return [
            (one, other)
            for of_row in by_row.values()
            for one, other in pairwise(of_row)
            if one.end is not None and one.end > other.begin
        ]

    def most_at_once(self) -> int:
        """The most executions that were at work at one time."""
        changes = []
        for each in self.executions():
            if each.end is not None:
                changes += [(each.begin, 1), (each.end, -1)]
        most = current = 0
        for _, change in sorted(changes):
            current += change
            most = max(most, current)
        return most
