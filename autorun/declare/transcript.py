"""The transcript of a batch: log records of `autorun.runner`, one for each line.

Where no logging is configured, as in a plain `shell`, the lines go to standard output.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

logger = logging.getLogger("autorun.runner")

#: A level no logger is enabled for: filters say nothing while a worker loads rows.
SILENT = logging.NOTSET


def say(line: str, *args: Any, level: int = logging.INFO) -> None:
    """One line of the transcript, without what its reader's terminal cannot show."""
    if logger.hasHandlers():
        if logger.isEnabledFor(level):
            logger.log(level, _showable(line, _streams()), *args)
    elif level >= logging.INFO and sys.stdout is not None:
        shown = _showable(line, [sys.stdout])
        sys.stdout.write(f"{shown % args if args else shown}\n")


def is_heard(level: int) -> bool:
    """Whether lines of `level` are shown; if not, nothing need be counted for them."""
    return logger.isEnabledFor(level) if logger.hasHandlers() else level >= logging.INFO


class Transcript:
    """The lines of one batch, in the order of its stages."""

    def __init__(self, title: str, model_name: str, *, level: int) -> None:
        self.title = title
        self.model_name = model_name
        self.level = level

    @property
    def is_heard(self) -> bool:
        return is_heard(self.level)

    def start(self) -> None:
        self._say("%s: Batch Execution", self.title)
        self._say("")

    def default_queryset(self) -> None:
        self._say("🔎 Default execution queryset generation:")
        self._say("Querying %s instances...", self.model_name)

    def instances_found(self, number: int) -> None:
        self._say("%d instances found.", number)

    def given_queryset(self) -> None:
        self._say("🔎 Input queryset validation:")

    def checking(self) -> None:
        self._say_apart("⚖ Checking execution status for the input queryset:")
        self._say("Filtering existing runs...")

    def checked(self, *, existing: int, failed: int, pending: int) -> None:
        self._say("%d existing runs found.", existing)
        if failed:
            self._say("%d of them failed and will not be retried.", failed)
        self._say("%d instances pending execution.", pending)

    def prepared(self, *, number: int, unprepared: int) -> None:
        self._say_apart("🔀 Generating input specifications:")
        if unprepared:
            self._say("The input of %d instances could not be prepared.", unprepared)
        self._say("%d input specifications prepared.", number)

    def limited(self, *, number: int) -> None:
        self._say("%d of them in this batch, as its limit says.", number)

    def started(self, number: int) -> None:
        line = "🚀Successfully started %s execution over %d %s instances🚀"
        self._say_apart(line, self.title, number, self.model_name)

    def would_start(self, number: int) -> None:
        line = "Would start %s execution over %d %s instances."
        self._say_apart(line, self.title, number, self.model_name)

    def recorded(self, number: int) -> None:
        line = "Recorded %s execution over %d %s instances; it starts when a broker answers."
        self._say_apart(line, self.title, number, self.model_name)

    def no_candidates(self) -> None:
        self._say_apart("No %s instances to process.", self.model_name)

    def nothing_pending(self, number: int, *, failed: int, under_way: int) -> None:
        if under_way == number:
            line = "Nothing pending: all %d %s instances are on their way."
            self._say_apart(line, number, self.model_name)
            return
        up_to_date = number - failed - under_way
        share = "all" if up_to_date == number else f"{up_to_date} of"
        line = f"Nothing pending: {share} %d %s instances are up to date"
        if under_way:
            line += f", {under_way} on their way"
        if failed:
            line += f", {failed} failed: retry() runs these"
        self._say_apart(f"{line}.", number, self.model_name)

    def _say(self, line: str, *args: Any) -> None:
        say(line, *args, level=self.level)

    def _say_apart(self, line: str, *args: Any) -> None:
        self._say("")
        self._say(line, *args)


def _streams() -> list[TextIO]:
    """The text streams that records of the logger end in."""
    streams = []
    current: logging.Logger | None = logger
    while current is not None:
        streams += [s for h in current.handlers if (s := getattr(h, "stream", None)) is not None]
        current = current.parent if current.propagate else None
    return streams


def _showable(line: str, streams: list[TextIO]) -> str:
    """`line` without the characters that one of `streams` cannot encode."""
    for stream in streams:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        try:
            line.encode(encoding)
        except UnicodeEncodeError:
            line = line.encode(encoding, errors="ignore").decode(encoding).strip()
        except LookupError:
            continue
    return line
