"""A SQLite file shared by processes: a handle that survives threads, forks and replacement.

A reserve of disk space beside it lets consumers empty the broker when the disk is full.
"""

import contextlib
import os
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
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


_files: "weakref.WeakSet[SharedFile]" = weakref.WeakSet()
_files_lock = threading.RLock()
_forking: "list[SharedFile]" = []
_abandoned: list[sqlite3.Connection] = []


class SharedFile:
    """A handle that opens on first use and locks every statement.

    A subclass defines the layout of the file: the statement that creates each table and index.
    Objects that an older file lacks are added to it. Change `layout_version` only if older code
    could not use the file any more. `application_id` marks the file as ours.
    """

    application_id: int
    layout: Mapping[str, str]
    layout_version: int

    def __init__(self, path: Path, *, busy_timeout: float) -> None:
        self.path = path
        self.busy_timeout = busy_timeout
        self._lock = threading.RLock()
        self._handle: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        with _files_lock:
            _files.add(self)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, sqlite3.Error):
            self._disconnect()

    def open(self) -> None:
        """Open or create the file; ValueError or OSError says what is wrong with it."""
        with self._lock:
            self._connected()

    def rows(self, query: str, parameters: Any = ()) -> list[Any]:
        """Return every row: a statement that is only partly read keeps its lock on the file."""
        with self._lock:
            return self._connected().execute(query, parameters).fetchall()

    def write(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        """Execute one statement in a transaction."""
        with self.writing() as handle:
            return handle.execute(statement, parameters)

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that takes the write lock at its start."""
        with self._lock:
            handle = self._connected()
            handle.execute("BEGIN IMMEDIATE")
            try:
                yield handle
                handle.execute("COMMIT")
            except BaseException:
                if handle.in_transaction:
                    handle.execute("ROLLBACK")
                raise

    def on_replaced(self) -> None:
        """Hook: the file was deleted or replaced; forget its contents."""

    def on_forked(self) -> None:
        """Hook: this is a child process; forget what the parent leased."""

    def _connected(self) -> sqlite3.Connection:
        if self._identity is not None and _identity(self.path) != self._identity:
            # No process reads a file that is no longer at its path.
            self._disconnect()
            self._identity = None
            self.on_replaced()
        if self._handle is None:
            _check_place(self.path)
            self._handle = self._connect()
            self._identity = _identity(self.path)
        return self._handle

    def _connect(self) -> sqlite3.Connection:
        handle = sqlite3.connect(
            self.path, timeout=self.busy_timeout, isolation_level=None, check_same_thread=False
        )
        try:
            handle.execute("PRAGMA trusted_schema = OFF")
            if self._missing(handle):
                handle.execute("PRAGMA auto_vacuum = INCREMENTAL")  # works on an empty file only
            self._use_write_ahead_log(handle)
            handle.execute("PRAGMA synchronous = NORMAL")
            handle.execute(f"PRAGMA journal_size_limit = {RESERVE}").fetchall()
            if self._missing(handle):
                handle.execute("BEGIN IMMEDIATE")
                for statement in self._missing(handle):
                    handle.execute(statement)
                handle.execute(f"PRAGMA application_id = {self.application_id}")
                handle.execute(f"PRAGMA user_version = {self.layout_version}")
                handle.execute("COMMIT")
        except BaseException:
            handle.close()
            raise
        return handle

    def _use_write_ahead_log(self, handle: sqlite3.Connection) -> None:
        deadline = time.monotonic() + self.busy_timeout
        while True:
            try:
                handle.execute("PRAGMA journal_mode = WAL").fetchall()
            except sqlite3.OperationalError:
                # SQLite does not always wait when several processes open a new file.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def _missing(self, handle: sqlite3.Connection) -> list[str]:
        """Statements of the layout not yet in the file; ValueError if it is not a broker's file."""
        advice = f"Name another file for the broker, or delete {self.path} if it is not needed"
        try:
            # First: another process may be about to commit the whole layout with its marks.
            found = handle.execute(
                "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL"
            ).fetchall()
            (application_id,) = handle.execute("PRAGMA application_id").fetchone()
            (version,) = handle.execute("PRAGMA user_version").fetchone()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path} is not a SQLite file ({error}). {advice}.") from error
        if found and application_id != self.application_id:
            raise ValueError(f"{self.path} is a database of something else. {advice}.")
        if found and version != self.layout_version:
            raise ValueError(
                f"{self.path} has layout {version}, and this version of autorun reads layout"
                f" {self.layout_version}. {advice}."
            )
        missing = {name: _one_line(statement) for name, statement in self.layout.items()}
        for kind, name, table, statement in found:
            if missing.get(name) == _one_line(statement):
                del missing[name]
            # It could swallow messages, or run code in every process that opens the file.
            elif kind in ("trigger", "view") or table in self.layout:
                raise ValueError(
                    f"{self.path} has the {kind} {name!r}, which the broker has not made. {advice}."
                )
        return list(missing.values())

    def _disconnect(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()

    def _before_fork(self) -> None:
        # A SQLite handle must not be carried over a fork.
        self._lock.acquire()
        with contextlib.suppress(sqlite3.Error):
            self._disconnect()

    def _after_fork_in_parent(self) -> None:
        self._lock.release()

    def _after_fork_in_child(self) -> None:
        self._lock = threading.RLock()
        if self._handle is not None:
            # C code forked without Python's fork hooks. Closing this handle could harm the file.
            _abandoned.append(self._handle)
            self._handle = None
        self.on_forked()


def _check_place(path: Path) -> None:
    if sqlite3.sqlite_version_info < (3, 35):
        raise RuntimeError(
            f"SQLite 3.35 or newer is needed for {path}, and this Python has"
            f" {sqlite3.sqlite_version}. Install a newer SQLite or Python, or use another broker."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"The directory {path.parent} does not exist, so {path.name} cannot be made in it."
            f" Create the directory, or name a file elsewhere."
        )
    for needed in (path.parent, path):
        if needed.exists() and not os.access(needed, os.W_OK):
            raise PermissionError(
                f"This process may not write to {needed}, and {path} needs it."
                " Change the permissions, or name a file elsewhere."
            )
    mode = path.parent.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise PermissionError(
            f"Every user may write to {path.parent}, and so replace {path.name} in it."
            f" Run `chmod o-w {path.parent}`, or name a file elsewhere."
        )
    # The lock ensures that no other thread opens the file before this descriptor is closed:
    # closing any descriptor of a file releases all locks that SQLite holds on it in this process.
    with _files_lock:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        # SQLite would write what is in another user's journal into the file.
        for suffix in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(FileNotFoundError):
                _make_private(path.with_name(path.name + suffix))


def _make_private(path: Path) -> None:
    """Take the permissions of other users away; PermissionError if they may have changed it."""
    status = path.lstat()
    mode = stat.S_IMODE(status.st_mode)
    problem = ""
    if stat.S_ISLNK(status.st_mode):
        problem = "is a symbolic link, which is not followed. Name the file that it points to"
    elif not stat.S_ISREG(status.st_mode):
        problem = "is not a file. Name another"
    elif status.st_uid != os.geteuid():
        problem = (
            f"belongs to the user {status.st_uid}, but this process runs as {os.geteuid()}. Run all"
            f" processes as one user, or run `chown {os.geteuid()} {path}`"
        )
    elif mode & (stat.S_IWGRP | stat.S_IWOTH):
        problem = f"may be written by other users. Run `chmod 600 {path}`"
    if problem:
        raise PermissionError(f"{path} {problem}.")
    if mode & 0o077:
        path.chmod(0o600)


def _one_line(statement: str) -> str:
    return " ".join(statement.split())


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _before_fork() -> None:
    _files_lock.acquire()
    _forking.extend(_files)
    for file in _forking:
        file._before_fork()


def _after_fork_in_parent() -> None:
    while _forking:
        _forking.pop()._after_fork_in_parent()
    _files_lock.release()


def _after_fork_in_child() -> None:
    global _files_lock  # noqa: PLW0603  a thread of the parent may hold the old one
    _files_lock = threading.RLock()
    _forking.clear()
    for file in list(_files):
        file._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
