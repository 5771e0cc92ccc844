"""Everything autorun raises, under one base class."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from traceback import walk_tb


class AutorunError(Exception):
    """The base of every error that autorun raises."""

    #: The message without the words of a project's code, which may contain data of a row.
    bare: str | None = None


def bare_message(error: Exception) -> str:
    """Return the error's message if its words are autorun's own, otherwise its class."""
    if isinstance(error, AutorunError) and (error.bare or _is_own(error)):
        return error.bare or str(error)
    return type(error).__name__


def _is_own(error: Exception) -> bool:
    """Whether autorun raised it: a project's code may raise the same classes."""
    frames = list(walk_tb(error.__traceback__))
    return not frames or frames[-1][0].f_globals.get("__name__", "").startswith("autorun.")


class NotRegistered(AutorunError, LookupError):
    """No analysis or runner of that name is registered."""


class UnsuitablePool(NotRegistered):
    """A worker's pool cannot run the analysis; another worker may."""


class RowsGone(NotRegistered):
    """The source of a batch's rows, such as a filter in the admin, no longer exists."""


class AlreadyRegistered(AutorunError):
    """Another analysis or runner already has that name."""


class ImproperAnalysis(AutorunError):
    """An analysis is declared wrongly."""


class ImproperRunner(AutorunError):
    """A runner is declared wrongly, or one of its hooks raises."""


class ConfigurationError(AutorunError, ValueError):
    """A configuration or an input does not fit the analysis, or JSON."""


class InputError(AutorunError, ValueError):
    """The input of a row could not be prepared."""


class OutputError(AutorunError, ValueError):
    """The return value of an analysis cannot be stored."""


class NotApplicable(AutorunError):
    """Raised by a body: the analysis is not applicable to the row, for the reason given.

    The run ends as neither a success nor a failure, and the row runs again when its input changes.
    """


class RetryLater(AutorunError):
    """Raised by a body: try the row again in `seconds`. It uses no attempt.

    This is a number or the value of a Retry-After header, which may be a date. It is rounded up to
    whole seconds, from one second to a day. With `limit`, the other rows of the chunk wait, too.
    """

    SHORTEST, LONGEST = 1, 24 * 3600

    def __init__(self, seconds: float | str, reason: str = "", *, limit: bool = False) -> None:
        super().__init__(reason)
        self.seconds = max(self.SHORTEST, min(_seconds(seconds), self.LONGEST))
        self.limit = limit


class SmallerBatch(AutorunError):
    """Raised by a body that takes many rows: call it again with half of them."""


def _seconds(given: float | str) -> int:
    """Return whole seconds. Raises ValueError unless `given` is a number or a date."""
    try:
        return math.ceil(float(given))
    except OverflowError:
        return RetryLater.LONGEST
    except (TypeError, ValueError):
        with suppress(TypeError, ValueError):
            return math.ceil(parsedate_to_datetime(str(given)).timestamp() - time.time())
    raise ValueError(
        f"RetryLater({given!r}): give a number of seconds, or the value of a Retry-After header."
    )


class RunTimeout(AutorunError):
    """A run took longer than its runner allows."""


class RunCancelled(AutorunError):
    """Raised in a body: someone has cancelled its run."""


class WorkerLost(AutorunError):
    """The worker of a run stopped answering before the run was done."""


class LeaseLost(AutorunError):
    """The lease of a chunk went to another worker."""


class BrokerUnavailable(AutorunError):
    """The broker did not accept a message in time."""


class MessagesRefused(BrokerUnavailable):
    """The broker accepted all messages except `messages`, whose queues refuse them."""

    def __init__(self, reason: str, messages: Sequence[object]) -> None:
        super().__init__(reason)
        self.messages = messages
