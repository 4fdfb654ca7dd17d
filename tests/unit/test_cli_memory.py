"""What a worker asks of its memory: what a batch frees is there for the next, which is searched for no cycles."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from pipeline.cli.memory import keep_freed

told = keep_freed() if sys.argv[1] == "keep" else False
def batch():
    arrays = [np.ones(300_000, np.float32) for _ in range(4)]
batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    batch()
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> tuple[bool, int]:
    """Whether malloc could be told, and how many pages 50 batches of 4.8 MB fault in."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    told, count = done.stdout.split()
    return told == "True", int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_batch_finds_the_memory_of_the_one_before() -> None:
    assert faults("as it is")[1] > 10_000
    told, count = faults("keep")
    assert told
    assert count < 1_500  # one batch's pages, once


COLLECTIONS = """
import gc, sys
from pipeline.cli.memory import collect_seldom

if sys.argv[1] == "seldom":
    collect_seldom()
def collections():
    return sum(generation["collections"] for generation in gc.get_stats())
before = collections()
batch = [{n: []} for n in range(10_000)]
in_a_batch, before = collections() - before, collections()
for _ in range(60_000):
    cycle = []
    cycle.append(cycle)
print(in_a_batch, collections() - before)
"""


def collections(how: str) -> tuple[int, int]:
    """How often cycles are looked for: in a batch of 20,000 containers, and while 60,000 cycles are made."""
    done = subprocess.run([sys.executable, "-c", COLLECTIONS, how], capture_output=True, text=True, check=True)
    in_a_batch, after = done.stdout.split()
    return int(in_a_batch), int(after)


def test_cycles_are_looked_for_seldom_but_they_are() -> None:
    assert collections("as it is")[0] > 10
    in_a_batch, after = collections("seldom")
    assert in_a_batch == 0
    assert after > 0
