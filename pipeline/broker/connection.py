"""Connections that never repeat a write behind our back, and what their errors mean.

redis-py's defaults are wrong for a log in two ways. Made with `Redis(...)` (though not with
`from_url`) it retries ten times, and an XADD whose reply was lost is then stored again; here nothing is retried, the
caller decides. Its socket timeout can be shorter than a blocking read;
here the reader checks one against the other.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import hiredis
import redis
import redis.asyncio
import redis.asyncio.retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from pipeline.broker.asked import Busy
from pipeline.broker.failover import History, code_of, watch
from pipeline.errors import BrokerUnavailable, ConfigError, StatebeltError

Client = redis.Redis
"""A blocking client, for those who may not import redis themselves."""

TIMEOUT_S = 10.0
"""How long a reply may take. Blocking reads must be shorter."""

CONNECT_TIMEOUT_S = 3.0

_WAIT_AND_RETRY = {
    "OOM": "the server is out of memory: raise its maxmemory, or trim the logs (`statebelt topics`)",
    "READONLY": "this server is a replica: wait for the failover to end, or use the address of the primary",
    "MASTERDOWN": "this replica has lost its primary: wait for it, or use the address of the primary",
    "CLUSTERDOWN": "the cluster does not serve this slot now: wait for it",
    "TRYAGAIN": "the cluster is moving this slot: try again",
    "MOVED": "the cluster moved this slot to another node: connect to that node",
    "ASK": "the cluster is moving this slot to another node: try again",
    "NOREPLICAS": "the server has too few replicas for its min-replicas-to-write: bring them back",
    "MISCONF": "the server cannot write its disk: see its log, free disk space",
    "LOADING": "the server is still loading its data: wait",
    "BUSY": "a script keeps the server busy: wait",
    "UNBLOCKED": "the server ended the blocking read: read again",
    "HISTORY": "it started anew, or took over from another: what was read before may not be there, read again",
}

_TLS_REFUSALS = {
    "WRONG_VERSION_NUMBER": "it does not speak TLS on this port: use redis://, or its tls-port",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it asks for a client certificate: give ssl_certfile, ssl_keyfile in the URL",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not trust this client's certificate (ssl_certfile): have it signed by its CA",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it refuses this client's certificate: renew ssl_certfile",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "this client's certificate has expired: renew ssl_certfile",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it refuses this client's certificate: have it signed by its CA",
    "TLSV1_ALERT_DECRYPT_ERROR": "it cannot verify this client's certificate: have it signed by its CA",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "no version of TLS, or cipher, that both sides take: see its tls-protocols",
    "TLSV1_ALERT_PROTOCOL_VERSION": "no version of TLS that both sides take: see its tls-protocols",
    "UNSUPPORTED_PROTOCOL": "no version of TLS that both sides take: see its tls-protocols",
}
"""What time will not change, by OpenSSL's reason. All else (a handshake cut short) is a server that is away."""

_UNUSABLE = (TypeError, ValueError, OSError, redis.RedisError)

_LOST = (redis.ConnectionError, redis.TimeoutError, redis.InvalidResponse)
_ACCESS = (
    redis.AuthenticationError,
    redis.exceptions.AuthorizationError,
    redis.exceptions.AuthenticationWrongNumberOfArgsError,
    redis.exceptions.NoPermissionError,
)


def translated(error: Exception) -> Exception:
    """Our error for one of redis-py's, named by what to do next; any other exception comes back as it is."""
    if not isinstance(error, redis.RedisError):
        return error
    text = str(error).removesuffix(".")
    refused = _tls_refusal(error)
    if refused is not None:
        return ConfigError(f"no safe connection to Redis: {refused} ({text})")
    code = code_of(error)
    if isinstance(error, _ACCESS):
        return ConfigError(f"Redis refuses this user: {text}. Check user and password in the URL, and the user's ACL.")
    if code in _WAIT_AND_RETRY:
        return BrokerUnavailable(f"Redis answers {code}: {_WAIT_AND_RETRY[code]} ({text})")
    if isinstance(error, _LOST):
        if isinstance(error.__cause__ or error.__context__, ssl.SSLEOFError):
            text += ". It hung up within TLS: if that goes on, it may ask for a client certificate (ssl_certfile)"
        return BrokerUnavailable(f"no answer from Redis: {text}. Whether the last write took effect is unknown; retry.")
    if code == "WRONGTYPE":
        return ConfigError(f"a key of ours holds another type: {text}. Another program uses `sb:` keys here: move one.")
    return ConfigError(f"Redis refuses what it should accept: {text}. Expected Redis 7.0 or later, or Valkey.")


def _tls_refusal(error: BaseException | None) -> str | None:
    """Why there will be no TLS with this server, or None."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"the server's certificate is not good: {error.verify_message}. Give its authority as ssl_ca_certs in "
                "the URL, and the host by the name in its certificate"
            )
        if isinstance(error, ssl.SSLError) and error.reason in _TLS_REFUSALS:
            return _TLS_REFUSALS[error.reason]
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def translate() -> Iterator[None]:
    """Around every use of a client, also an awaited one.

    Raises:
        BrokerUnavailable: no answer, or an answer that time will change. Retry with backoff.
        ConfigError: no permission, wrong server, foreign keys, certificates that are not good.
    """
    try:
        yield
    except redis.RedisError as error:
        raise translated(error) from error


class _Packer:
    """Commands to bytes by hiredis. redis-py's own packer first looks at every argument, for types that we do not pass:
    that took longer than the packing, of which a commit is full."""

    def pack(self, *args: Any) -> list[bytes]:
        name = args[0]
        if " " in name if isinstance(name, str) else b" " in name:  # "FUNCTION LOAD": two words to the server
            args = (*name.split(), *args[1:])
        try:
            return [hiredis.pack_command(args)]
        except TypeError as error:
            raise redis.DataError(f"an argument of {name!r} is neither bytes, text nor a number: {error}") from error


def _options(url: str, timeout_s: float) -> dict[str, Any]:
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ConfigError(
            f"{shown(url)!r} is no Redis URL; expected redis://host:6379/0, rediss://host:6379/0 or unix:///path/to.sock"
        )
    options: dict[str, Any] = {
        "protocol": 3,
        "legacy_responses": False,  # one reply shape whatever the protocol
        "socket_timeout": timeout_s,
        "client_name": "statebelt",
        "driver_info": None,  # no CLIENT SETINFO: an ACL of Redis 7.0 cannot grant what 7.0 does not know
    }
    if parts.scheme != "unix":
        options["socket_connect_timeout"] = min(CONNECT_TIMEOUT_S, timeout_s)
        options["socket_keepalive"] = True
        # A subscription of hosted Redis that relaxes timeouts during maintenance: a lease needs the real ones.
        options["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)
    return options


def shown(url: str) -> str:
    """A URL fit for logs and messages: without its passwords.

    >>> shown("redis://worker:secret@localhost:6379/0")
    'redis://worker:***@localhost:6379/0'
    """
    parts = urlsplit(url)
    if parts.password is not None:
        url = url.replace(f":{parts.password}@", ":***@", 1)
    return re.sub(r"(password=)[^&#]*", r"\1***", url)


def _check(pool: redis.ConnectionPool | redis.asyncio.ConnectionPool) -> None:
    """Whether connections can be made at all: redis-py would find out at the first use, and call it a lost server.

    Raises TypeError, ValueError, OSError, redis.RedisError.
    """
    options = pool.connection_kwargs
    pool.connection_class(**options)
    names = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
    ca_file, ca_path, certificate, key = (options.get(name) for name in names)
    for name in names:
        if options.get(name):
            os.stat(options[name])  # OpenSSL would not say which file it misses
    if key and not certificate:
        raise ValueError("ssl_keyfile without ssl_certfile: give both")
    if not (ca_file or ca_path or certificate):
        return
    # Not the default context: it reads a system's hundreds of authorities, for 27 ms.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file or ca_path:
        context.load_verify_locations(ca_file, ca_path)
    if certificate:
        context.load_cert_chain(certificate, key, options.get("ssl_password"))


def connect(
    url: str, timeout_s: float = TIMEOUT_S, *, history: History | None = None, busy: bool = False
) -> redis.Redis:
    """A blocking client; connects when first used. Close it with `close()`.

    history: connect to servers of this one alone; for who keeps in memory what it has read. busy: for who asks all the
    time, and can tell that a server is away and comes back; a connection that broke between two questions is an error.

    `rediss://` checks the server's certificate and its name; the URL's parameters (`ssl_ca_certs`, `ssl_certfile`,
    `ssl_keyfile`, ...) are in deploy/README.md.

    Its `xread` returns raw replies (`reader.py` wants neither dictionaries nor copies of them).

    Raises:
        ConfigError: not a Redis URL, or certificates that cannot be read.
    """
    options = _options(url, timeout_s) | {"command_packer": _Packer()}
    try:
        client = (Busy if busy else redis.Redis).from_url(url, retry=Retry(NoBackoff(), 0), **options)
        _check(client.connection_pool)
        watch(client.connection_pool)
        if history is not None:
            history.watch(client.connection_pool)
    except _UNUSABLE as error:
        raise ConfigError(f"{shown(url)!r} is no usable Redis URL: {error}") from error
    client.set_response_callback("XREAD", _raw)
    return client


def connect_async(url: str, timeout_s: float = TIMEOUT_S, *, history: History | None = None) -> redis.asyncio.Redis:
    """The same for asyncio. Close it with `await aclose()`.

    Raises:
        ConfigError: not a Redis URL.
    """
    options = _options(url, timeout_s)
    try:
        client = redis.asyncio.Redis.from_url(url, retry=redis.asyncio.retry.Retry(NoBackoff(), 0), **options)
        _check(client.connection_pool)
        watch(client.connection_pool)
        if history is not None:
            history.watch(client.connection_pool)
    except _UNUSABLE as error:
        raise ConfigError(f"{shown(url)!r} is no usable Redis URL: {error}") from error
    client.set_response_callback("XREAD", _raw)
    return client


def _raw(response: Any, **_options: Any) -> Any:
    return response


def timeout_ms(client: redis.Redis | redis.asyncio.Redis) -> float:
    """The socket timeout of a client of ours, in milliseconds."""
    timeout_s = client.connection_pool.connection_kwargs.get("socket_timeout")
    return float("inf") if timeout_s is None else float(timeout_s) * 1000


def check_server(client: redis.Redis) -> str:
    """Return the server's name and version, once it is known to be fit.

    Raises:
        ConfigError: older than Redis 7.0, or set to evict keys (rows and leases would vanish at will).
        BrokerUnavailable: no answer.
    """
    with translate():
        server = client.info("server")
        memory = client.info("memory")
    about: dict[str, Any] = {**server, **memory}
    version = str(about.get("redis_version", "0"))
    if int(version.split(".", 1)[0]) < 7:
        raise ConfigError(f"Redis {version} is too old: functions and lag need 7.0 or later, or Valkey. Upgrade it.")
    policy = str(about.get("maxmemory_policy", "noeviction"))
    if int(about.get("maxmemory", 0)) and policy != "noeviction":
        raise ConfigError(
            f"the server's maxmemory-policy is {policy!r}: under pressure it would throw carried state away. "
            f"Set `maxmemory-policy noeviction`."
        )
    if "valkey_version" in about:
        return f"Valkey {about['valkey_version']}"
    return f"Redis {version}"


def no_key(reply: Any) -> bool:
    """Is this what XINFO answers for a key that is not there: a log that nobody has written to, or that is gone?"""
    return isinstance(reply, redis.ResponseError) and "no such key" in str(reply)


def raise_first(replies: list[Any]) -> list[Any]:
    """Return the replies of a pipeline unless one is an error: then raise it, translated."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply if isinstance(reply, StatebeltError) else translated(reply) from reply
    return replies
