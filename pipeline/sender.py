"""Who sends what waits: a thread beside a blocking producer, a task beside an asyncio one. The rules: `Waiting`."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from pipeline.broker.exchange import AsyncClient, Client, drive, drive_async
from pipeline.broker.stand import Terms
from pipeline.errors import StatebeltError
from pipeline.waiting import Waiting, still_waiting


class _Failure:
    """What ended the sending for good (ConfigError). It is told once, and the sending tried again by the call after."""

    def __init__(self) -> None:
        self.error: StatebeltError | None = None
        self.told = False

    def happened(self, error: StatebeltError) -> None:
        self.error, self.told = error, False

    def over(self) -> StatebeltError | None:
        """Try again. Returns the error where nobody was told of it."""
        error = None if self.told else self.error
        self.error, self.told = None, False
        return error

    def check(self) -> None:
        """Raise the error, and remember that it was told."""
        if self.error is not None:
            self.told = True
            raise self.error


class Sender:
    """Sends from a thread of its own, which begins with the first push and ends with `close`."""

    def __init__(self, client: Client, waiting: Waiting, terms: Terms, claim: str) -> None:
        self._client, self._waiting, self._terms, self._claim = client, waiting, terms, claim
        self._wake = threading.Condition()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure = _Failure()

    def nudge(self) -> None:
        """Something waits. Raises what ended the sending before (ConfigError), once; it is then tried again."""
        with self._wake:
            untold = self._failure.over()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="statebelt-sender", daemon=True)
                self._thread.start()
            self._wake.notify_all()
        if untold is not None:
            raise untold

    def flush(self, timeout_s: float) -> None:
        """Return when nothing waits. Raises BacklogFull or BrokerUnavailable after `timeout_s`: it waits still."""
        with self._wake:
            if self._failure.told:
                self._failure.over()
                self._wake.notify_all()
            done = self._wake.wait_for(lambda: self._failure.error or not len(self._waiting), timeout_s)
            self._failure.check()
        if not done:
            raise still_waiting(self._waiting, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Send what waits, for at most `timeout_s`; then drop the rest, counted."""
        with contextlib.suppress(StatebeltError):
            self.flush(timeout_s)
        with self._wake:
            self._stop.set()
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._waiting.give_up()

    def _run(self) -> None:
        while not self._stop.is_set():
            error = None
            try:
                drive(self._client, self._waiting.drain(self._terms, self._claim, self._stop.is_set), self._stop.wait)
            except StatebeltError as raised:
                error = raised
            with self._wake:
                if error is not None:
                    self._failure.happened(error)
                self._wake.notify_all()
                self._wake.wait_for(lambda: self._stop.is_set() or (len(self._waiting) and not self._failure.error))


class AsyncSender:
    """`Sender` for asyncio: a task that lives while something waits."""

    def __init__(self, client: AsyncClient, waiting: Waiting, terms: Terms, claim: str) -> None:
        self._client, self._waiting, self._terms, self._claim = client, waiting, terms, claim
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._failure = _Failure()

    def nudge(self) -> None:
        """As `Sender.nudge`."""
        untold = self._failure.over()
        if len(self._waiting) and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run())
        if untold is not None:
            raise untold

    async def flush(self, timeout_s: float) -> None:
        """As `Sender.flush`."""
        if not self._failure.told:
            self._failure.check()
        self.nudge()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout_s)
        self._failure.check()
        if len(self._waiting):
            raise still_waiting(self._waiting, timeout_s)

    async def close(self, timeout_s: float) -> None:
        """As `Sender.close`."""
        with contextlib.suppress(StatebeltError):
            await self.flush(timeout_s)
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._waiting.give_up()

    async def _run(self) -> None:
        steps = self._waiting.drain(self._terms, self._claim, lambda: self._stopping)
        try:
            await drive_async(self._client, steps)
        except StatebeltError as error:
            self._failure.happened(error)
