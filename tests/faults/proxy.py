"""A TCP proxy that can delay, mute, cut and refuse."""

import contextlib
import selectors
import socket
import threading
import time
from types import TracebackType
from typing import Self


class Proxy:
    """Forwards 127.0.0.1:`port` to a server; one thread does it for all connections.

    `mute()`: connections are accepted and nothing is forwarded any more, in either direction;
    `refuse()`: nobody listens, and what is open is cut; `resume()`: everything passes again, what
    was held back included. `delay` is seconds that every piece of data is held.
    """

    def __init__(self, port: int, *, host: str = "127.0.0.1") -> None:
        self.target = (host, port)
        self.delay = 0.0
        self._selector = selectors.DefaultSelector()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._to_server: set[socket.socket] = set()
        self._lock = threading.RLock()
        self._is_muted = False
        self._cut_at: bytes | None = None
        self._losing_answer: set[socket.socket] = set()
        self.cuts = 0
        self._is_closed = False
        self._listener: socket.socket | None = None
        self._listen(0)
        assert self._listener is not None
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._work, name="test-proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_closed = True
        self._thread.join(10)
        self.refuse()
        self._selector.close()

    def mute(self) -> None:
        self._is_muted = True

    def cut(self) -> None:
        """Close every open connection; new ones pass."""
        with self._lock:
            for each in list(self._peers):
                self._close(each)

    def refuse(self) -> None:
        with self._lock:
            if self._listener is not None:
                self._selector.unregister(self._listener)
                self._listener.close()
                self._listener = None
        self.cut()

    def resume(self) -> None:
        self._is_muted = False
        with self._lock:
            if self._listener is None:
                self._listen(self.port)

    def lose_answer_to(self, words: bytes) -> None:
        """Cut the next connection that says `words`, when the server has answered them."""
        self.cuts = 0
        self._cut_at = words

    def _listen(self, port: int) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(64)
        listener.setblocking(False)
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ)

    def _work(self) -> None:
        while not self._is_closed:
            if self._is_muted:
                # Connections are accepted by the kernel, into the listener's backlog.
                time.sleep(0.02)
                continue
            with self._lock:
                ready = [key.fileobj for key, _ in self._selector.select(0)]
                for each in ready:
                    assert isinstance(each, socket.socket)
                    if each is self._listener:
                        self._accept()
                    elif each in self._peers:
                        self._forward(each)
            if not ready:
                time.sleep(0.001)

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            try:
                server = socket.create_connection(self.target, timeout=2)
            except OSError:
                client.close()
                return
            for one, other in ((client, server), (server, client)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._peers[one] = other
                self._selector.register(one, selectors.EVENT_READ)
            self._to_server.add(client)

    def _forward(self, source: socket.socket) -> None:
        try:
            source.setblocking(False)
            data = source.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(source)
            return
        if self.delay:
            time.sleep(self.delay)
        if source in self._losing_answer:
            self._losing_answer.clear()
            self.cuts += 1
            self._close(source)
            return
        target = self._peers[source]
        if source in self._to_server and self._cut_at and self._cut_at in data:
            self._cut_at = None
            self._losing_answer.add(target)
        try:
            target.setblocking(True)
            target.sendall(data)
        except OSError:
            self._close(source)

    def _close(self, one: socket.socket) -> None:
        for each in (one, self._peers.get(one)):
            if each is not None and each in self._peers:
                del self._peers[each]
                self._to_server.discard(each)
                self._selector.unregister(each)
                each.close()
