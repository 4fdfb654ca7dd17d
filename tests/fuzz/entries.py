"""Entries that are no chunks: a well-formed one, and what can be wrong with it, each fault with its reason.

A fault is a function of a random source, so that hypothesis and a flood of a hundred thousand draw from the same ones.
An entry may have several faults: any of their reasons is then right.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import redis

from pipeline.broker.keys import log_key, partition_of
from pipeline.broker.partition import MAX_DEAD_FIELDS

TOPIC, GROUP, PARTITIONS, CHANNELS = "audio", "digits", 4, 6
MAX_CHUNK_BYTES = 8192
"""Small, so that an oversize chunk costs little."""

SAMPLE_BYTES = 4 * CHANNELS
KNOWN = (b"stream", b"seq", b"data", b"end")


@dataclass
class Draft:
    """An entry before it is pushed: pairs in order, as a name may stand twice; the reasons that would be right."""

    partition: int
    pairs: list[tuple[bytes, bytes]]
    reasons: set[str] = field(default_factory=set)

    def put(self, name: bytes, value: bytes) -> None:
        self.pairs = [(n, value if n == name else v) for n, v in self.pairs]

    def without(self, name: bytes) -> None:
        self.pairs = [pair for pair in self.pairs if pair[0] != name]

    @property
    def fields(self) -> dict[bytes, bytes]:
        """As a reader tells them: a name that stands there already comes with its place."""
        fields: dict[bytes, bytes] = {}
        for n, (name, value) in enumerate(self.pairs, 1):
            fields[b"%s (field %d)" % (name, n) if name in fields else name] = value
        return fields


def well_formed(rng: Random, stream: str, seq: int, samples: int = 4) -> Draft:
    """A chunk that any worker takes."""
    data = struct.pack(f"<{samples * CHANNELS}f", *(rng.uniform(-1, 1) for _ in range(samples * CHANNELS)))
    pairs = [(b"stream", stream.encode()), (b"seq", b"%d" % seq), (b"data", data)]
    return Draft(partition_of(stream, PARTITIONS), pairs)


def some_bytes(rng: Random, least: int, most: int) -> bytes:
    return rng.randbytes(rng.randint(least, most))


def unknown_field(rng: Random, entry: Draft) -> str:
    name = rng.choice([b"", b"Stream", b"seq ", b"reason", b"message", b"entry.data", some_bytes(rng, 1, 40)])
    entry.pairs.insert(rng.randint(0, len(entry.pairs)), (name + b"?", some_bytes(rng, 0, 40)))
    return "unknown_field"


def very_many_fields(rng: Random, entry: Draft) -> str:
    entry.pairs += [(b"%d" % i, b"") for i in range(rng.choice([60, 500, 4000]))]
    return "unknown_field"


def missing_field(rng: Random, entry: Draft) -> str:
    entry.without(rng.choice(KNOWN[:3]))
    return "missing_field"


def no_name(rng: Random, entry: Draft) -> str:
    names = [
        b"",
        b"{}",
        b"a{b",
        b"\n",
        b"\x00",
        b"\x7f",
        b"x" * 201,
        "ü".encode() * 101,
        "\u202e".encode(),
        b"y" * 5000,
    ]
    entry.put(b"stream", rng.choice(names))
    return "bad_stream"


def binary_name(rng: Random, entry: Draft) -> str:
    entry.put(b"stream", b"\xff" + some_bytes(rng, 0, 300))
    return "bad_stream"


def wrong_partition(rng: Random, entry: Draft) -> str:
    entry.partition = (entry.partition + rng.randint(1, PARTITIONS - 1)) % PARTITIONS
    return "wrong_partition"


def bad_seq(rng: Random, entry: Draft) -> str:
    wrong = [b"", b"one", b"-1", b"+1", b" 1", b"1 ", b"1.0", b"1e3", b"0x10", b"1_0", "٣".encode(), b"9" * 5000]
    entry.put(b"seq", rng.choice([*wrong, b"%d" % (2**62 + rng.randint(1, 2**62)), b"%d" % 2**64, b"\x00\x01"]))
    return "bad_seq"


def bad_end(rng: Random, entry: Draft) -> str:
    entry.without(b"end")
    entry.pairs.append((b"end", rng.choice([b"", b"true", b"2", b"-1", b"01", b"\x01", some_bytes(rng, 2, 50)])))
    return "bad_end"


def oversize(rng: Random, entry: Draft) -> str:
    entry.put(b"data", bytes(rng.randint(MAX_CHUNK_BYTES + 1, 2 * MAX_CHUNK_BYTES)))
    return "oversize"


def odd_bytes(rng: Random, entry: Draft) -> str:
    entry.put(b"data", some_bytes(rng, 0, 5) * SAMPLE_BYTES + bytes(rng.randint(1, SAMPLE_BYTES - 1)))
    return "wrong_size"


def not_finite(rng: Random, entry: Draft) -> str:
    values = [0.0] * (CHANNELS * rng.randint(1, 20))
    values[rng.randrange(len(values))] = rng.choice([float("nan"), float("inf"), float("-inf")])
    entry.put(b"data", struct.pack(f"<{len(values)}f", *values))
    return "not_finite"


def said_twice(rng: Random, entry: Draft) -> str:
    """A field twice: with another value, or with the same."""
    entry.pairs.insert(rng.randint(0, len(entry.pairs)), rng.choice([*entry.pairs, (b"seq", b"1"), (b"seq", b"2")]))
    if len(dict(entry.pairs)) == len(entry.pairs):  # another fault had taken it away
        entry.pairs += [(b"data", b""), (b"data", b"")]
    return "unknown_field"


def nothing_of_ours(rng: Random, entry: Draft) -> str:
    entry.pairs = [(b"?" + some_bytes(rng, 0, 30), some_bytes(rng, 0, 200)) for _ in range(rng.randint(1, 8))]
    return "unknown_field"


Fault = Callable[[Random, Draft], str]
"""Spoils an entry, and returns the reason for which it is then rejected."""

REASONS = {"unknown_field", "missing_field", "bad_stream", "wrong_partition", "bad_seq", "bad_end"} | {
    "oversize",
    "wrong_size",
    "not_finite",
}
"""All that the faults can be rejected for. `bad_id` is not among them: such an id is the last that its log can have."""

FAULTS: Sequence[Fault] = (
    unknown_field,
    missing_field,
    no_name,
    binary_name,
    wrong_partition,
    bad_seq,
    bad_end,
    oversize,
    odd_bytes,
    not_finite,
    said_twice,
    nothing_of_ours,
    very_many_fields,
)


def malformed(rng: Random, streams: Sequence[str], faults: Sequence[Fault] = FAULTS) -> Draft:
    """An entry with one to three faults, most often under the name of a stream that is well.

    A later fault may mend an earlier one's field, not its own: the reasons are those of the entry as it ends up.
    """
    stream = rng.choice(streams) if streams and rng.random() < 0.7 else f"bad-{rng.randrange(1000)}"
    entry = well_formed(rng, stream, rng.choice([0, 1, rng.randrange(2**62)]))
    for fault in rng.sample(faults, rng.choice([1, 1, 2, 3])):
        entry.reasons.add(fault(rng, entry))
    return entry


def push(client: redis.Redis, entries: Sequence[Draft]) -> list[tuple[int, bytes]]:
    """By raw XADD, past our producers and functions. Returns (partition, id) of each."""
    with client.pipeline(transaction=False) as pipe:
        for entry in entries:
            flat = [part for pair in entry.pairs for part in pair]
            pipe.execute_command("XADD", log_key(TOPIC, entry.partition), "*", *flat)  # type: ignore[no-untyped-call]
        ids = pipe.execute()
    return [(entry.partition, id_) for entry, id_ in zip(entries, ids, strict=True)]


def assert_put_aside(entry: Draft, letter: Mapping[bytes, bytes]) -> None:
    """The dead letter gives a right reason, and what was pushed (cut where it is endless)."""
    shown = {name[:40]: value[:40] for name, value in letter.items()}
    assert letter[b"reason"].decode() in entry.reasons, f"not for any of {sorted(entry.reasons)}: {shown}"
    assert letter[b"message"]
    sent = {name if name in KNOWN else b"entry." + name: value for name, value in entry.fields.items()}
    if b"cut" in letter:
        assert len(sent) + 2 > MAX_DEAD_FIELDS
    else:
        assert {name: value for name, value in letter.items() if name not in (b"reason", b"message")} == sent
