"""`statebelt dead` and `statebelt group` on a real server, with letters that real workers put aside."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import structlog

from pipeline.broker import topic as topics
from pipeline.broker.keys import Keys, log_key, partition_of
from pipeline.broker.lease import acquire
from pipeline.cli.fate import gone_on
from pipeline.cli.plain import duration, hex_dump, printable
from pipeline.consumer import Consumer
from tests import zoo
from tests.harness import make_producer, until, worker
from tests.unit.test_cli import statebelt

EVIL = b"\x1b]0;owned\x07\x1b[2J\xc2\x9b31m\xe2\x80\xae\r\n[red]x[/red]"
"""Sets a title, clears the screen, turns the direction of writing, and has markup of ours."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(io.StringIO()))
    yield
    structlog.reset_defaults()


@pytest.fixture
def topic(redis_client: redis.Redis) -> str:
    spec = zoo.bundle("sensor").manifest.input
    topics.create(
        redis_client,
        topics.Topic("audio", spec.sample_rate_hz, spec.sample_type, spec.channels, 4),
        any_partitions=True,
    )
    redis_client.xgroup_create(log_key("audio", 0), "digits", id="0", mkstream=True)
    return "audio"


def put(client: redis.Redis, id_: str, partition: int = 1, **fields: object) -> str:
    letter = {"reason": "bad_seq", "message": "no good", "stream": "s", "seq": "7", "data": "abc", **fields}
    client.xadd(Keys("audio", "digits", partition).dead, letter, id=id_)  # type: ignore[arg-type]
    return f"{partition}:{id_}"


def dead(command: str, url: str, *words: object, **how: object) -> tuple[str, str]:
    return statebelt("dead", command, "--url", url, *words, **how)  # type: ignore[arg-type]


def lines(out: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


def harmless(told: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in told)


@pytest.mark.parametrize(
    "command", [("dead",), ("dead", "list"), ("dead", "show"), ("dead", "retry"), ("dead", "drop"), ("group", "drop")]
)
def test_every_command_teaches_by_example(command: tuple[str, ...]) -> None:
    out, _ = statebelt(*command, "--help")
    assert "Examples" in out
    assert "statebelt " + " ".join(command) in out


class TestList:
    def test_what_a_line_says(self, url: str, redis_client: redis.Redis, topic: str) -> None:
        seconds, _ = redis_client.time()
        letter = put(redis_client, f"{(seconds - 600) * 1000}-3", data="x" * 3200, reason="wrong_size", stream="call-1")
        out, _ = dead("list", url)
        header, line = out.splitlines()
        assert header.split() == ["ID", "reason", "stream", "seq", "bytes", "age"]
        assert line.split() == [letter, "wrong_size", "call-1", "7", "3,200", "10", "min"]
        (told,) = lines(dead("list", url, "--json")[0])
        assert 600_000 <= told.pop("age_ms") < 700_000  # type: ignore[operator]
        assert told == {
            "letter": letter, "partition": 1, "chunk": letter[2:], "reason": "wrong_size", "stream": "call-1", "seq": 7,
            "data_bytes": 3200, "cut": False,
        }  # fmt: skip

    def test_filters_pages_and_going_on(self, url: str, redis_client: redis.Redis, topic: str) -> None:
        for i in range(1, 151):
            put(redis_client, f"{i}-0", i % 3, reason="rare" if i % 50 == 0 else "bad_end", stream=f"s-{i % 5}")
        out, err = dead("list", url)
        assert len(out.splitlines()) == 1 + 100
        assert "there are more: --after 1:148-0 goes on" in err
        rest, err = dead("list", url, "--after", "1:148-0")
        assert (len(rest.splitlines()), err) == (1 + 50, "")
        assert rest.splitlines()[1].split()[0] == "2:2-0"
        everything = [line["letter"] for line in lines(dead("list", url, "--limit", 0, "--json")[0])]
        assert everything == [f"{p}:{i}-0" for p in range(3) for i in range(1, 151) if i % 3 == p]
        of = {"--reason": "rare", "--stream": "s-2", "--partition": "2"}
        counts = {flag: len(lines(dead("list", url, flag, value, "--json")[0])) for flag, value in of.items()}
        assert counts == {"--reason": 3, "--stream": 30, "--partition": 50}
        last = lines(dead("list", url, "--partition", 2, "--after", "1:148-0", "--limit", 1, "--json")[0])
        assert last[0]["letter"] == "2:2-0"

    def test_what_strangers_wrote_steers_no_terminal(self, url: str, redis_client: redis.Redis, topic: str) -> None:
        letter = put(redis_client, "5-0", stream=EVIL, seq=EVIL, reason=EVIL, message=EVIL, data=EVIL)
        redis_client.xadd(Keys("audio", "digits", 2).dead, {b"entry." + EVIL: EVIL, b"\xff": b"\xff"}, id="6-0")
        for words in (("list",), ("list", "--json"), ("show", letter), ("show", letter, "--json"), ("show", "2:6-0")):
            out, _ = dead(words[0], url, *words[1:])
            assert harmless(out), words
            assert "owned" in out
            assert "[red]" in out or words[0] == "list"
        (first, _) = lines(dead("list", url, "--json")[0])
        assert str(first["stream"]).encode() == EVIL

    def test_nothing_there_is_told_apart_from_a_wrong_name(self, url: str, topic: str) -> None:
        assert dead("list", url)[0] == "no dead letters\n"
        assert dead("list", url, "--reason", "x")[0] == "no dead letters like that\n"
        assert dead("list", url, "--json")[0] == ""
        _, err = dead("list", url, "--group", "digit", code=2)
        assert "no group 'digit' works on topic 'audio'; there are: digits" in err
        _, err = dead("list", url, "--topic", "calls", code=2)
        assert "there is no topic 'calls'" in err
        _, err = dead("list", url, "--partition", "4", code=2)
        assert "has partitions 0 to 3, not 4" in err
        _, err = dead("list", url, "--group", "a:b", code=2)
        assert "contains ':'" in err


class TestShow:
    def test_all_of_it(self, url: str, redis_client: redis.Redis, topic: str, tmp_path: Path) -> None:
        data = bytes(range(256)) * 2
        letter = put(redis_client, "5-0", data=data, **{"entry.colour": "red"})
        out, _ = dead("show", url, letter)
        for told in (
            "bad_seq",
            "no good",
            "entry.colour red",
            "512 bytes, the first 256:",
            "30 31 32 33",
            "|0123456789",
        ):
            assert told in out
        assert len(out.splitlines()) == 1 + 5 + 1 + 16
        assert len(dead("show", url, letter, "--dump", 0)[0].splitlines()) == 1 + 5 + 1 + 32
        (told,) = lines(dead("show", url, letter, "--json")[0])
        assert base64.b64decode(str(told["data_base64"])) == data
        assert (told["letter"], told["chunk"]) == (letter, "5-0")
        assert "id" not in told
        assert told["fields"] == {
            "reason": "bad_seq", "message": "no good", "stream": "s", "seq": "7", "entry.colour": "red",
        }  # fmt: skip
        out, _ = dead("show", url, letter, "--out", tmp_path / "raw")
        assert (tmp_path / "raw").read_bytes() == data
        assert "512 bytes of data written" in out

    def test_mistakes(self, url: str, redis_client: redis.Redis, topic: str, tmp_path: Path) -> None:
        letter = put(redis_client, "5-0")
        for wrong in ("5-0", "1:5", "1:5-0-0", "x:5-0", "1:99999999999999999999-0", "1:-1-0", "\x1b[2J", "1:²-0"):
            _, err = dead("show", url, "--", wrong, code=2)
            assert "is no ID of a dead letter; expected one as 3:1700000000000-0" in err.replace("\n", " ")
            assert "the first column of `statebelt dead list`, or `letter` in its JSON" in err.replace("\n", " ")
            assert harmless(err)
        assert "has partitions 0 to 3, not 9" in dead("show", url, "9:5-0", code=2)[1]
        assert "there is no dead letter 1:6-0" in dead("show", url, "1:6-0", code=2)[1]
        assert "cannot be written" in dead("show", url, letter, "--out", tmp_path / "no" / "raw", code=2)[1]
        redis_client.xadd(Keys("audio", "digits", 1).dead, {"reason": "missing_field"}, id="7-0")
        assert "has no data" in dead("show", url, "1:7-0", "--out", tmp_path / "raw", code=2)[1]


class TestRetry:
    def test_a_chunk_whose_cause_is_gone_is_a_stream_again(
        self, url: str, redis_client: redis.Redis, topic: str
    ) -> None:
        """Whole streams that were too large for the workers of then: retried, each yields what it would have."""
        bundle = zoo.bundle("sensor")
        with make_producer(url, bundle) as producer:
            for name in ("a", "b"):
                for part in range(3):
                    producer.push(name, zoo.signal(bundle.manifest.input, 64, seed=part), end=part == 2)
        with worker(url, bundle, max_chunk_bytes=16):
            until(lambda: len(lines(dead("list", url, "--json", "--limit", 0)[0])) == 6, "six dead letters")
        with (
            Consumer("audio", "digits", url=url) as consumer,
            worker(url, bundle, publish="chunks"),
        ):
            assert dead("retry", url, "--all", "--reason", "oversize")[0] == "retried 6, kept 0\n"
            found: list[tuple[str, int, bool]] = []

            def ended() -> bool:
                found.extend((r.stream, r.seq, r.end) for r in consumer.read(0.1))
                return sum(end for *_, end in found) == 2

            until(ended, "the end of both")
        for name in ("a", "b"):
            seqs = [seq for stream, seq, _ in found if stream == name]
            assert seqs == sorted(seqs)
            assert len(seqs) == 3
        assert dead("list", url)[0] == "no dead letters\n"

    def test_a_stream_that_has_gone_on(self, url: str, redis_client: redis.Redis, topic: str) -> None:
        """Its chunk would be dropped as a duplicate, and the letter lost: it is kept, unless one insists."""
        bundle = zoo.bundle("sensor")
        with make_producer(url, bundle) as producer, Consumer("audio", "digits", url=url) as consumer:
            first = producer.push("s", zoo.signal(bundle.manifest.input, 64))
            with worker(url, bundle, publish="chunks"):
                until(lambda: bool(consumer.read(0.1)), "a result")
        mine = partition_of("s", 4)
        late = put(redis_client, "5-0", mine, seq=str(first))
        next_one = put(redis_client, "6-0", mine, seq=str(first + 1))
        nobody = put(redis_client, "7-0", mine, stream=b"\xff", seq="x")
        before = redis_client.xlen(log_key("audio", mine))
        out, err = dead("retry", url, late, next_one, nobody, code=1)
        assert out == "retried 2, kept 1\n"
        assert f"{late} is kept: its stream has gone on: the next chunk of 's' is {first + 1}" in err.replace("\n", " ")
        assert redis_client.xlen(log_key("audio", mine)) == before + 2
        (told,) = lines(dead("retry", url, "--all", "--json")[0])
        assert (told["letter"], told["retried_as"]) == (late, None)
        assert dead("retry", url, late, "--force")[0] == "retried 1, kept 0\n"
        assert dead("list", url)[0] == "no dead letters\n"

    def test_state_that_has_expired_holds_nothing_against_a_chunk(
        self, url: str, redis_client: redis.Redis, topic: str
    ) -> None:
        from pipeline.admission import Policy
        from pipeline.broker.dead import Brief

        bundle = zoo.bundle("sensor")
        with make_producer(url, bundle) as producer, Consumer("audio", "digits", url=url) as consumer:
            first = producer.push("s", zoo.signal(bundle.manifest.input, 64))
            ended = producer.push("t", zoo.signal(bundle.manifest.input, 64), end=True)
            with worker(url, bundle, publish="chunks"):
                seen: list[str] = []
                until(lambda: len(seen.extend(r.stream for r in consumer.read(0.1)) or seen) == 2, "two results")
        letters = [
            Brief(partition_of(name, 4), b"5-0", b"r", name.encode(), b"%d" % seq, 3, False)
            for name, seq in (("s", first), ("t", ended))
        ]

        def kept(**policy: int) -> list[str]:
            found = gone_on(redis_client, "audio", "digits", letters, Policy(**policy))  # type: ignore[arg-type]
            return [b.stream.decode() for b in letters if (b.partition, b.id) in found]

        assert kept() == ["s", "t"]
        assert kept(idle_ms=-1) == ["t"]
        assert kept(tombstone_ms=-1) == ["s"]

    def test_what_cannot_be_retried(self, url: str, redis_client: redis.Redis, topic: str) -> None:
        cut = put(redis_client, "5-0", cut="70 fields of 9 bytes")
        out, err = dead("retry", url, cut, "1:6-0", cut, code=1)
        assert out == "retried 0, kept 2\n"
        assert "too large to be kept whole" in err
        assert "1:6-0 is kept: it is not there" in err
        assert redis_client.exists(log_key("audio", 1)) == 0
        for i in range(30):
            put(redis_client, f"{i + 10}-0", cut="x")
        out, err = dead("retry", url, "--all")
        assert out == "retried 0, kept 31, of which the first are shown\n"
        assert err.count("is kept") == 10

    @pytest.mark.parametrize("command", ["retry", "drop"])
    def test_which_ones(self, url: str, topic: str, command: str) -> None:
        assert "got neither" in dead(command, url, code=2)[1]
        assert "got both" in dead(command, url, "1:5-0", "--all", code=2)[1]
        assert "choose among --all" in dead(command, url, "1:5-0", "--partition", 0, code=2)[1]


class TestDrop:
    def test_after_a_question(self, url: str, redis_client: redis.Redis, topic: str) -> None:
        letters = [put(redis_client, f"{i}-0", i % 2, reason="a" if i < 3 else "b") for i in range(1, 6)]
        count = lambda: len(lines(dead("list", url, "--json")[0]))  # noqa: E731
        _, err = dead("drop", url, "--all", stdin=b"n\n", code=1)
        assert "Remove 5 dead letters of group 'digits' on 'audio'? [y/N]" in err
        _, err = dead("drop", url, "--all", stdin=b"", code=2)
        assert "--yes does it without asking" in err
        assert count() == 5
        assert "removed 1 dead letter\n" in dead("drop", url, letters[4], stdin=b"y\n")[0]
        assert dead("drop", url, "--all", "--reason", "a", "--yes", "--json")[0] == '{"dropped":2,"missing":0}\n'
        assert [line["letter"] for line in lines(dead("list", url, "--json")[0])] == [letters[3], letters[2]]
        _, err = dead("drop", url, letters[3], letters[0], "--yes", code=1)
        assert "1 of 2 were not there" in err
        assert count() == 1
        assert redis_client.exists(log_key("audio", 1)) == 0

    def test_many(self, url: str, redis_client: redis.Redis, topic: str) -> None:
        with redis_client.pipeline(transaction=False) as pipe:
            for i in range(3000):
                pipe.xadd(Keys("audio", "digits", 2).dead, {"reason": "r"}, id=f"1-{i + 1}")
            pipe.execute()
        assert dead("drop", url, "--all", "-y")[0] == "removed 3,000 dead letters\n"


class TestGroup:
    def drop(self, url: str, *words: object, **how: object) -> tuple[str, str]:
        return statebelt("group", "drop", *words, "--url", url, **how)  # type: ignore[arg-type]

    def test_it_goes_after_a_question(self, url: str, redis_client: redis.Redis, topic: str) -> None:
        put(redis_client, "5-0")
        for p in range(4):
            for group in ("digits", "other"):
                acquire(redis_client, Keys("audio", group, p), "me", 60_000)
            redis_client.delete(Keys("audio", "digits", p).lease)
        redis_client.set(Keys("audio", "digits", 3).row("s"), b"x")
        redis_client.set("sb:{audio/1/0}:digits:row:s", b"another topic's")
        _, err = self.drop(url, "digits", stdin=b"n\n", code=1)
        asked = "Remove group 'digits' of topic 'audio': 0 results, the state of 1 stream, 1 dead letter, 0 chunks not"
        assert asked in err
        assert redis_client.exists(Keys("audio", "digits", 1).dead) == 1
        assert "removed group 'digits'" in self.drop(url, "digits", stdin=b"y\n")[0]
        left = {key for key in redis_client.keys("*:digits:*") if not key.endswith(b":epoch")}
        assert left == {b"sb:{audio/1/0}:digits:row:s"}
        _, err = self.drop(url, "digits", "--yes", code=2)
        assert "no group 'digits' on topic 'audio'; there are: other" in err

    def test_not_while_somebody_works(self, url: str, redis_client: redis.Redis, topic: str) -> None:
        for p in (1, 2):
            acquire(redis_client, Keys("audio", "digits", p), "host-7", 60_000)
        _, err = self.drop(url, "digits", "--yes", code=2)
        assert "group 'digits' is at work: host-7 on partitions 1, 2. Stop its workers first" in err.replace("\n", " ")
        assert redis_client.exists(Keys("audio", "digits", 1).lease) == 1


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"call-1", "call-1"),
        ("größe 通話".encode(), "größe 通話"),
        (b"\xff\x00\x1b[0m\x7f", "\\xff\\x00\\x1b[0m\\x7f"),
        ("a\u202eb\u200bc\u2028d\u009be", "a\\u202eb\\u200bc\\u2028d\\x9be"),
        ("\udcff", "\\udcff"),
        (b"x" * 300, "x" * 200 + "..."),
    ],
)
def test_printable(raw: bytes | str, shown: str) -> None:
    assert printable(raw) == shown


def test_hex_dump_and_durations() -> None:
    assert list(hex_dump(b"")) == []
    assert [line[:8] for line in hex_dump(bytes(40))] == ["00000000", "00000010", "00000020"]
    assert [duration(ms) for ms in (0, 9_940, 119_000, 7_199_000, 259_000_000, 864_000_000)] == [
        "0.0 s", "9.9 s", "119 s", "120 min", "72 h", "10 d",
    ]  # fmt: skip
