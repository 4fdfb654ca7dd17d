"""`statebelt verify`: sound bundles are exact; each way of not being so is found by the check that is made for it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pipeline.batcher import Batcher
from pipeline.belt import Belt, RowLayout
from pipeline.bundle import Bundle, from_bytes
from pipeline.component import Array
from pipeline.errors import ConfigError, ManifestError
from pipeline.manifest import (
    SegmentsHead,
)
from pipeline.output import Output
from pipeline.verify import CHECKS, Check, conclusion, exactness, subject, verify
from pipeline.verify.verdict import rounded_up
from tests import zoo
from tests.unit.verify_models import DELAYED, FEATURES, SOUND, Node, constant, model, quantised

EXACT = "Exact: what a stream yields is, byte for byte, what the model yields on the whole signal at once."


def found(bundle: bytes | Bundle, **options: Any) -> dict[str, Check]:
    opened = from_bytes(bundle, "test") if isinstance(bundle, bytes) else bundle
    checks = {check.name: check for check in verify(opened, **{"streams": 12, "seconds": 1, **options})}
    assert list(checks) == list(CHECKS)
    return checks


def wrong(checks: dict[str, Check]) -> dict[str, str]:
    return {name: check.verdict for name, check in checks.items() if check.verdict != "exact"}


def advice(checks: dict[str, Check], tolerance: float = 0.0) -> str:
    return conclusion(list(checks.values()), tolerance)


CALM = {"anomaly8", "digits", "digits-crnn"}
"""Whose head has nothing to say of the signal that `verify` makes up: it learns what is usual from any noise, or takes
none of it for a word."""


class TestSound:
    @pytest.mark.parametrize("name", zoo.ZOO)
    def test_the_zoo_is_exact(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(subject, "FRAMES", 120)  # with 300, as users have it, it takes twice the time
        checks = found(zoo.bundle(name), seconds=None)
        assert wrong(checks) == {}
        assert all(check.ok and check.difference == 0 and check.where is None for check in checks.values())
        assert all(check.frames > 0 for check in checks.values())
        assert checks["repeat"].span > 0.05
        notes = {check: found.note for check, found in checks.items() if found.note}
        if name in CALM:
            assert list(notes) == ["repeat"]
            assert "no event came about" in notes["repeat"]
        else:
            assert notes == {}
        assert advice(checks) == EXACT

    def test_the_smallest_model(self) -> None:
        checks = found(model(SOUND))
        assert wrong(checks) == {}
        assert advice(checks) == EXACT

    def test_equal_arguments_give_equal_answers(self) -> None:
        bundle = quantised()
        assert found(bundle, seed=3) == found(bundle, seed=3) != found(bundle, seed=4)

    def test_what_streams_are_given_differs(self) -> None:
        checks = found(model(("Unsqueeze", ["given", "one"], "wider", {}), ("Mul", ["x", "wider"], "scores", {})))
        assert wrong(checks) == {}
        assert checks["repeat"].span > 0.1  # nobody having given anything, all would be zeros

    def test_of_a_recording(self) -> None:
        bundle = zoo.bundle("audio")
        checks = found(bundle, recording=zoo.signal(bundle.manifest.input, 30_000, 8), seconds=1)
        assert wrong(checks) == {}
        assert checks["repeat"].frames == 3 * (16_000 // 77 + bundle.manifest.model.tail_frames)

    def test_wrong_arguments(self) -> None:
        bundle = zoo.bundle("audio")
        for samples in (np.zeros((0, 1), np.int16), np.zeros(9), np.zeros((9, 2), np.int16)):
            with pytest.raises(ConfigError):
                verify(bundle, samples)
        with pytest.raises(ConfigError, match="at least 2"):
            verify(bundle, streams=1)


class TestInexact:
    def test_dynamic_quantisation(self) -> None:
        checks = found(quantised())
        assert set(wrong(checks)) == {"chunking", "batch", "causality", "end", "traffic"} - (
            {"end"} if checks["end"].ok else set()
        )
        assert set(wrong(checks).values()) == {"beyond tolerance"}
        for name in ("chunking", "batch", "causality", "traffic"):
            check = checks[name]
            assert 1e-4 < check.difference < 0.05 * check.span
            assert check.where is not None
            assert check.where.column in "abc"
            assert check.where.time_s == check.where.frame / 100
        said = advice(checks)
        assert "one_stream=true and one_block=true in the manifest makes it exact" in said
        assert "how a stream is cut and who shares its batch" in said
        suggested = float(said.split("--tolerance ")[1].split(" ")[0].rstrip("."))
        worst = max(check.difference for check in checks.values())
        assert 2 * worst <= suggested <= 3.1 * worst
        for again in (found(quantised(), tolerance=suggested), found(quantised(tolerance=suggested))):
            assert {again[name].verdict for name in wrong(checks)} == {"within tolerance"}
            assert all(check.ok for check in again.values())
            assert f"within the tolerance of {suggested:g}" in advice(again, suggested)
            assert "survive any crash" in advice(again, suggested)

    def test_its_remedies_are_remedies(self) -> None:
        alone = found(quantised(one_stream=True))
        assert alone["batch"].verdict == "exact"
        assert alone["chunking"].verdict == "beyond tolerance"
        assert advice(alone).count("one_block=true") == 1
        assert "one_stream" not in advice(alone)
        assert "with how a stream is cut;" in advice(alone)
        steps = found(quantised(one_block=True))
        assert steps["chunking"].verdict == steps["causality"].verdict == "exact"
        assert steps["batch"].verdict == "beyond tolerance"
        assert "one_stream=true in the manifest" in advice(steps)
        assert "with who shares its batch;" in advice(steps)
        assert wrong(found(quantised(one_stream=True, one_block=True))) == {}

    def test_the_place_is_that_of_the_largest_difference(self) -> None:
        """A model that adds 1 to its second score in the sixth frame of every call."""
        index = ("Unsqueeze", ["sixth", "two_axes"], "at", {})
        checks = found(
            model(
                ("Shape", ["x"], "shape", {}),
                ("Gather", ["shape", "one_"], "length", {"axis": 0}),
                ("Range", ["zero_", "length", "one_"], "frames", {}),
                ("Equal", ["frames", "five_"], "is_sixth", {}),
                ("Cast", ["is_sixth"], "sixth", {"to": zoo.FLOAT}),
                index,
                ("Mul", ["at", "second"], "more", {}),
                ("Sub", ["x", "before"], "change", {}),
                ("Add", ["change", "more"], "scores", {}),
                init=(
                    constant("zero_", 0, np.int64), constant("one_", 1, np.int64), constant("five_", 5, np.int64),
                    constant("two_axes", [0, 2], np.int64), constant("second", [0, 1, 0]),
                ),
            )
        )  # fmt: skip
        where = checks["chunking"].where
        assert where is not None
        assert (where.column, checks["chunking"].difference) == ("b", pytest.approx(1, abs=1e-6))
        assert checks["batch"].verdict == "exact"
        if where.what == "one chunk, 7 blocks a step":
            assert where.frame % 7 == 5
        assert "is every state declared" in advice(checks)
        assert "--tolerance" not in advice(checks)

    def test_a_model_that_hears_the_future(self) -> None:
        checks = found(model(("ReduceMax", ["x"], "top", {"axes": [1]}), ("Sub", ["top", "before"], "scores", {})))
        assert {"chunking", "causality", "traffic"} <= set(wrong(checks))
        assert checks["batch"].verdict == "exact"
        assert not checks["causality"].rounding
        assert "looks further ahead within a call than its latency says" in advice(checks)
        assert "--tolerance" not in advice(checks)

    def test_a_model_that_only_looks_a_frame_ahead(self) -> None:
        """x[t + 1] - x[t], zeros after the last: in the call's last frame it sees nothing, so only cuts betray it; the
        future beyond one frame changes nothing."""
        checks = found(
            model(
                ("Slice", ["x", "one", "end", "one"], "later", {}),
                ("Sub", ["last", "last"], "nothing", {}),
                ("Concat", ["later", "nothing"], "ahead", {"axis": 1}),
                ("Sub", ["ahead", "before"], "scores", {}),
            )
        )
        assert {"chunking", "causality"} <= set(wrong(checks))
        assert checks["causality"].where is not None
        assert "causality" in advice(checks)

    def test_states_that_change_places(self) -> None:
        checks = found(
            model(SOUND, ("Slice", ["last", "minus_one", "least", "zero", "minus_one"], "swapped", {}), after="swapped")
        )
        assert set(wrong(checks)) == {"batch", "traffic"}
        assert checks["batch"].where is not None
        assert "is each state's batch_axis right" in advice(checks)
        assert "one_stream=true in the manifest makes it exact" in advice(checks)

    def test_a_state_that_is_not_carried(self) -> None:
        checks = found(model(SOUND, ("Sub", ["last", "last"], "nothing", {}), after="nothing"))
        assert set(wrong(checks)) == {"chunking", "traffic"}
        assert "is every state declared, with its output" in advice(checks)

    def test_noise(self) -> None:
        checks = found(model(("RandomNormalLike", ["x"], "noise", {}), ("Add", ["x", "noise"], "scores", {})))
        assert "beyond tolerance" in wrong(checks)["repeat"]
        assert "a random operator" in advice(checks)

    def test_signs_of_zero_count(self) -> None:
        """-0.0 is another score than 0.0 to whoever compares bytes; any tolerance takes it."""
        bundle = model(
            ("Abs", ["before"], "size", {}),
            ("Greater", ["size", "limit"], "never", {}),
            ("Cast", ["never"], "nothing", {"to": zoo.FLOAT}),
            ("ReduceMax", ["x"], "top", {"axes": [0, 1]}),
            ("Sub", ["top", "x"], "below", {}),
            ("Neg", ["below"], "negative", {}),
            ("Ceil", ["negative"], "rounded", {}),
            ("Mul", ["nothing", "rounded"], "scores", {}),
            init=(constant("limit", 1e30),),
        )
        checks = found(bundle)
        assert checks["chunking"].verdict == "beyond tolerance"
        assert checks["chunking"].difference == 0
        assert found(bundle, tolerance=1e-9)["chunking"].verdict == "within tolerance"

    def test_events_that_differ_are_told(self) -> None:
        head = SegmentsHead(label="loud", threshold=0.02, negative_threshold=0.02)
        checks = found(quantised(head=head), seconds=3, tolerance=0.5)
        assert not checks["traffic"].events_same
        assert checks["traffic"].verdict == "within tolerance"
        assert "Events differ" in advice(checks, 0.5)
        assert checks["rows"].events_same


class TestRuntime:
    """Faults of the runtime, not of the model: a promise is checked, not assumed."""

    def test_rows_that_lose_a_state(self, monkeypatch: pytest.MonkeyPatch) -> None:
        parse = RowLayout.parse

        def forgetful(layout: RowLayout, stored: bytes) -> bytes:
            row = np.frombuffer(parse(layout, stored), layout.dtype).copy()
            row["model.past"] = 0
            return row.tobytes()

        monkeypatch.setattr(RowLayout, "parse", forgetful)
        checks = found(model(SOUND))
        assert set(wrong(checks)) == {"rows", "traffic"}
        assert "rows: no tolerance should hide these" in advice(checks)

    def test_a_row_that_keeps_its_last_tenant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        place = Belt.place

        def careless(belt: Belt, stream: str, partition: int, stored: bytes | None) -> None:
            before = belt.rows.copy()
            place(belt, stream, partition, stored)
            belt.rows[:] = before

        monkeypatch.setattr(Belt, "place", careless)
        assert set(wrong(found(model(SOUND)))) == {"fresh"}

    def test_an_empty_chunk_that_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run = Batcher.run

        def forgetful(batcher: Batcher, rows: Array, chunks: list[Array], ends: Array) -> list[Output]:
            rows["model.past"][[len(chunk) == 0 for chunk in chunks]] = 0
            return run(batcher, rows, chunks, ends)

        monkeypatch.setattr(Batcher, "run", forgetful)
        checks = found(model(SOUND))
        assert checks["empty"].verdict == "beyond tolerance"
        assert checks["batch"].verdict == checks["rows"].verdict == "exact"


class TestLatency:
    def test_too_small(self) -> None:
        """What no score answers to is the end of every stream."""
        checks = found(model(*DELAYED))
        assert wrong(checks) == {}
        assert "the last 1 frames of a signal change no score" in checks["end"].note
        assert checks["end"].note.endswith("Is it 1?")

    def test_right(self) -> None:
        checks = found(model(*DELAYED, latency=1))
        assert wrong(checks) == {}
        assert checks["end"].note == ""

    def test_a_tail_may_do_instead(self) -> None:
        assert found(model(*DELAYED, tail_frames=2))["end"].note == ""


class TestLittleProof:
    def test_scores_that_never_move(self) -> None:
        checks = found(model(("Sub", ["x", "x"], "scores", {})))
        assert wrong(checks) == {}
        assert checks["repeat"].span == 0
        assert advice(checks).startswith("No score moved on these signals, which proves little: give a recording")

    def test_no_events(self) -> None:
        head = SegmentsHead(threshold=0.999, negative_threshold=0.9)
        nothing = model(("Sub", ["x", "x"], "scores", {}), head=head)
        assert "no event came about" in found(nothing)["repeat"].note
        assert found(model(SOUND, head=head), seconds=3)["repeat"].note == ""


class TestFailed:
    def test_a_graph_of_one_frame_a_call(self) -> None:
        """That does not even open; what still takes two does."""
        single: list[Node] = [
            ("Reshape", ["x", "single"], "one_frame", {}),
            ("Sub", ["one_frame", "before"], "scores", {}),
        ]
        shape = (constant("single", [0, 1, FEATURES], np.int64),)
        with pytest.raises(ManifestError, match=r"does not run on 2 streams of 2 frames of 3 .* one_block"):
            found(model(*single, init=shape))
        assert wrong(found(model(*single, init=shape, one_block=True))) == {}
        nodes: list[Node] = [
            ("Slice", ["x", "zero", "two", "one"], "two_frames", {}),
            ("Sub", ["two_frames", "before"], "scores", {}),
        ]
        init = (constant("two", [2], np.int64),)
        checks = found(model(*nodes, init=init))
        assert wrong(checks)["chunking"] == "failed"
        assert "Sub" in checks["chunking"].note
        assert "one_block" in advice(checks)
        assert not checks["chunking"].ok
        assert wrong(found(model(*nodes, init=init, one_block=True))) == {}

    def test_frames_that_are_lost(self) -> None:
        """All but two of a call: one block yields one and two yield two, so that it opens."""
        checks = found(
            model(
                ("Sub", ["x", "before"], "change", {}),
                ("Slice", ["change", "zero", "two", "one"], "scores", {}),
                init=(constant("two", [2], np.int64),),
            )
        )
        assert checks["chunking"].difference == math.inf
        assert checks["chunking"].verdict == "beyond tolerance"
        assert not checks["chunking"].rounding
        assert checks["end"].verdict == "failed"
        assert "one vector of scores for every frame" in checks["end"].note

    def test_infinity(self) -> None:
        checks = found(
            model(("Div", ["x", "tiny"], "big", {}), ("Exp", ["big"], "scores", {}), init=(constant("tiny", 1e-3),))
        )
        assert set(wrong(checks).values()) == {"failed"}
        assert "a score is NaN or infinite" in checks["repeat"].note
        assert "NaN or infinite, soon after" in checks["batch"].note


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, 0.0), (1.1e-6, 2e-6), (0.0041, 0.005), (0.96, 1.0), (12.0, 20.0), (2.0, 2.0)]
)
def test_rounded_up(value: float, expected: float) -> None:
    assert rounded_up(value) == expected


def test_exactness_is_told_where_it_is_missing() -> None:
    assert exactness(zoo.bundle("audio").manifest) == ""
    told = exactness(from_bytes(quantised(tolerance=0.02), "test").manifest)
    assert "is not exact" in told
    assert "by up to 0.02" in told
