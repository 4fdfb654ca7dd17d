"""Names of keys: one hash tag a partition, readable in redis-cli.

| key                            | what it is                                                        |
|--------------------------------|-------------------------------------------------------------------|
| `sb:<topic>:meta`              | hash: rate, sample type, channels, partitions of the topic        |
| `sb:{<topic>}:<group>:workers` | hash: the workers that live, and for how long they said so        |
| `sb:{topic/3}:in`              | the log of chunks; its consumer group's last-delivered-id is the offset |
| `sb:{topic/3}:<group>:out`     | the log of results, each under the id of its chunk                |
| `sb:{topic/3}:<group>:dead`    | the log of dead letters, each under the id of its chunk           |
| `sb:{topic/3}:<group>:marks`   | string `<ms> <offset>...`: where the group stood at past trims     |
| `sb:{topic/3}:<group>:lease`   | string `<epoch> <owner>` with a TTL: who may commit               |
| `sb:{topic/3}:<group>:epoch`   | integer that grows with every grant                               |
| `sb:{topic/3}:<group>:row:<stream>` | bytes: a stream's whole carried state                        |
| `sb:{topic/3}/<stream>`        | string `<next seq> <bytes> <status> <claim>`: where its producers stand |

The part in braces is what Redis Cluster hashes: all keys of a partition live in one slot, so a commit is one
legal call there. That is why braces may occur in no name.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from functools import lru_cache

from pipeline.errors import ChunkRejected, ConfigError

MAX_NAME_BYTES = 200
"""Bound on topic, group and stream names, in bytes of UTF-8."""

ROWS_SUFFIX = ":rows"
"""Ends the name of the group on a log that stands where a deployment's rows do, where they are behind its offset."""

_PLAIN = re.compile(rf"[ -z|~]{{1,{MAX_NAME_BYTES}}}")
"""What nearly every stream is called, printable ASCII without braces: checked for every chunk."""

MAX_PARTITIONS = 16_384
"""More partitions than a Redis Cluster has slots buy nothing."""


def _fault(name: object, forbidden: str) -> str | None:
    """What is wrong with a name, or None."""
    if not isinstance(name, str):
        return f"is {type(name).__name__}, not text"
    if not name:
        return "is empty"
    if len(name) > MAX_NAME_BYTES:  # before each character is looked at: whoever pushes chooses how many there are
        return f"has {len(name)} characters"
    for char in name:
        if char in forbidden or not char.isprintable():
            return f"contains {char!r}"
    size_bytes = len(name.encode())
    if size_bytes > MAX_NAME_BYTES:
        return f"has {size_bytes} bytes of UTF-8"
    return None


def check_name(kind: str, name: str) -> str:
    """Return a topic or group name that is fit for a key.

    Raises:
        ConfigError: empty, longer than `MAX_NAME_BYTES`, or with a brace, a colon or an unprintable character; a topic
            also with a slash, which divides it from its partitions: rights to `calls` shall not be rights to `calls/3`.

    >>> check_name("topic", "calls")
    'calls'
    """
    slash = "/" * (kind == "topic")
    fault = _fault(name, "{}:" + slash)
    if fault:
        raise ConfigError(
            f"{kind} name {str(name)[:80]!r} {fault}; expected 1 to {MAX_NAME_BYTES} bytes of text without braces, "
            f"colons{slash and ', slashes'} and unprintable characters (they delimit Redis keys). Choose another name."
        )
    return name


@lru_cache(maxsize=16_384)  # a stream is pushed to again and again
def _is_plain(stream: str) -> bool:
    return _PLAIN.fullmatch(stream) is not None


def check_stream(stream: str) -> str:
    """Return a stream name that is fit for a key. Colons and any script are allowed.

    Raises:
        ChunkRejected: reason `bad_stream`: empty, longer than `MAX_NAME_BYTES`, a brace or an unprintable character.
    """
    if isinstance(stream, str) and len(stream) <= MAX_NAME_BYTES and _is_plain(stream):
        return stream
    fault = _fault(stream, "{}")
    if fault:
        raise ChunkRejected(
            "bad_stream",
            f"stream name {str(stream)[:80]!r} {fault}; expected 1 to {MAX_NAME_BYTES} bytes of text without braces "
            f"and unprintable characters. Rename the stream at its producer.",
        )
    return stream


def partition_of(stream: str, partitions: int) -> int:
    """The partition of a stream: CRC-32 (zlib's, as in PNG and gzip) of its UTF-8 bytes, modulo `partitions`.

    Chosen because every language has it. Vectors for another implementation:

    >>> [partition_of("123456789", n) for n in (1, 2, 16, 1000)]  # CRC-32 is 3421780262
    [0, 0, 6, 262]
    >>> partition_of("call-42", 16), partition_of("größe", 16), partition_of("通話", 16)
    (10, 9, 9)
    """
    return zlib.crc32(stream.encode()) % partitions


def comes_before(one: bytes, other: bytes) -> bool:
    """Whether the first of two ids of entries is the earlier one.

    >>> comes_before(b"9-1", b"10-0"), comes_before(b"9-10", b"9-9")
    (True, False)
    """
    (ms, seq), (other_ms, other_seq) = (map(int, id_.split(b"-")) for id_ in (one, other))
    return (ms, seq) < (other_ms, other_seq)


def meta_key(topic: str) -> str:
    """The key of a topic's description."""
    return f"sb:{topic}:meta"


def workers_key(topic: str, group: str) -> str:
    """The key of a group's living workers: a hint for sharing, never a right to a partition."""
    return f"sb:{{{topic}}}:{group}:workers"


@lru_cache(maxsize=4096)
def log_key(topic: str, partition: int) -> str:
    """The key of a partition's log of chunks."""
    return f"sb:{{{topic}/{partition}}}:in"


def is_rows_group(name: bytes) -> bool:
    """Whether a group on a log is no deployment, but where the rows of one stand."""
    return name.endswith(ROWS_SUFFIX.encode())


def stand_key(topic: str, partition: int, stream: str) -> str:
    """The key of where a stream stands. No group has such a key: after the brace, theirs go on with a colon."""
    return f"sb:{{{topic}/{partition}}}/{stream}"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one partition as one group sees it.

    >>> Keys("calls", "digits", 3).out
    'sb:{calls/3}:digits:out'
    >>> Keys("calls", "digits", 3).row("call-42")
    'sb:{calls/3}:digits:row:call-42'

    Raises:
        ConfigError: a topic, group or partition that cannot be named.
    """

    topic: str
    group: str
    partition: int
    log: str = field(init=False)
    out: str = field(init=False)
    dead: str = field(init=False)
    lease: str = field(init=False)
    epoch: str = field(init=False)
    row_prefix: str = field(init=False)

    def __post_init__(self) -> None:
        check_name("topic", self.topic)
        check_name("group", self.group)
        if not 0 <= self.partition < MAX_PARTITIONS:
            raise ConfigError(f"partition {self.partition} is not within 0 and {MAX_PARTITIONS - 1}")
        put = object.__setattr__  # the class is frozen: these are computed once, not on every commit
        put(self, "log", log_key(self.topic, self.partition))
        base = f"sb:{{{self.topic}/{self.partition}}}:{self.group}:"
        for name in ("out", "dead", "lease", "epoch"):
            put(self, name, base + name)
        put(self, "row_prefix", base + "row:")

    def row(self, stream: str) -> str:
        """The key of a stream's row."""
        return self.row_prefix + stream
