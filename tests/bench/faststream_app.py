"""The contender `faststream`: the naive handler as a FastStream subscriber on a Redis stream.

python -m tests.bench.faststream_app URL CORE.onnx
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

from faststream import Context, FastStream
from faststream.redis import RedisBroker, StreamSub
from faststream.redis.parser import BinaryMessageFormatV1
from faststream.redis.response import RedisResponse

from tests.bench.loop import IN, OUT, READ_ENTRIES
from tests.bench.naive import Handler

HEADERS = Context("message.headers")


def app(url: str, core: str) -> FastStream:
    handle = Handler(core)
    handle("warm-up", bytes(3200), True)
    broker = RedisBroker(url, logger=None, message_format=BinaryMessageFormatV1)

    @broker.subscriber(stream=StreamSub(IN, group="faststream", consumer="one", max_records=READ_ENTRIES))
    @broker.publisher(stream=OUT)
    async def chunk(data: bytes, headers: dict[str, Any] = HEADERS) -> RedisResponse:
        scores = handle(headers["stream"], data, "end" in headers)
        told = {name: headers[name] for name in ("stream", "seq", "end") if name in headers}
        return RedisResponse(scores.tobytes(), headers=told)

    made = FastStream(broker, logger=None)

    @made.after_startup
    async def ready() -> None:
        print("ready", flush=True)

    return made


if __name__ == "__main__":
    logging.disable(logging.INFO)
    asyncio.run(app(*sys.argv[1:]).run())
