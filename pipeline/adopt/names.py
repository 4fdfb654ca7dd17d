"""Which output carries which input on: by their names, then by their shapes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.adopt.graph import Dim, Tensor

_BEFORE = r"^(next|new|out|output|updated|present|past|prev|previous|old|init|initial|in|input|cur|current)[_.]"
_AFTER = r"[_.](out|output|next|new|n|updated|in|input|prev|init|initial|t|t1|t_1|0)$"
_TIGHT = r"(?<=[a-zA-Z])(n|N|0|Out|In|Next|New)$"  # hn, stateN, h0


def stems(name: str) -> set[str]:
    """What is left of a tensor's name without what says whether it goes in or out; the name itself among them.

    >>> "cache_0" in stems("next_cache_0"), stems("hN") & stems("h0"), stems("stateN") & stems("state")
    (True, {'h'}, {'state'})
    """
    found = {name.lower()}
    todo = [name]
    while todo:
        given = todo.pop()
        shorter = [re.sub(_BEFORE, "", given, flags=re.I), re.sub(_AFTER, "", given, flags=re.I)]
        shorter += [re.sub(_TIGHT, "", given)]
        for short in shorter:
            if short and short.lower() not in found:
                found.add(short.lower())
                todo.append(short)
    return found


def fits(one: Tensor, other: Tensor) -> bool:
    """Whether an output may be an input of the next step: same type and rank, no length that contradicts."""
    return (
        one.dtype is not None
        and one.dtype == other.dtype
        and len(one.shape) == len(other.shape)
        and all(_alike(a, b) for a, b in zip(one.shape, other.shape, strict=True))
    )


def _alike(a: Dim, b: Dim) -> bool:
    return a == b or not (isinstance(a, int) and isinstance(b, int))


def _known(tensor: Tensor) -> int:
    return sum(isinstance(n, int) for n in tensor.shape)


def pairs(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> dict[str, tuple[str, str]]:
    """Of each state input its output, and how that is known (`by name` or `by shape`).

    By name where stems meet and shapes allow it, the longest common stem first. Then by shape: of the inputs left over
    (but for the first, which by custom is the signal) those that have a shape of their own, and one output with it.
    """
    choices = [
        (max(map(len, common)), i.name, o.name)
        for i in inputs
        for o in outputs
        if fits(i, o) and (common := stems(i.name) & stems(o.name))
    ]
    found: dict[str, tuple[str, str]] = {}
    taken: set[str] = set()
    for _, one, other in sorted(choices, key=lambda choice: -choice[0]):
        if one not in found and other not in taken:
            found[one] = (other, "by name")
            taken.add(other)
    left_in = [t for t in inputs if t.name not in found]
    left_out = [t for t in outputs if t.name not in taken]
    for i in left_in[1:]:
        mine = [o for o in left_out if fits(i, o) and _known(i) >= 2 and i.shape == o.shape]
        if len(mine) == 1 and [t.name for t in left_in if t.shape == i.shape] == [i.name]:
            found[i.name] = (mine[0].name, "by shape")
    return found
