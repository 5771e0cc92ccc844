"""Loggers whose lines hold no secrets, and nothing that acts on a terminal or forges a line."""

import logging
import traceback
from typing import Any

from autorun.state.masking import masked
from autorun.state.words import harmless, in_one_line


def get_logger(name: str) -> logging.Logger:
    logger = logging.getLogger(name)
    logger.addFilter(_shown)
    return logger


class _Shown:
    """An argument of a line, as one line without control characters."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __str__(self) -> str:
        return in_one_line(masked(str(self.value)))

    def __repr__(self) -> str:
        return harmless(masked(repr(self.value)))


def _shown(record: logging.LogRecord) -> bool:
    # The message itself is autorun's own; tools such as Sentry group lines by it.
    if isinstance(record.args, tuple):
        record.args = tuple(
            each if isinstance(each, int | float) else _Shown(each) for each in record.args
        )
    raised: Any = record.exc_info
    if raised and raised[0] and not record.exc_text:
        # Formatters take the text from here, if there is one.
        record.exc_text = harmless(masked("".join(traceback.format_exception(*raised)))).rstrip(
            "\n"
        )
    return True
