"""Lines for the person who calls `run()`: log records of `autorun.runner`.

Without any logging handler, as in a plain `shell`, they go to standard output.
"""

import logging
import sys
from typing import Any, TextIO

logger = logging.getLogger("autorun.runner")

#: A level no logger is enabled for: filters say nothing while a worker loads rows.
SILENT = logging.NOTSET


def say(line: str, *args: Any, level: int = logging.INFO) -> None:
    """Write the line, without the characters that its reader's terminal cannot show."""
    if logger.hasHandlers():
        if logger.isEnabledFor(level):
            logger.log(level, _showable(line, _streams()), *args)
    elif level >= logging.INFO and sys.stdout is not None:
        shown = _showable(line, [sys.stdout])
        sys.stdout.write(f"{shown % args if args else shown}\n")


def is_heard(level: int) -> bool:
    """Whether lines of `level` are shown; if not, nothing need be counted for them."""
    return logger.isEnabledFor(level) if logger.hasHandlers() else level >= logging.INFO


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
