"""A proxy that a server's clients can be cut off by, on a unix socket or on TCP.

It buffers, so that a client that does not read (one that is frozen) holds up nobody else. Its faults are armed by
any thread and take place at the next bytes that fit, on whichever connection they come:

| fault         | what the client sees                    | what the server did |
|---------------|-----------------------------------------|---------------------|
| `lose_reply`  | the connection closed, no reply         | executed            |
| `cut_reply`   | half a reply, then the connection closed | executed            |
| `cut_request` | the connection closed                   | never got it whole  |
| `delay`       | a request or reply that comes late      | executed, but late  |
| `cut_all`     | every connection reset                  | whatever it was at  |
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections import Counter, deque
from types import TracebackType
from typing import Literal, NamedTuple

FULL_BYTES = 4 << 20
"""What is held for one side that does not read, before we stop reading from the other."""

Kind = Literal["lose_reply", "cut_reply", "cut_request", "delay_reply", "delay_request"]


class _Fault(NamedTuple):
    kind: Kind
    matching: bytes
    seconds: float = 0.0

    def fits(self, to_server: bool, request: bytearray) -> bool:
        return to_server == self.kind.endswith("request") and self.matching in request


class _Connection:
    """Two sockets, what each is still owed, and what the client has asked since it was last answered."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.owed = {client: bytearray(), server: bytearray()}
        self.request, self.answered = bytearray(), False
        self.held_until_s = 0.0

    def other(self, one: socket.socket) -> socket.socket:
        return self.server if one is self.client else self.client


class Proxy:
    """Forwards bytes between clients and the server at the unix socket `target`.

    Args:
        target: path of the server's socket; it may come and go.
        path: the socket to listen on; None: a free TCP port of the loopback address.

    Example:
        with Proxy(str(server.socket_path)) as proxy:
            proxy.lose_reply(b"sb_commit")
    """

    def __init__(self, target: str, path: str | None = None) -> None:
        self._target = target
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self._listener.listen()
            self.url = f"unix://{path}"
        self._listener.setblocking(False)
        self._wake, self._woken = socket.socketpair()
        self._faults: deque[_Fault] = deque()
        self._selector = selectors.DefaultSelector()
        self._connections: dict[socket.socket, _Connection] = {}
        self.lost = threading.Event()
        self.happened: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def lose_reply(self, matching: bytes = b"") -> None:
        """Drop the next reply with its connection; `matching`: only one to a request that contains this."""
        self.lost.clear()
        self._faults.append(_Fault("lose_reply", matching))

    def cut_reply(self, matching: bytes = b"") -> None:
        """Pass on half of the next reply, then close."""
        self._faults.append(_Fault("cut_reply", matching))

    def cut_request(self, matching: bytes = b"") -> None:
        """Pass on half of the next request, then close."""
        self._faults.append(_Fault("cut_request", matching))

    def delay(self, seconds: float, which: Literal["request", "reply"] = "reply", matching: bytes = b"") -> None:
        """Hold the next request or reply, and all that follows it on its connection, for a while."""
        self._faults.append(_Fault("delay_reply" if which == "reply" else "delay_request", matching, seconds))

    def cut_all(self) -> None:
        """Reset every connection."""
        self._wake.send(b"c")

    def lead_to(self, target: str) -> None:
        """New connections go to the server at this socket; those that are there stay. As when a name changes."""
        self._target = target

    # -- the thread

    def _run(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        while True:
            for event, mask in self._selector.select(self._until_release_s()):
                one = event.fileobj
                assert isinstance(one, socket.socket)
                if one is self._woken:
                    asked = one.recv(16)
                    self.happened["cut_all"] += asked.count(b"c")
                    for connection in set(self._connections.values()):
                        self._drop(connection, reset=True)
                    if b"x" in asked:
                        return
                elif one is self._listener:
                    self._accept()
                elif one in self._connections:  # not dropped by an event of this very round
                    self._serve(self._connections[one], one, mask)
            self._release()

    def _accept(self) -> None:
        client, _address = self._listener.accept()
        upstream = socket.socket(socket.AF_UNIX)
        try:
            upstream.connect(self._target)
        except OSError:  # the server is away: so is the client's connection
            upstream.close()
            client.close()
            return
        connection = _Connection(client, upstream)
        for each in (client, upstream):
            each.setblocking(False)
            self._connections[each] = connection
            self._selector.register(each, selectors.EVENT_READ)

    def _serve(self, connection: _Connection, one: socket.socket, mask: int) -> None:
        if mask & selectors.EVENT_READ:
            try:
                data = one.recv(1 << 20)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data or not self._pass_on(connection, one, data):
                self._flush(connection)
                self._drop(connection)
                return
        self._flush(connection)

    def _pass_on(self, connection: _Connection, one: socket.socket, data: bytes) -> bool:
        """Owe `data` to the other side. False: the connection ends here."""
        to_server = one is connection.client
        owed = connection.owed[connection.other(one)]
        if to_server:  # a long request comes in pieces, and what it is stands in the first
            if connection.answered:
                connection.request.clear()
            connection.request += data
        connection.answered = not to_server
        fault = next((f for f in list(self._faults) if f.fits(to_server, connection.request)), None)
        if fault is None:
            owed += data
            return True
        self._faults.remove(fault)
        self.happened[fault.kind] += 1
        if fault.kind == "lose_reply":
            self.lost.set()
            return False
        if fault.kind.startswith("cut"):
            owed += data[: len(data) // 2]
            return False
        owed += data
        connection.held_until_s = time.monotonic() + fault.seconds
        return True

    def _flush(self, connection: _Connection) -> None:
        held = connection.held_until_s > time.monotonic()
        for one, owed in connection.owed.items():
            try:
                while owed and not held:
                    del owed[: one.send(owed)]
            except BlockingIOError:
                pass
            except OSError:
                self._drop(connection)
                return
        for one, owed in connection.owed.items():
            wanted = selectors.EVENT_WRITE if owed and not held else 0
            if not held and len(connection.owed[connection.other(one)]) < FULL_BYTES:
                wanted |= selectors.EVENT_READ
            self._listen(one, wanted)

    def _listen(self, one: socket.socket, wanted: int) -> None:
        known = self._selector.get_map().get(one)
        if known is None and wanted:
            self._selector.register(one, wanted)
        elif known is not None and not wanted:
            self._selector.unregister(one)
        elif known is not None and known.events != wanted:
            self._selector.modify(one, wanted)

    def _held(self) -> list[_Connection]:
        return [c for c in set(self._connections.values()) if c.held_until_s]

    def _until_release_s(self) -> float | None:
        held = self._held()
        return max(0.0, min(c.held_until_s for c in held) - time.monotonic()) if held else None

    def _release(self) -> None:
        for connection in self._held():
            if connection.held_until_s <= time.monotonic():
                connection.held_until_s = 0.0
                self._flush(connection)

    def _drop(self, connection: _Connection, reset: bool = False) -> None:
        for one in (connection.client, connection.server):
            if self._connections.pop(one, None) is None:
                continue
            self._listen(one, 0)
            if reset and one.family == socket.AF_INET:
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()

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
        self._selector.close()
