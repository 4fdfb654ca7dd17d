"""A unix-socket proxy that loses replies: the server has executed, the client never hears of it."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType


class Proxy:
    """Forwards bytes between clients and a server. `lose_reply()` arms it: the next reply is dropped with its
    connection, after the server sent it and so after it executed."""

    def __init__(self, target: str, path: str) -> None:
        self.url = f"unix://{path}"
        self._target = target
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._wake, self._woken = socket.socketpair()
        self._armed = threading.Event()
        self.lost = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def lose_reply(self) -> None:
        self.lost.clear()
        self._armed.set()

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._listener, selectors.EVENT_READ)
        selector.register(self._woken, selectors.EVENT_READ)
        peers: dict[socket.socket, socket.socket] = {}
        servers: set[socket.socket] = set()

        def drop(one: socket.socket) -> None:
            for each in (one, peers[one]):
                selector.unregister(each)
                del peers[each]
                servers.discard(each)
                each.close()

        while True:
            for event, _ in selector.select():
                one = event.fileobj
                assert isinstance(one, socket.socket)
                if one is self._woken:
                    for each in [*servers]:
                        drop(each)
                    return
                if one is self._listener:
                    client, _address = one.accept()
                    upstream = socket.socket(socket.AF_UNIX)
                    upstream.connect(self._target)
                    peers[client], peers[upstream] = upstream, client
                    servers.add(upstream)
                    selector.register(client, selectors.EVENT_READ)
                    selector.register(upstream, selectors.EVENT_READ)
                    continue
                if one not in peers:  # dropped by an event of this very round
                    continue
                try:
                    data = one.recv(1 << 20)
                except OSError:
                    data = b""
                if data and one in servers and self._armed.is_set():
                    self._armed.clear()
                    self.lost.set()
                    data = b""
                if not data:
                    drop(one)
                    continue
                with contextlib.suppress(OSError):
                    peers[one].sendall(data)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wake.send(b"x")
        self._thread.join()
        for each in (self._listener, self._wake, self._woken):
            each.close()
