"""The contender `loop`: XREADGROUP, the naive handler, XADD, XACK; one process.

python -m tests.bench.loop URL CORE.onnx
"""

from __future__ import annotations

import sys

import redis

from tests.bench.naive import Handler

IN, OUT, GROUP = "bench:in", "bench:out", "loop"
READ_ENTRIES = 64


def main(url: str, core: str) -> None:
    client, handle = redis.Redis.from_url(url, protocol=3), Handler(core)
    handle("warm-up", bytes(3200), True)
    client.xgroup_create(IN, GROUP, id="0", mkstream=True)
    print("ready", flush=True)
    while True:
        found = client.xreadgroup(GROUP, "one", {IN: ">"}, count=READ_ENTRIES, block=1000) or {}
        for id_, fields in [entry for entries in dict(found).values() for part in entries for entry in _flat(part)]:
            scores = handle(fields[b"stream"].decode(), fields[b"data"], b"end" in fields)
            result = {b"stream": fields[b"stream"], b"seq": fields[b"seq"], b"scores": scores.tobytes()}
            client.xadd(OUT, result | ({b"end": b"1"} if b"end" in fields else {}))
            client.xack(IN, GROUP, id_)


def _flat(part: object) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """redis-py nests entries once more with protocol 3."""
    return part if isinstance(part, list) else [part]  # type: ignore[list-item]


if __name__ == "__main__":
    main(*sys.argv[1:])
