"""The users of deploy/acl: each can do its work through our own code, and, command by command, nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from pipeline.broker import admin, dead, functions
from pipeline.broker.connection import check_server, connect
from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.keys import Keys, log_key, meta_key, stand_key, workers_key
from pipeline.broker.lease import Granted, acquire
from pipeline.broker.partition import Commit, commit
from pipeline.broker.retention import marks_key
from pipeline.broker.topic import Topic, create
from pipeline.consumer import Consumer
from pipeline.errors import ConfigError
from pipeline.producer import Producer
from tests import zoo
from tests.harness import assert_exact, collect, cut_up, lively, make_producer, random_cut, until, worker
from tests.unit.test_cli import statebelt

from .helpers import LEASE_MS, everything, ids_of, push

RENDER = Path(__file__).parents[2] / "deploy" / "acl" / "render"
TOPIC, OTHER, GROUP = "audio", "secret", "digits"
PASSWORD = "pw-of-{}"
ROLES = ["producer", "worker", "reader", "admin"]
RESTRICTED = [f"{role}-{TOPIC}" for role in ROLES[:3]]


def rendered(*words: str) -> str:
    done = subprocess.run([RENDER, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sha256(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()


def user_lines() -> list[str]:
    everywhere = [rendered(role, sha256(PASSWORD.format(role))) for role in ROLES]
    return everywhere + [rendered(u.partition("-")[0], sha256(PASSWORD.format(u)), TOPIC) for u in RESTRICTED]


@pytest.fixture(scope="module", params=["embedded", "redis-server"])
def acl_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server started with the files of deploy/acl, and a superuser for the test to look from."""
    binary = None
    if request.param == "redis-server" and (binary := shutil.which("redis-server")) is None:
        pytest.skip("no redis-server on the PATH")
    folder = tmp_path_factory.mktemp("acl")
    users = folder / "users.acl"
    users.write_text("user default on nopass ~* &* +@all\n" + "".join(user_lines()))
    with EmbeddedServer(folder / "data", fsync="no", binary=binary, settings={"aclfile": str(users)}) as server:
        yield server


Login = Callable[[str], str]


@pytest.fixture
def login(acl_server: EmbeddedServer) -> Login:
    """The URL of a user, on an empty server that has the functions."""
    with connect(acl_server.url) as client:
        client.flushall()
        functions.load(client)
    return lambda user: acl_server.url.replace("unix://", f"unix://{user}:{PASSWORD.format(user)}@")


@pytest.fixture
def root(login: Login, acl_server: EmbeddedServer) -> Iterator[redis.Redis]:
    """A superuser of the server, which `login` has emptied."""
    assert login
    with connect(acl_server.url) as client:
        yield client


# --- each can do its work ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", f"-{TOPIC}"], ids=["all topics", "one topic"])
def test_each_does_its_work(root: redis.Redis, login: Login, suffix: str) -> None:
    """Functions by the admin, chunks by the producer, results by the worker, to the reader: byte for byte."""
    root.function_flush()
    root.acl_log_reset()
    with connect(login("admin")) as client:
        functions.load(client)
    bundle = zoo.bundle("sensor")
    signals = lively(bundle, 4, blocks=20)
    with (
        make_producer(login("producer" + suffix), bundle, TOPIC) as producer,
        Consumer(TOPIC, GROUP, url=login("reader" + suffix), start="beginning") as consumer,
        worker(login("worker" + suffix), bundle, topic=TOPIC, group=GROUP, trim_every_ms=1),
    ):
        for batch in cut_up(bundle, signals, random_cut):
            producer.push_many(batch)
        root.xadd(log_key(TOPIC, 0), {"no": "chunk"})  # a dead letter
        producer.push("last", np.empty((0, 6), np.float32), end=True)
        found = collect(consumer, [*signals, "last"])
        assert producer.resume("last").ended
        assert producer.resume("never pushed").next_seq is None
    assert_exact(bundle, signals, found)
    with Consumer(TOPIC, GROUP, url=login("reader" + suffix)) as now:
        now.open()
    # Nothing else was tried and refused: a worker asks for the fsync policy, and does without.
    assert {entry["object"] for entry in root.acl_log()} <= {b"config|get", "config|get"}


def test_a_reader_may_tail_though_not_ask_who_works(login: Login) -> None:
    make_producer(login("producer"), zoo.bundle("sensor"), TOPIC).close()
    assert statebelt("tail", "--topic", TOPIC, "--seconds", 0.1, "--url", login("reader")) == ("", "")


def test_a_worker_creates_the_topic(root: redis.Redis, login: Login) -> None:
    with worker(login(f"worker-{TOPIC}"), zoo.bundle("sensor"), topic=TOPIC, group=GROUP):
        until(lambda: root.exists(meta_key(TOPIC)) == 1, "the topic")
    with Producer(TOPIC, url=login(f"producer-{TOPIC}")) as producer:
        assert producer.spec.channels == 6


def test_the_admin_administers(root: redis.Redis, login: Login) -> None:
    with connect(login("admin")) as client:
        check_server(client)
        create(client, Topic(TOPIC, 8000, "int16", 1, 1))
        at = Keys(TOPIC, GROUP, 0)
        for _ in range(3):
            root.xadd(at.log, {"stream": "s", "seq": "0", "data": ""})
        granted = acquire(root, at, "a", LEASE_MS)
        assert isinstance(granted, Granted)
        ids = [entry[0] for entry in root.xrange(at.log)]
        letters = [(id_, {b"reason": b"x", b"stream": b"s", b"seq": b"0", b"data": b""}) for id_ in ids[:2]]
        commit(root, granted.lease, Commit(b"0-0", ids[1], 2, letters[:1], letters, [("s", b"row", 60_000)]))
        assert [topic.name for topic in admin.topics(client)] == [TOPIC]
        shown = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "topics", "--json", "--url", login("admin")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert json.loads(shown.stdout)["partitions"][0]["groups"][0]["dead"] == 2, shown.stderr
        (group,) = admin.status(client, TOPIC).partitions[0].groups
        assert (group.owner, group.streams, group.results, group.dead, group.lag) == ("a", 1, 1, 2, 1)
        (page,) = dead.briefs(client, TOPIC, GROUP, [0])
        assert [brief.id for brief in page] == ids[:2]
        assert dead.letter(client, TOPIC, GROUP, 0, ids[0]) == dead.dead_letters(client, TOPIC, GROUP, [0])[0]
        assert dead.row_heads(client, TOPIC, GROUP, [(0, "s")], 2) == [b"ro"]
        assert dead.retry(client, TOPIC, GROUP, page[:1])[0].new_id is not None
        assert dead.drop_dead(client, TOPIC, GROUP, 0, ids[1:2]) == 1
        admin.drop_group(client, TOPIC, GROUP, 1)
        assert admin.status(client, TOPIC).partitions[0].groups == ()
        old = functions.source().replace(functions.library().split("_")[1], "0123456789")
        client.function_load(old)
        client.function_delete("statebelt_0123456789")
    assert set(root.keys()) == {k.encode() for k in (meta_key(TOPIC), at.log, at.epoch)}


def test_without_functions_a_worker_says_who_must_load_them(root: redis.Redis, login: Login) -> None:
    root.function_flush()
    for user in ("worker", "producer"):
        with connect(login(user)) as client, pytest.raises(ConfigError, match="`statebelt load-functions` once"):
            create(client, Topic(TOPIC, 8000, "int16", 1, 1))
    command = [sys.executable, "-m", "pipeline.cli", "load-functions", "--json", "--url", login("admin")]
    root.function_flush()
    for loaded in (True, False):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert json.loads(done.stdout) == {"functions": functions.library(), "loaded": loaded}, done.stderr
    with connect(login("worker")) as client:
        create(client, Topic(TOPIC, 8000, "int16", 1, 1))


def test_a_chunk_that_may_not_be_stored_is_not_said_to_be(acl_server: EmbeddedServer, root: redis.Redis) -> None:
    """Its producer may write stands, not logs: what it then asks must not count what was refused."""
    make_producer(acl_server.url, zoo.bundle("sensor")).close()
    root.execute_command("ACL", "SETUSER", "half", "reset", "on", ">pw", "~*", "+@all", "-xadd")
    try:
        with Producer(TOPIC, url=acl_server.url.replace("unix://", "unix://half:pw@")) as half:
            with pytest.raises(ConfigError, match="refuses"):
                half.push("s", np.zeros((10, 6), np.float32))
            assert half.resume("s").samples == 0
    finally:
        root.acl_deluser("half")


# --- and nothing else: all commands of the server, on every kind of key -----------------------------------------------

AT, ELSEWHERE = Keys(TOPIC, GROUP, 3), Keys(OTHER, GROUP, 3)
KINDS = {
    "meta": meta_key,
    "in": lambda topic: log_key(topic, 3),
    "out": lambda topic: Keys(topic, GROUP, 3).out,
    "dead": lambda topic: Keys(topic, GROUP, 3).dead,
    "lease": lambda topic: Keys(topic, GROUP, 3).lease,
    "epoch": lambda topic: Keys(topic, GROUP, 3).epoch,
    "marks": lambda topic: marks_key(Keys(topic, GROUP, 3)),
    "row": lambda topic: Keys(topic, GROUP, 3).row("call-42"),
    "workers": lambda topic: workers_key(topic, GROUP),
    "stand": lambda topic: stand_key(topic, 3, "call-42"),
    "foreign": lambda _: "somebody-elses-key",
}

ANYONE = {"auth", "hello", "quit", "reset"}  # no ACL governs these
CONNECTED = ANYONE | {"ping", "client|setname", "info"}
LOOK = {"type", "xlen", "xinfo|groups"}
CREATE = {"exists", "hgetall", "hsetnx"}

MAY: dict[str, dict[str, set[str]]] = {
    "producer": {
        "": CONNECTED | {"time", "wait"},
        "meta": CREATE | {"fcall"},
        "in": {"xadd", *LOOK, "fcall"},
        "stand": {"get", "set", "fcall"},
    },
    "worker": {
        "": CONNECTED | {"time", "wait"},
        "meta": CREATE | {"fcall"},
        "in": {"xread", "xrange", "xinfo|stream", *LOOK, "xgroup|create", "xgroup|setid", "xtrim", "fcall"},
        "out": {"xadd", "xtrim", "type", "xinfo|stream", "fcall"},
        "dead": {"xadd", "xtrim", "type", "xinfo|stream", "fcall"},
        "lease": {"exists", "get", "set", "pexpire", "pttl", "del", "fcall"},
        "epoch": {"type", "incr", "fcall"},
        "marks": {"get", "set", "fcall"},
        "row": {"mget", "set", "del", "fcall"},
        "workers": {"hgetall", "hset", "hdel", "pttl", "pexpire", "fcall"},
    },
    "reader": {
        "": CONNECTED,
        "meta": {"hgetall"},
        "out": {"xread", "xrevrange"},
    },
    "admin": {
        "": CONNECTED | {"time", "scan", "function|load", "function|list", "function|delete"},
        "meta": CREATE | {"fcall"},
        "in": {"exists", "xrange", *LOOK, "xadd", "xgroup|destroy", "fcall"},
        "out": {"xlen", "unlink"},
        "dead": {"xlen", "xrange", "xinfo|stream", "xdel", "unlink", "fcall"},
        "lease": {"get", "pttl", "unlink"},
        "epoch": {"get"},
        "marks": {"unlink"},
        "row": {"getrange", "unlink"},
    },
}  # fmt: skip


Command = Callable[[str], list[str]]
"""How to call a command on a key, as far as an ACL can tell."""


def commands(client: redis.Redis) -> dict[str, tuple[bool, Command]]:
    """Every command that this server knows, subcommands by `command|name`: whether it has keys, and how to call it."""
    client.set_response_callback("COMMAND", lambda reply, **_: reply)  # redis-py's own trips over its shape
    names = [name.decode() for name in client.execute_command("COMMAND", "LIST")]
    infos = client.execute_command("COMMAND", "INFO", *names)
    return {
        name: (bool(info[8]), command(name, info))
        for name, info in zip(names, infos, strict=True)
        if not info[9]  # only a container of subcommands
    }


def command(name: str, info: Any) -> Command:
    """Every word is the key, but for those that say where keys are."""
    words, arity, specs = name.split("|"), info[1], info[8]
    places: dict[int, str] = {}
    for spec in specs:
        spec = {k.decode(): v for k, v in spec.items()}
        search, find = spec["begin_search"], spec["find_keys"]
        if search[b"type"] == b"keyword" and name in ("xread", "xreadgroup"):
            places[search[b"spec"][b"startfrom"]] = search[b"spec"][b"keyword"].decode()
        elif search[b"type"] == b"index" and find[b"type"] == b"keynum":
            places[search[b"spec"][b"index"] + find[b"spec"][b"keynumidx"]] = "1"
    last = max(places, default=0)
    length = arity if arity > 0 else max(-arity, len(words) + 1, last + 3 if last else 0)
    return lambda key: [*words, *(places.get(i, key) for i in range(len(words), length))]


def allowed(client: redis.Redis, user: str, keys: dict[str, str]) -> dict[str, set[str]]:
    """What ACL DRYRUN lets a user run, by kind of key; under "" what needs no key."""
    asked = [
        (kind, name, call(keys.get(kind, "x")))
        for name, (keyed, call) in commands(client).items()
        for kind in (keys if keyed else [""])
    ]
    with client.pipeline(transaction=False) as pipe:
        for _, _, words in asked:
            pipe.execute_command("ACL", "DRYRUN", user, *words)
        replies = pipe.execute(raise_on_error=False)
    found: dict[str, set[str]] = {}
    for (kind, name, words), reply in zip(asked, replies, strict=True):
        if reply == b"OK":
            found.setdefault(kind, set()).add(name)
        else:  # refused for want of a right, not because the test cannot call it
            assert b"permission" in (reply if isinstance(reply, bytes) else str(reply).encode()), (words, reply)
    return found


@pytest.mark.parametrize("user", [*ROLES, *RESTRICTED])
def test_of_all_commands_only_these(root: redis.Redis, user: str) -> None:
    role = user.partition("-")[0]
    assert len(commands(root)) > 300
    assert allowed(root, user, {kind: name(TOPIC) for kind, name in KINDS.items()}) == MAY[role]
    elsewhere = allowed(root, user, {kind: name(OTHER) for kind, name in KINDS.items()})
    assert elsewhere == (MAY[role] if user == role else {"": MAY[role][""]})


def test_a_topic_whose_name_begins_alike_is_another(root: redis.Redis) -> None:
    for other in (TOPIC + "s", "my" + TOPIC, TOPIC + ".eu"):
        found = allowed(root, f"worker-{TOPIC}", {kind: name(other) for kind, name in KINDS.items()})
        assert found == {"": MAY["worker"][""]}


@pytest.mark.parametrize("user", [*ROLES, *RESTRICTED])
def test_nothing_dangerous(root: redis.Redis, user: str) -> None:
    """By the server's own categories, so that a command of a version to come is not missed."""
    words = "keys flushall flushdb config|get config|set acl|setuser eval evalsha script|load script|flush monitor"
    words += " function|flush function|restore shutdown debug replicaof migrate restore dump rename copy move swapdb"
    words += " select subscribe psubscribe publish client|list client|kill cluster|meet module|load save bgsave sort"
    may = set().union(*allowed(root, user, {kind: name(TOPIC) for kind, name in KINDS.items()}).values())
    assert not may & set(words.split())
    loads = {"function|load", "function|delete", "function|list"} if user == "admin" else set()
    dangerous = {name.decode() for name in root.execute_command("ACL", "CAT", "dangerous")}
    assert may & dangerous <= {"info"} | loads


# --- and nothing else: acts -------------------------------------------------------------------------------------------

FORBIDDEN: dict[str, tuple[list[str], list[Any]]] = {
    "read results": (["producer", "worker"], ["XRANGE", AT.out, "-", "+"]),
    "read chunks": (["producer", "reader"], ["XRANGE", AT.log, "-", "+"]),
    "wait for chunks": (["producer", "reader", "admin"], ["XREAD", "STREAMS", AT.log, "0"]),
    "read dead letters": (["producer", "worker", "reader"], ["XRANGE", AT.dead, "-", "+"]),
    "take a lease by hand": (["producer", "reader", "admin"], ["SET", AT.lease, "9 thief", "PX", "60000"]),
    "free a lease": (["producer", "reader"], ["DEL", AT.lease]),
    "count an epoch up": (["producer", "reader", "admin"], ["INCR", AT.epoch]),
    "read a row": (["reader", "admin"], ["GET", AT.row("s")]),
    "read rows": (["producer", "reader", "admin"], ["MGET", AT.row("s")]),
    "write a row": (["producer", "reader", "admin"], ["SET", AT.row("s"), "x"]),
    "delete a row": (["producer", "reader"], ["DEL", AT.row("s")]),
    "claim a stream": (["worker", "reader", "admin"], ["SET", stand_key(TOPIC, 3, "s"), "1 0 live thief/1"]),
    "publish a result": (["producer", "reader", "admin"], ["XADD", AT.out, "*", "f", "v"]),
    "push a chunk": (["worker", "reader"], ["XADD", AT.log, "*", "f", "v"]),
    "delete the log": (ROLES, ["DEL", AT.log]),
    "delete the results": (["producer", "worker", "reader"], ["UNLINK", AT.out]),
    "delete a chunk": (ROLES, ["XDEL", AT.log, "1-0"]),
    "trim chunks": (["producer", "reader", "admin"], ["XTRIM", AT.log, "MAXLEN", "0"]),
    "change the log's last id": (ROLES, ["XSETID", AT.log, "9-0"]),
    "move an offset": (["producer", "reader", "admin"], ["XGROUP", "SETID", AT.log, GROUP, "$"]),
    "drop a group": (["producer", "worker", "reader"], ["XGROUP", "DESTROY", AT.log, GROUP]),
    "expire the log": (ROLES, ["PEXPIRE", AT.log, "1"]),
    "change a topic": (ROLES, ["HSET", meta_key(TOPIC), "channels", "2"]),
    "delete a topic": (ROLES, ["DEL", meta_key(TOPIC)]),
    "say it is a worker": (["producer", "reader", "admin"], ["HSET", workers_key(TOPIC, GROUP), "w", "1 x"]),
    "FLUSHALL": (ROLES, ["FLUSHALL"]),
    "CONFIG": (ROLES, ["CONFIG", "SET", "maxmemory", "1"]),
    "CONFIG GET": (ROLES, ["CONFIG", "GET", "*"]),
    "KEYS": (ROLES, ["KEYS", "*"]),
    "SCAN": (["producer", "worker", "reader"], ["SCAN", "0"]),
    "RANDOMKEY": (ROLES, ["RANDOMKEY"]),
    "SCRIPT": (ROLES, ["SCRIPT", "LOAD", "return 1"]),
    "EVAL": (ROLES, ["EVAL", "return 1", "0"]),
    "FUNCTION LOAD": (["producer", "worker", "reader"], ["FUNCTION", "LOAD", "REPLACE", "#!lua name=x\n"]),
    "FUNCTION FLUSH": (ROLES, ["FUNCTION", "FLUSH"]),
    "ACL": (ROLES, ["ACL", "SETUSER", "me", "on", "nopass", "+@all"]),
    "another database": (ROLES, ["SELECT", "1"]),
    "somebody else's key": (ROLES, ["GET", "somebody-elses-key"]),
    "stop the server": (ROLES, ["SHUTDOWN"]),
    "listen to all commands": (ROLES, ["MONITOR"]),
    "call a function as a reader": (["reader"], ["FCALL", "sb_backlog", 1, AT.log]),
}  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
def test_what_is_forbidden(root: redis.Redis, login: Login, role: str) -> None:
    prepare(root)
    stored = everything(root)
    let_through = []
    for user in {role, f"{role}-{TOPIC}"} & {*ROLES, *RESTRICTED}:
        with connect(login(user)) as client:
            for act in (act for act, (roles, _) in FORBIDDEN.items() if role in roles):
                if not refused(client, FORBIDDEN[act][1]) or everything(root) != stored:
                    let_through.append((user, act))
    assert let_through == []


def refused(client: redis.Redis, command: list[Any]) -> bool:
    try:
        client.execute_command(*command)
    except redis.exceptions.NoPermissionError:
        return True
    except redis.exceptions.ResponseError:  # it was let through to the command, which found something else amiss
        return False
    return False


def prepare(root: redis.Redis) -> None:
    """Something of everything, so that an act that is let through has something to spoil."""
    create(root, Topic(TOPIC, 8000, "int16", 1, 4))
    push(root, AT, ids_of(1, 3))
    granted = acquire(root, AT, "a", LEASE_MS)
    assert isinstance(granted, Granted)
    letter = (b"1-0", {b"a": b"b"})
    commit(root, granted.lease, Commit(b"0-0", b"2-0", 2, [letter], [letter], [("s", b"row", 60_000)]))
    root.set("somebody-elses-key", "x")


@pytest.mark.parametrize(
    ("taken", "named"),
    [
        ("-xadd (~{dead} +xadd)", "XADD"),
        ("-xadd (~{out} +xadd)", "XADD"),
        ("-xgroup|setid", "XGROUP"),
        ("-set", "SET"),
        ("-del", "DEL"),
        ("-pexpire", "PEXPIRE"),
    ],
)
def test_a_commit_that_may_not_write_all_writes_nothing(
    root: redis.Redis, acl_server: EmbeddedServer, taken: str, named: str
) -> None:
    """A function does not roll back: it asks for every right, key by key, before its first write."""
    rules = ["on", "nopass", "+@all", *(f"~{key}" for key in (AT.log, AT.out, AT.dead, AT.lease, AT.row_prefix + "*"))]
    rules += taken.format(out=AT.out, dead=AT.dead).split(" ", 1)
    root.execute_command("ACL", "SETUSER", "half", *rules)
    try:
        push(root, AT, ids_of(1, 3))
        granted = acquire(root, AT, "a", LEASE_MS)
        assert isinstance(granted, Granted)
        letter = (b"1-0", {b"a": b"b"})
        stored = everything(root)
        batch = Commit(b"0-0", b"2-0", 2, [letter], [letter], [("s", b"row", 60_000)], ["gone"])
        with (
            connect(acl_server.url.replace("unix://", "unix://half:x@")) as half,
            pytest.raises(ConfigError, match=f"may not run {named}"),
        ):
            commit(half, granted.lease, batch)
        assert everything(root) == stored
    finally:
        root.acl_deluser("half")


# --- the files themselves ---------------------------------------------------------------------------------------------


def test_no_user_has_a_password_of_ours() -> None:
    for file in RENDER.parent.glob("*.acl"):
        assert "#PASSWORD_SHA256 " in file.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["operator", "0" * 64], "expected producer, worker, reader or admin"),
        (["../acl/worker", "0" * 64], "expected producer, worker, reader or admin"),
        (["worker", "secret"], "sha256sum"),
        (["worker", "abc"], "64"),
        (["worker", "0" * 64, "calls eu"], "letters, digits"),
        (["worker", "0" * 64, "*"], "letters, digits"),
        (["admin", "0" * 64, "calls"], "for all topics"),
        (["worker"], "got 1 arguments"),
    ],
)
def test_what_cannot_be_rendered_is_refused(words: list[str], said: str) -> None:
    done = subprocess.run([RENDER, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_without_a_default_user_nobody_comes_in_unnamed(acl_server: EmbeddedServer) -> None:
    """The file as README.md has it: the default user off. Loaded into a server that runs (ACL LOAD)."""
    users = acl_server.data_dir.parent / "users.acl"
    before = users.read_text()
    with connect(acl_server.url) as root:
        try:
            operator = f"user operator on #{sha256('op')} ~* &* +@all\n"
            users.write_text("user default off\n" + operator + "".join(user_lines()))
            root.execute_command("ACL", "LOAD")
            with connect(acl_server.url) as anyone, pytest.raises(ConfigError, match="Check user and password"):
                check_server(anyone)
            wrong = acl_server.url.replace("unix://", "unix://worker:guess@")
            with connect(wrong) as guess, pytest.raises(ConfigError, match="Check user and password"):
                check_server(guess)
            with connect(acl_server.url.replace("unix://", f"unix://worker:{PASSWORD.format('worker')}@")) as known:
                assert check_server(known)
        finally:
            users.write_text(before)
            with connect(acl_server.url.replace("unix://", "unix://operator:op@")) as client:
                client.execute_command("ACL", "LOAD")
