"""Even shares: computed by each for itself, they add up, and nothing moves without need."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.share import shares

HELD = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(0, 20), min_size=1, max_size=8)


@given(HELD, st.integers(1, 64))
def test_shares_are_even_and_add_up(held: dict[str, int], partitions: int) -> None:
    found = shares(held, partitions)
    assert found.keys() == held.keys()
    assert sum(found.values()) == partitions
    assert max(found.values()) - min(found.values()) <= 1


@given(HELD, st.integers(1, 64))
def test_who_has_its_share_keeps_it(held: dict[str, int], partitions: int) -> None:
    settled = shares(held, partitions)
    assert shares(settled, partitions) == settled


@given(HELD, st.integers(1, 64))
def test_a_newcomer_moves_only_its_own_share(held: dict[str, int], partitions: int) -> None:
    settled = shares(held, partitions)
    after = shares({**settled, "newcomer": 0}, partitions)
    given_back = sum(max(0, settled[name] - after[name]) for name in settled)
    assert given_back == after["newcomer"]
    assert all(after[name] <= settled[name] for name in settled)


@given(HELD, st.integers(1, 64))
def test_who_leaves_is_replaced_without_other_moves(held: dict[str, int], partitions: int) -> None:
    settled = shares(held, partitions)
    if len(settled) == 1:
        return
    gone = min(settled)
    left = {name: count for name, count in settled.items() if name != gone}
    after = shares(left, partitions)
    assert all(after[name] >= left[name] for name in left)
