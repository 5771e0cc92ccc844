"""Work for many at once that fails, done in halves until each item at fault stands alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TypeVar

from django.db import InterfaceError, OperationalError, connections, transaction

from autorun.exceptions import AutorunError

Item = TypeVar("Item")

#: MariaDB's number for a statement longer than max_allowed_packet.
_TOO_LARGE = 1153


def halved(
    work: Callable[[Sequence[Item]], object],
    items: Sequence[Item],
    *,
    fail: Callable[[Item, Exception], object],
    probe: Callable[[], object],
    using: str,
) -> None:
    """Do `work` for all items at once, or for as many at once as possible; `fail` for the others.

    `probe` does the work for no items at all. What it raises hits every item and is no item's
    fault: it is raised. So are operational errors, as of a database that is away, and autorun's
    own.
    """
    is_probed = False

    def attempt(some: Sequence[Item]) -> None:
        nonlocal is_probed
        try:
            # In a transaction of the caller's, an error must not break it.
            is_inside = connections[using].in_atomic_block
            with transaction.atomic(using=using) if is_inside else nullcontext():
                work(some)
        except Exception as error:
            if isinstance(error, (AutorunError, OperationalError, InterfaceError)) and (
                not error.args or error.args[0] != _TOO_LARGE
            ):
                raise
            if not is_probed:
                probe()
                is_probed = True
            if len(some) == 1:
                fail(some[0], error)
                return
            middle = len(some) // 2
            attempt(some[:middle])
            attempt(some[middle:])

    attempt(items)
