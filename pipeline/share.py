"""How many partitions are whose: an even share, computed by each worker for itself from the same register.

Nobody decides for another. Who holds more than its share gives back, who holds less takes what is free; the shares add
up to all partitions, so it ends when everyone has its own. Who holds most is given what does not divide evenly, so
that no partition moves without need.

>>> shares({"a": 4, "b": 0}, partitions=4)
{'a': 2, 'b': 2}
>>> shares({"a": 2, "b": 3, "c": 0}, partitions=5)
{'b': 2, 'a': 2, 'c': 1}
"""

from __future__ import annotations

from collections.abc import Mapping


def shares(held: Mapping[str, int], partitions: int) -> dict[str, int]:
    """The share of every owner, who holds so many now; a difference of one at most, the sum is `partitions`."""
    order = sorted(held, key=lambda owner: (-held[owner], owner))
    each, rest = divmod(partitions, len(order))
    return {owner: each + (rank < rest) for rank, owner in enumerate(order)}
