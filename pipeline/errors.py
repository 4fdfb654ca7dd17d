"""Errors, named by what to do next (never by where they came from).

| error               | what to do                                                           |
|---------------------|----------------------------------------------------------------------|
| `ConfigError`       | refuse to start: a setting, a topic and a bundle that do not fit     |
| `ManifestError`     | refuse to start: a bundle that is corrupt, foreign or contradicts itself |
| `ChunkRejected`     | this chunk only: to the dead letters, with its reason                |
| `Fenced`            | worker: drop the partition at once, never retry; producer: leave the stream, or `resume` it |
| `RecordingError`    | skip the file, tell the user                                         |
| `RowCorrupt`        | discard the row, start the stream afresh, count and report it        |
| `BrokerUnavailable` | retry with backoff inside the lease                                  |
| `TimedOut`          | wait longer, or look whether anybody works on it                     |
| `BacklogFull`       | the producer's caller decides: wait, drop or give up                 |

Every message says what was got, what was expected, and what to do.
"""

from __future__ import annotations


class StatebeltError(Exception):
    """Base of every error that this project raises on purpose."""


class ConfigError(StatebeltError):
    """A setting cannot work as given. Refuse to start."""


class ManifestError(StatebeltError):
    """A bundle cannot be trusted or does not fit its own manifest. Refuse to start."""


class RecordingError(StatebeltError):
    """A recording cannot be read. Skip the file, tell the user."""


class AudioError(RecordingError):
    """A recording of sound cannot be read."""


class TableError(RecordingError):
    """A recording of sensors, a CSV or npz file, cannot be read, or is not what its topic carries."""


class ChunkRejected(StatebeltError):
    """One chunk cannot be used; its stream and all others go on. To the dead letters.

    Attributes:
        reason: one of the documented reasons, a stable word for machines.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Fenced(StatebeltError):
    """Another has what this one held. A push again would be refused again.

    To a worker: another owner holds the partition. Drop it at once, never retry.
    To a producer: another one has claimed the stream. Leave it to that one, or take it back with `resume`, which says
    from where to go on.
    """


class RowCorrupt(StatebeltError):
    """A stored row is not a row of this bundle. Discard it, start the stream afresh."""


class BrokerUnavailable(StatebeltError):
    """Redis does not answer, or refuses writes for now. Retry with backoff inside the lease."""


class BacklogFull(StatebeltError):
    """A partition holds more unread chunks than the producer's bound. The caller decides."""


class TimedOut(StatebeltError, TimeoutError):
    """What was waited for did not come in the time given. Nothing is lost: wait again, or see whether anybody works."""
