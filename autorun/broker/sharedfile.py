"""A SQLite file that processes share: a handle for threads, forks and a file that is replaced."""

import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

JOURNAL_LIMIT = 4 * 1024 * 1024  # bytes that the write-ahead log is cut back to

_files: "weakref.WeakSet[SharedFile]" = weakref.WeakSet()
_files_lock = threading.RLock()
_forking: "list[SharedFile]" = []
_abandoned: list[sqlite3.Connection] = []


class SharedFile:
    """A handle that opens on first use, with a lock round every statement.

    A subclass gives the layout of the file. `application_id` tells it from any other SQLite file.
    """

    application_id: int
    layout: Sequence[str]
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
        """Open the file, made if need be; ValueError or OSError says what is wrong with it."""
        with self._lock:
            self._connected()

    def rows(self, query: str, parameters: Any = ()) -> list[Any]:
        """Every row of the answer: a statement left half read would hold its lock on the file."""
        with self._lock:
            return self._connected().execute(query, parameters).fetchall()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that waits for the write lock at its start, and never half-way."""
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
        """Hook: the file was deleted or replaced, and what this process knew of it is void."""

    def on_forked(self) -> None:
        """Hook: this is a child process, and what the parent holds is not the child's."""

    def _connected(self) -> sqlite3.Connection:
        if self._identity is not None and _identity(self.path) != self._identity:
            # Nobody would ever read what goes to a file that is no longer at its path.
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
            if not self._is_laid_out(handle):
                handle.execute("PRAGMA auto_vacuum = INCREMENTAL")  # heard by an empty file only
            self._use_write_ahead_log(handle)
            handle.execute("PRAGMA synchronous = NORMAL")
            handle.execute(f"PRAGMA journal_size_limit = {JOURNAL_LIMIT}").fetchall()
            if not self._is_laid_out(handle):
                handle.execute("BEGIN IMMEDIATE")
                if not self._is_laid_out(handle):
                    for statement in self.layout:
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
                # SQLite does not always wait by itself when several processes start on a new file.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def _is_laid_out(self, handle: sqlite3.Connection) -> bool:
        """False for an empty file; ValueError for a file that is something else."""
        advice = f"Name a file of its own for it, or delete {self.path} if nobody needs it"
        try:
            (application_id,) = handle.execute("PRAGMA application_id").fetchone()
            (version,) = handle.execute("PRAGMA user_version").fetchone()
            (tables,) = handle.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path} is not a SQLite file ({error}). {advice}.") from error
        if tables and application_id != self.application_id:
            raise ValueError(f"{self.path} is a database of something else. {advice}.")
        if tables and version != self.layout_version:
            raise ValueError(
                f"{self.path} has layout {version}, and this version of autorun reads layout"
                f" {self.layout_version}. {advice}."
            )
        return bool(tables)

    def _disconnect(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()

    def _before_fork(self) -> None:
        # A SQLite handle must not be carried over a fork, so there is none while it happens.
        self._lock.acquire()
        with contextlib.suppress(sqlite3.Error):
            self._disconnect()

    def _after_fork_in_parent(self) -> None:
        self._lock.release()

    def _after_fork_in_child(self) -> None:
        self._lock = threading.RLock()
        if self._handle is not None:
            # C code forked without telling Python. Closing this could harm the file.
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
    global _files_lock  # noqa: PLW0603  the parent's may be held by a thread that is not here
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
