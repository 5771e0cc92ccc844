"""The end of what a call of a body wrote: its log, its standard output and its children's stderr.

Nothing is kept of a call that succeeds, and one that writes nothing costs nothing. The context says
which call writes, so the lines of concurrent calls are told apart. Threads that a body starts
itself have no such context.
"""

import codecs
import logging
import os
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from contextvars import copy_context
from functools import wraps
from threading import Lock, Thread
from typing import Any

from celery.utils.log import LoggingProxy
from kombu.utils.compat import detect_environment

from autorun.execution import running
from autorun.state.masking import masked
from autorun.state.words import harmless

#: Celery's logger of what is printed.
REDIRECTED = "celery.redirected"
#: At least so many characters are kept while a call runs.
KEPT = 20_000
#: The output of a call with several rows is kept for each that fails, and cut to this part.
SHARED = 10
#: Exceptions of a chain that are searched for what a subprocess has written.
MOST_CAUSES = 10
#: Seconds to wait for the stderr of children that have ended: their own children may keep it open.
PATIENCE = 0.5
#: The parameters of Popen before `stderr`.
_BEFORE_STDERR = 5
#: The parameters of Popen, and their values, with which a child's stderr is noted.
_INHERITED = {"stderr": (None,), "start_new_session": (None, False), "process_group": (None, -1)}

_is_listening = False


class Tail:
    """The last characters of a text that grows: whole pieces of it, and at least KEPT."""

    def __init__(self) -> None:
        self._pieces: deque[str] = deque()
        self._size = 0
        self._is_cut = False
        self._lock = Lock()
        #: Threads that add what child processes write.
        self.readers: list[Thread] = []

    def add(self, piece: str) -> None:
        with self._lock:  # the body and its children write at the same time
            if len(piece) > KEPT:
                piece, self._is_cut = piece[-KEPT:], True
                self._pieces.clear()
                self._size = 0
            self._pieces.append(piece)
            self._size += len(piece)
            while self._size - len(self._pieces[0]) >= KEPT:
                self._size -= len(self._pieces.popleft())
                self._is_cut = True

    def last(self, most: int) -> str:
        """At most so many bytes of whole lines."""
        with self._lock:
            return _last("".join(self._pieces), most, is_cut=self._is_cut)


def listen() -> None:
    """Begin to record what calls write in this process."""
    global _is_listening  # noqa: PLW0603
    if not _is_listening:
        _is_listening = True
        make_record = logging.getLogRecordFactory()

        def make_noted(*args: Any, **options: Any) -> logging.LogRecord:
            record = make_record(*args, **options)
            # What is printed is noted as it is: Celery's record of it lacks the line breaks.
            if running.current.get() is not None and record.name != REDIRECTED:
                with suppress(Exception):  # arguments that do not fit; the handlers report them
                    _note(_line(record))
            return record

        logging.setLogRecordFactory(make_noted)
        if detect_environment() == "default":  # a green thread that reads would stop all the others
            _listen_to_children()
    if sys.stdout is not None and not isinstance(sys.stdout, _Noted):
        sys.stdout = _Noted(sys.stdout)
    if isinstance(sys.stderr, LoggingProxy):  # otherwise handlers would write every record to it
        sys.stderr = _Noted(sys.stderr)


def log_tail(tail: Tail | None, error: BaseException, *, max_bytes: int, rows: int = 1) -> str:
    """The end of a call's output, and then that of a subprocess whose error it raised.

    At most `max_bytes` of each, with secrets masked. The output of a call with several `rows` says
    so, and is shorter, as each row that failed keeps it.
    """
    parts: list[str] = []
    if tail is not None:
        end = time.monotonic() + PATIENCE
        for reader in tail.readers:
            reader.join(max(0.0, end - time.monotonic()))
        written = tail.last(max_bytes if rows == 1 else max_bytes // SHARED)
        if written and rows > 1:
            parts.append(f"by a call with {rows} rows:")
        parts += filter(None, [written])
    parts += (f"stderr:\n{_last(text, max_bytes)}" for text in _written_by_children(error))
    return harmless(masked("\n".join(part.rstrip("\n") for part in parts)))


class _Noted:
    """A text stream; what is written to it is noted as well."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> Any:
        _note(text)
        return self._stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _listen_to_children() -> None:
    """Note what a process writes to the stderr that it inherits from a call, and pass it on.

    The call's own stderr stays as it is. It may be that of other calls as well, and a pipe there
    could block a library that writes to it while it holds Python's lock. A process in a session or
    group of its own is meant to outlive this one, and keeps the stderr that it inherits.
    """
    begin: Any = subprocess.Popen.__init__

    @wraps(begin)
    def begin_noted(child: Any, *args: Any, **options: Any) -> None:
        tail = _tail()
        is_own = any(options.get(name) not in values for name, values in _INHERITED.items())
        if tail is None or is_own or len(args) > _BEFORE_STDERR:
            begin(child, *args, **options)
            return
        reading, writing = os.pipe()
        # In the call's context, so that the lines are its own.
        pass_on = Thread(target=copy_context().run, args=(_pass_on, reading), daemon=True)
        try:
            pass_on.start()
        except RuntimeError:  # there are too many threads
            os.close(reading)
            os.close(writing)
            begin(child, *args, **options)
            return
        tail.readers.append(pass_on)
        try:
            begin(child, *args, **{**options, "stderr": writing})
        finally:
            os.close(writing)

    subprocess.Popen.__init__ = begin_noted  # type: ignore[assignment, method-assign]


def _pass_on(reading: int) -> None:
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    with open(reading, "rb", buffering=0) as written:
        while piece := written.read(KEPT):
            with suppress(OSError), open(2, "wb", closefd=False) as stderr:
                stderr.write(piece)
            _note(decode(piece))


def _tail() -> Tail | None:
    found = running.current.get()
    if found is None:
        return None
    call = found[1]
    if call.tail is None:
        call.tail = Tail()
    tail: Tail = call.tail
    return tail


def _note(text: str) -> None:
    if (tail := _tail()) is not None:
        tail.add(text)


def _line(record: logging.LogRecord) -> str:
    line = f"{record.levelname} {record.name}: {record.getMessage()}\n"
    raised = record.exc_info
    return line + "".join(traceback.format_exception(*raised)) if raised and raised[0] else line


def _written_by_children(error: BaseException | None) -> Iterator[str]:
    """The stderr of subprocesses that the exception and its causes carry."""
    for _ in range(MOST_CAUSES):
        if error is None:
            return
        with suppress(Exception):  # the attribute of any exception
            written: Any = getattr(error, "stderr", None)
            if isinstance(written, bytes | bytearray):
                written = written.decode(errors="replace")
            if isinstance(written, str) and written.strip():
                yield written
        error = error.__cause__ or error.__context__


def _last(text: str, most: int, *, is_cut: bool = False) -> str:
    """The end of a text, without an incomplete first line, which may have named a secret."""
    written = text.replace("\0", "").encode("utf-8", "ignore")
    if len(written) > most:
        written, is_cut = written[-most:], True
    text = written.decode("utf-8", "ignore")
    if not is_cut:
        return text
    separator = "\n" if "\n" in text.rstrip("\n") else " "
    return f"...\n{text.partition(separator)[2]}"
