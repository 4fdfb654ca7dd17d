"""Broken on purpose: the verifier finds each, and finds nothing where the same is done to the product as it is."""

from __future__ import annotations

import signal
from importlib.resources import files

import pytest

from tests.chaos.verifier import Verdict
from tests.harness import until
from tests.recovery import mutations
from tests.recovery.child import Change, Point
from tests.recovery.conftest import Stage
from tests.recovery.mutations import Lua, Separately, ShortRows
from tests.recovery.scene import Piece, Scene, pair, some_streams

COMMIT, COMMITTED = "pipeline.broker.partition:Sending.__init__", "pipeline.broker.partition:Sending.outcomes"


def take_over(scene: Stage, *changes: Change) -> Verdict:
    """A worker is killed between two commits; another goes on."""
    play = scene(some_streams())
    pieces = play.pieces()
    half = len(pieces) // 2
    play.push(pieces[:half])
    first = play.worker(*changes)
    play.drained()
    first.kill()
    play.push(pieces[half:])
    play.worker(*changes)
    play.drained(patience_s=5)
    return play.verdict()


def killed_in_the_commit(scene: Stage, *changes: Change) -> Verdict:
    """A worker is killed in its second commit; another, which is not, goes on."""
    play = scene(some_streams())
    play.push(play.pieces())
    deaths = changes or (Point(COMMITTED, "after", 2),)
    assert play.worker(*deaths).died() == -signal.SIGKILL, play.told()
    play.worker(*(unharmed(change) for change in changes))
    play.drained(patience_s=5)
    return play.verdict()


def unharmed(change: Change) -> Change:
    if isinstance(change, Separately):
        return Separately(change.order, None, chunk_ids=change.chunk_ids)
    return change


def everything_twice(scene: Stage, *changes: Change) -> Verdict:
    """Every chunk comes again."""
    play = scene(some_streams())
    play.push([piece for piece in play.pieces() for _ in range(2)])
    play.worker(*changes)
    play.drained(patience_s=5)
    return play.verdict()


def the_end_again(scene: Stage, *changes: Change) -> Verdict:
    """The last chunk of an ended stream is sent again, to another worker."""
    play = scene(pair())
    play.push(play.pieces())
    first = play.worker(*changes)
    play.drained()
    first.kill()
    play.push([Piece(stream, len(each.seqs) - 1) for stream, each in enumerate(play.sent)])
    play.worker(*changes)
    play.drained(patience_s=5)
    return play.verdict()


def frozen(scene: Stage, changes: tuple[Change, ...], *points: Point) -> Scene:
    """A worker stops before the commit of a chunk that has nothing to say; another takes over, and is one ahead."""
    play = scene(pair(), partitions=1)
    first = play.worker(*changes, *points, publish="events")
    play.push([Piece(0, 0)])
    assert play.drained(), play.told()
    play.push([Piece(0, 1)])
    first.wait_stopped()
    play.worker(*changes, publish="events")
    play.push([Piece(0, 2)])
    assert play.drained(), play.told()
    return play


def zombie(scene: Stage, *changes: Change) -> Verdict:
    """Woken, the first sends its commit, and dies. The second goes on, and dies; a third one sees what is there."""
    play = frozen(scene, changes, Point(COMMIT, "before", 2, signal.SIGSTOP), Point(COMMITTED, "after", 2))
    first, second = play.children
    first.send(signal.SIGCONT)
    assert first.died() == -signal.SIGKILL, play.told()
    play.push([Piece(1, 0)])
    play.drained(patience_s=5)
    second.kill()
    finish(play, changes)
    return play.verdict(every_chunk=False)


def fenced_and_back(scene: Stage, *changes: Change) -> Verdict:
    """Woken, the first is fenced; when the second dies, the first has the partition again."""
    play = frozen(scene, changes, Point(COMMIT, "before", 2, signal.SIGSTOP))
    first, second = play.children
    first.send(signal.SIGCONT)
    until(lambda: "partition_dropped" in first.log.read_text(), "the fence")
    second.kill()
    play.push([Piece(1, 0)])
    play.drained(patience_s=5)
    play.push([Piece(0, 3), Piece(0, 4), *(Piece(1, chunk) for chunk in range(1, 5))])
    play.drained(patience_s=5)
    return play.verdict(every_chunk=False)


def finish(play: Scene, changes: tuple[Change, ...]) -> None:
    play.push([Piece(0, 3), Piece(0, 4), *(Piece(1, chunk) for chunk in range(1, 5))])
    play.worker(*changes, publish="events")
    play.drained(patience_s=5)


def a_slow_group(scene: Stage, *changes: Change) -> Verdict:
    """One group has read everything and trims, while the other still has all of it before it."""
    play = scene(some_streams())
    pieces = play.pieces()
    play.push(pieces[:20])
    slow = play.worker()
    play.drained()
    slow.kill()
    play.push(pieces[20:])
    play.worker(*changes, group="words", input_retention_ms=1, trim_every_ms=50)
    assert play.drained("words"), play.told()

    def trims() -> int:
        return int(play.client.info("commandstats")["cmdstat_xtrim"]["calls"])

    before = trims()
    until(lambda: trims() >= before + 2 * play.partitions, "the logs to be trimmed, all of them read")
    play.worker(*changes)
    play.drained(patience_s=5)
    return play.verdict()


CASES = {
    # what is broken: (how, what is done, one of the faults that must be found)
    "a commit without a fence": (mutations.NO_FENCE, zombie, "unexplained"),
    "rows, then results, then the offset": (
        Separately(("rows", "results", "offset"), "rows"),
        killed_in_the_commit,
        "lost",
    ),
    "the offset before the results": (
        Separately(("offset", "results", "rows"), "offset"),
        killed_in_the_commit,
        "lost",
    ),
    "results under ids of their own, then rows": (
        Separately(("results", "rows", "offset"), "results", chunk_ids=False),
        killed_in_the_commit,
        "doubled",
    ),
    "no look at seq": (mutations.take_duplicates, everything_twice, "doubled"),
    "rows are not restored": (mutations.blank_rows, take_over, "different"),
    "rows with a wrong TTL": (ShortRows(tombstones_only=False), take_over, "different"),
    "ended streams leave no tombstone": (ShortRows(tombstones_only=True), the_end_again, "doubled"),
    "a fenced worker keeps its rows": (mutations.rows_outlive_the_lease, fenced_and_back, "unexplained"),
    "trimming waits for no other group": (mutations.TRIM_REGARDLESS, a_slow_group, "lost"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_verifier_finds(scene: Stage, name: str) -> None:
    change, play, fault = CASES[name]
    verdict = play(scene, change)
    assert fault in verdict.faults, verdict


@pytest.mark.parametrize("play", dict.fromkeys(play for _, play, _ in CASES.values()), ids=lambda play: play.__name__)
def test_the_product_as_it_is(scene: Stage, play: object) -> None:
    verdict = play(scene)  # type: ignore[operator]
    assert verdict.silent, verdict


@pytest.mark.parametrize("change", [mutations.NO_LEASE_CHECK, mutations.NO_OFFSET_CHECK], ids=["lease", "offset"])
def test_the_fence_is_double(scene: Stage, change: Lua) -> None:
    """The lease's epoch or the offset alone keeps a zombie out: one of them broken is no harm yet."""
    verdict = zombie(scene, change)
    assert verdict.silent, verdict


def test_the_lines_that_are_replaced_are_there() -> None:
    text = files("pipeline.broker").joinpath("statebelt.lua").read_text()
    for change, _, _ in CASES.values():
        if isinstance(change, Lua):
            assert change.text(text) != text
