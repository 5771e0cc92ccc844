"""A reserve of disk space: it lets consumers empty the broker when the disk is full."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

# The write-ahead log is cut back to this size, so this much room is enough to copy it into the
# file, after which the log is overwritten from its start and needs no more room.
RESERVE = 4 * 1024 * 1024  # bytes

_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE}


class DiskFull(sqlite3.OperationalError):
    """A message was refused because the disk has too little free space."""


Method = TypeVar("Method", bound=Callable[..., Any])


def with_reserve(method: Method) -> Method:
    """If the disk is full, call the method again after `use_reserve()`."""

    @wraps(method)
    def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) not in _FULL:
                raise
        self.use_reserve()
        return method(self, *args, **kwargs)

    return cast("Method", call)


def check_room(path: Path) -> None:
    """Raise `DiskFull` if the free space is only enough for consumers."""
    if _free_bytes(path) < RESERVE:
        raise DiskFull(
            f"The disk of {path} is full: less than {RESERVE // 1024**2} MB are free. New messages"
            " are refused; workers continue with those already sent. Free some space."
        )


def keep_reserve(path: Path) -> None:
    """Allocate the reserve beside the file, unless it exists or the disk is nearly full."""
    place = reserve_of(path)
    if os.path.lexists(place) or _free_bytes(path) < 2 * RESERVE:
        return
    # Without a reserve, as on file systems that cannot allocate, a full disk stops consumers.
    with suppress(OSError):
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, RESERVE)
        finally:
            os.close(descriptor)


def reserve_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-reserve")


def _free_bytes(path: Path) -> int:
    status: Any = os.statvfs(path.parent)
    return int(status.f_bavail * status.f_frsize)
