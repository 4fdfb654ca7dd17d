"""Which chunks a row takes, against a model in plain Python that keeps one stream as a dictionary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.admission import Policy, admit
from pipeline.belt import ENDED, LIVE, RowLayout
from pipeline.chunk import Chunk
from pipeline.component import Field

LAYOUT = RowLayout(b"0123456789abcdef", [Field("model.h", "float32", (2,), initial=0.5)])
EMPTY = b""


def expected(life: dict[str, int] | None, chunk: Chunk, policy: Policy) -> tuple[str, list[str]]:
    """('duplicate' | 'goes on' | 'afresh', kinds of notes)."""
    notes = []
    if life is not None:
        idle, limit = chunk.ms - life["last_ms"], policy.tombstone_ms if life["ended"] else policy.idle_ms
        if idle > limit:
            notes = [] if life["ended"] else ["expired"]
            life = None
    if life is None:
        return "afresh", notes
    if chunk.seq < life["next"]:
        return "duplicate", []
    if life["ended"]:
        return "afresh", []
    if chunk.seq == life["next"]:
        return "goes on", []
    return ("afresh" if policy.on_gap == "restart" else "goes on"), ["gap"]


@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 70), st.booleans()), max_size=30
    ),  # seq, ms since the last, end
    st.sampled_from(["restart", "continue"]),
)
def test_against_a_plain_model(pushed: list[tuple[int, int, bool]], on_gap: str) -> None:
    policy = Policy(idle_ms=50, tombstone_ms=20, on_gap=on_gap)  # type: ignore[arg-type]
    row = np.array([LAYOUT.blank])
    life: dict[str, int] | None = None
    now = 1_000
    for seq, later, end in pushed:
        now += later
        chunk = Chunk(b"%d-0" % now, now, "s", seq, EMPTY, end)
        verdict, notes = expected(life, chunk, policy)
        row["model.h"] = 9  # what the stream carried so far
        (taken,) = admit(row, [chunk], LAYOUT, policy)
        assert bool(taken) == (verdict != "duplicate")
        assert [note["kind"] for note in chunk.notes] == notes
        if taken:
            assert (row["model.h"] == (0.5 if verdict == "afresh" else 9)).all()
            life = {"next": seq + 1, "last_ms": now, "ended": end}
            assert int(row["status"][0]) == (ENDED if end else LIVE)
            assert int(row["next_seq"][0]) == seq + 1


def test_rows_are_judged_alone() -> None:
    """A batch of rows in every condition: each is judged as if it were the only one."""
    policy = Policy(idle_ms=50, tombstone_ms=20)
    conditions = [(0, 0, 0), (LIVE, 5, 1000), (LIVE, 5, 900), (ENDED, 5, 1000), (ENDED, 5, 900)]
    for seq in (4, 5, 6):
        rows = np.repeat(np.array([LAYOUT.blank]), len(conditions))
        for i, (status, next_seq, last_ms) in enumerate(conditions):
            rows[i]["status"], rows[i]["next_seq"], rows[i]["last_ms"] = status, next_seq, last_ms
        alone = rows.copy()
        chunks = [Chunk(b"1010-0", 1010, str(i), seq, EMPTY, False) for i in range(len(conditions))]
        taken = admit(rows, chunks, LAYOUT, policy)
        for i in range(len(conditions)):
            one = alone[i : i + 1]
            chunk = Chunk(b"1010-0", 1010, str(i), seq, EMPTY, False)
            assert admit(one, [chunk], LAYOUT, policy)[0] == taken[i]
            assert one.tobytes() == rows[i : i + 1].tobytes()
            assert chunk.notes == chunks[i].notes


@pytest.mark.parametrize("seq", [2**62, 1_800_000_000_000_000])
def test_large_seqs(seq: int) -> None:
    row = np.array([LAYOUT.blank])
    assert admit(row, [Chunk(b"1-0", 1, "s", seq, EMPTY, False)], LAYOUT, Policy())[0]
    assert not admit(row, [Chunk(b"2-0", 2, "s", seq, EMPTY, False)], LAYOUT, Policy())[0]
