"""Everything autorun raises, under one base class."""

from collections.abc import Sequence


class AutorunError(Exception):
    """The base of every error that autorun raises."""

    #: The message without the words of a project's code, which may contain data of a row.
    bare: str | None = None


def bare_message(error: Exception) -> str:
    """The message of an error as far as it is autorun's own; else the error's class."""
    if isinstance(error, AutorunError):
        return error.bare or str(error)
    return type(error).__name__


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


class RunTimeout(AutorunError):
    """A run took longer than its runner allows."""


class WorkerLost(AutorunError):
    """The worker of a run stopped answering before the run was done."""


class LeaseLost(AutorunError):
    """The lease of a chunk went to another worker."""


class BrokerUnavailable(AutorunError):
    """The broker did not take a message in time."""


class MessagesRefused(BrokerUnavailable):
    """The broker took all messages except `messages`, whose queues refuse them."""

    def __init__(self, reason: str, messages: Sequence[object]) -> None:
        super().__init__(reason)
        self.messages = messages
