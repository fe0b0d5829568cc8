"""A proxy before a server that counts what passes, and lets one thing happen at a chosen count.

It counts every statement that a client sends (before it is forwarded) and every answer that ends one (before
it is handed back: the statement has been done by then, and nobody knows). So whatever a program does is
covered, without a list of what that is.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

#: A statement begins with Query, Parse or CopyDone; an answer ends with ReadyForQuery.
_STATEMENTS, _ANSWERS = b"QPc", b"Z"
_SSL_REQUESTS = (80877103, 80877104)


class Proxy:
    """Listens on ``port`` for a server on *upstream*, a port of this machine."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._fault: Callable[[], None] | None = None
        self._at = 0
        self._passes = False
        #: What has passed since it was armed.
        self.events: list[str] = []
        self.happened: str | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(
        self, at: int = 0, fault: Callable[[], None] | None = None, *, passes: bool = False
    ) -> None:
        """Count from 0; at the event number *at*, do *fault* instead of passing it on.

        :param passes: pass it on afterwards; meanwhile nothing else of the program passes either.
        """
        with self._lock:
            self.events, self.happened = [], None
            self._at, self._fault, self._passes = at, fault, passes

    def wait(self) -> None:
        """Until a fault that has begun is over."""
        with self._lock:
            pass

    def cut(self) -> None:
        """End every connection at once, as a broken network does."""
        for end in tuple(self._open):
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._upstream))
            except OSError:
                client.close()
                continue
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open |= {client, server}
            for read, write, is_client in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=self._relay, args=(read, write, is_client), daemon=True
                ).start()

    def _relay(self, read: socket.socket, write: socket.socket, is_client: bool) -> None:
        try:
            if is_client:
                self._startup(read, write)
            while True:
                head = _exactly(read, 5)
                body = _exactly(read, struct.unpack("!i", head[1:])[0] - 4)
                if head[:1] in (_STATEMENTS if is_client else _ANSWERS):
                    text = body.rstrip(b"\0").split(b"\0")[-1 if head[:1] == b"P" else 0]
                    if head[:1] == b"P":
                        text = body.split(b"\0")[1]
                    if self._count(head[:1].decode() + " " + text[:90].decode(errors="replace")):
                        return
                write.sendall(head + body)
        except (OSError, EOFError):
            pass
        finally:
            for end in (read, write):
                self._open.discard(end)
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _startup(self, read: socket.socket, write: socket.socket) -> None:
        """The first message has no type."""
        while True:
            head = _exactly(read, 4)
            body = _exactly(read, struct.unpack("!i", head)[0] - 4)
            if struct.unpack("!i", body[:4])[0] in _SSL_REQUESTS:
                read.sendall(b"N")
                continue
            write.sendall(head + body)
            return

    def _count(self, what: str) -> bool:
        """Whether nothing goes on here, since the fault has happened."""
        with self._lock:
            self.events.append(what)
            if self._fault is None or len(self.events) != self._at:
                return False
            fault, self._fault = self._fault, None
            side = "after an answer" if is_answer(what) else f"before statement {what[2:]!r}"
            self.happened = (
                side if len(self.events) < 2 else f"{side}, after {self.events[-2][2:]!r}"
            )
            fault()
        if not self._passes:
            self.cut()
        return not self._passes


def is_answer(event: str) -> bool:
    """Whether an event is the end of what a server answers."""
    return event[0] in _ANSWERS.decode()


def _exactly(read: socket.socket, size: int) -> bytes:
    pieces = []
    while size:
        piece = read.recv(min(size, 1 << 16))
        if not piece:
            raise EOFError
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
