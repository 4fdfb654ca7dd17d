"""Is there a Redis? The one question whose answer every newcomer needs in plain words."""

from __future__ import annotations

from contextlib import closing

from pipeline.broker.connection import check_server, connect, shown
from pipeline.errors import BrokerUnavailable
from pipeline.settings import Settings

_TIMEOUT_S = 5.0


def reach(settings: Settings) -> str:
    """The URL of the server in force, once it has answered.

    Raises:
        BrokerUnavailable: nobody answers there; the message says how to start one.
        ConfigError: not a Redis URL, or a server that is not fit.
    """
    url = settings.redis_url
    with closing(connect(url, timeout_s=_TIMEOUT_S)) as client:
        try:
            check_server(client)
        except BrokerUnavailable as error:
            raise BrokerUnavailable(
                f"no Redis answers at {shown(url)} ({str(error.__cause__ or error).removesuffix('.')}). "
                "Start `statebelt redis` in another terminal, or set REDIS_URL to a server that runs"
            ) from error
    return url
