"""Lease, commit and takeover in any order, on a real server, against a model of some twenty lines.

Three workers read, commit, renew, die, sleep past their lease and wake; their packets arrive twice or late; logs are
trimmed, and the server fails over to a replica that lacks the latest. After every single act the whole server is what
the model says, and an act that was refused has not changed one byte of it.
"""

from __future__ import annotations

import hashlib

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from pipeline.broker import functions
from pipeline.broker.keys import Keys
from pipeline.errors import ConfigError

from .lease_machine import LeaseMachine
from .proxy import Proxy

SHORT = settings(
    max_examples=50,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_leases_commits_and_takeovers_in_any_order(client: redis.Redis, keys: Keys, proxy: Proxy) -> None:
    run_state_machine_as_test(lambda: LeaseMachine(client, keys, proxy), settings=SHORT)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # three to eight minutes each
def test_leases_commits_and_takeovers_for_long(client: redis.Redis, keys: Keys, proxy: Proxy) -> None:
    long = settings(SHORT, max_examples=1000, stateful_step_count=100)
    run_state_machine_as_test(lambda: LeaseMachine(client, keys, proxy), settings=long)


BROKEN: dict[str, tuple[str, str]] = {
    "a commit asks for no lease": (
        "if not holds(lease, owner, epoch) then return { 'FENCED', redis.call('GET', lease) or '' } end\n"
        "  local groups",
        "local groups",
    ),
    "a lease is its owner's whatever the epoch": (
        "return redis.call('GET', lease) == epoch .. ' ' .. owner end",
        "return string.match(redis.call('GET', lease) or '', ' (.*)$') == owner end",
    ),
    "an epoch does not grow": (
        "redis.call('INCR', epoch_key)",
        "(redis.call('SETNX', epoch_key, 1) and redis.call('GET', epoch_key))",
    ),
    "the offset is not compared": ("if offset ~= old then return", "if false then return"),
    "a commit twice is a conflict": ("if offset == new and old ~= new then", "if false then"),
    "a duplicate does not renew": (
        "    redis.call('PEXPIRE', lease, lease_ms)\n    return { 'DUP' }",
        "    return { 'DUP' }",
    ),
    "a renewal asks for no offset": ("if stands ~= offset then return", "if false then return"),
    "a lost tail is not noticed where counts agree": ("if there[1] and there[1][1] == new and", "if"),
    "a lost tail is not noticed": ("#redis.call('XRANGE', log, new, new) == 0", "false"),
    "rows before the checks": (
        "  if offset ~= old then return",
        "  for i = 5, #keys do redis.call('SET', keys[i], 'early') end\n  if offset ~= old then return",
    ),
    "anyone may release": (
        "  if not holds(keys[1], args[1], args[2]) then return { 'FENCED', redis.call('GET', keys[1]) or '' } end\n"
        "  redis.call('DEL'",
        "  redis.call('DEL'",
    ),
    "trimming forgets who has not read": ("if before(offset, keep) then keep = offset end", ""),
    "a commit does not count": ("'ENTRIESREAD', upto)", "'ENTRIESREAD', '0')"),
}


@pytest.mark.parametrize("server", ["embedded"], indirect=True)  # what is tried is the machine, not the server
@pytest.mark.parametrize("defect", BROKEN)
def test_the_machine_notices(
    client: redis.Redis, keys: Keys, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, defect: str
) -> None:
    """Each defect, put into the server's functions on purpose, is found."""
    header, version, text = functions.source().split("\n", 2)
    sound, broken = BROKEN[defect]
    assert sound in text, "the functions have changed: say anew how to break them"
    mutant = text.replace(sound, broken)
    digest = hashlib.sha256(mutant.encode()).hexdigest()[:10]
    source = f"#!lua name=statebelt_{digest}\nlocal VERSION = '{digest}'\n{mutant}"
    monkeypatch.setattr(functions, "source", lambda: source)
    monkeypatch.setattr(functions, "library", lambda: f"statebelt_{digest}")
    assert header != source.split("\n", 1)[0]
    assert version.startswith("local VERSION")
    functions.load(client)  # it compiles: what is found is what it does
    try:
        hunt = settings(SHORT, max_examples=200, phases=[Phase.generate], derandomize=True, print_blob=False)
        with pytest.raises((AssertionError, ConfigError)) as found:
            run_state_machine_as_test(lambda: LeaseMachine(client, keys, proxy), settings=hunt)
        assert found.type is AssertionError or "a commit that cannot be" in str(found.value)
    finally:
        client.function_delete(f"statebelt_{digest}")
