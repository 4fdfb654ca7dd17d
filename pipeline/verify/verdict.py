"""From what a check found to a verdict, and from all verdicts to what a user is to do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from pipeline.component import Array
from pipeline.manifest import Manifest
from pipeline.verify.checks import Case, Findings
from pipeline.verify.subject import Failure, Said

_NO_ROUNDING = 0.05  # of what the scores span; rounding stays below
_HEADROOM = 2.0  # signals that were not tried may differ by more than those that were

Verdict = Literal["exact", "within tolerance", "beyond tolerance", "failed"]


class Where(NamedTuple):
    """Where the largest difference is: what was done, the stream, its frame and when that begins, the score's label."""

    what: str
    stream: int
    frame: int
    time_s: float
    column: str


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        verdict: `exact` is to the last bit, of scores and of events. `failed`: it could not be run, see `note`.
        difference: the largest of any score; infinite where one run yielded more frames than the other.
        events_same: labels and times; where it is exact, scores too.
        frames: how many were compared. span: by how much scores moved in them, the most of any column.
        note: what else is to be said.
    """

    name: str
    verdict: Verdict
    difference: float
    where: Where | None
    events_same: bool
    frames: int
    span: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Exact, or within tolerance."""
        return self.verdict in ("exact", "within tolerance")

    @property
    def rounding(self) -> bool:
        """The difference is small beside what the scores span."""
        return self.difference <= _NO_ROUNDING * self.span


def judge(name: str, findings: Findings, manifest: Manifest, tolerance: float) -> Check:
    """Carry one check through."""
    largest, where, exact, events_same, frames, notes = 0.0, None, True, True, 0, []
    low = np.full(manifest.model.classes, np.inf)
    high = -low
    failed = False
    try:
        for case in findings:
            if isinstance(case, str):
                notes.append(case)
                continue
            scores = case.expected.scores
            if len(scores):
                low, high = np.minimum(low, scores.min(axis=0)), np.maximum(high, scores.max(axis=0))
            frames += len(scores)
            exact &= _bytes(case.expected) == _bytes(case.got)
            events_same &= _times(case.expected) == _times(case.got)
            for difference, frame, column in _differences(case, manifest):
                if difference > largest:
                    largest = difference
                    where = Where(case.what, case.stream, frame, frame / manifest.frame_rate_hz, column)
    except Exception as error:  # whatever a stranger's graph makes onnxruntime raise, the other checks go on
        failed = True
        reason = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
        notes.append(" ".join(reason.split())[:400])
    verdict: Verdict = "exact"
    if failed:
        verdict = "failed"
    elif not exact:
        # Events that differ while scores do not are no matter of rounding.
        within = 0 < largest <= tolerance or (largest == 0 and tolerance > 0 and events_same)
        verdict = "within tolerance" if within else "beyond tolerance"
    moved = high > low
    span = float((high - low)[moved].max(initial=0))
    return Check(name, verdict, largest, where, events_same, frames, span, "; ".join(notes))


def _bytes(said: Said) -> tuple[object, ...]:
    return (said.scores.shape, said.scores.tobytes(), said.samples.tobytes(), said.events)


def _times(said: Said) -> list[tuple[str, float, float]]:
    return [(event.label, event.start_s, event.end_s) for event in said.events]


def _differences(case: Case, manifest: Manifest) -> Iterator[tuple[float, int, str]]:
    """The largest of any score, and of any sample of audio: how large, in which frame, in which column."""
    expected, got = case.expected, case.got
    size, frame, column = _largest(expected.scores, got.scores)
    yield size, frame, manifest.labels[column] if manifest.labels else str(column)
    size, sample, _ = _largest(expected.samples[:, None], got.samples[:, None])
    yield size, sample // manifest.hop_samples, "audio"


def _largest(expected: Array, got: Array) -> tuple[float, int, int]:
    """The largest absolute difference of two `[n, m]`, and where; infinite where one is longer."""
    if len(expected) != len(got):
        return math.inf, min(len(expected), len(got)), 0
    if expected.size == 0:
        return 0.0, 0, 0
    difference = np.abs(expected.astype(np.float64) - got)
    at, column = np.unravel_index(int(difference.argmax()), difference.shape)
    return float(difference[at, column]), int(at), int(column)


def rounded_up(value: float) -> float:
    """To one digit, upwards.

    >>> rounded_up(3.2e-5), rounded_up(0.96), rounded_up(0.0)
    (4e-05, 1.0, 0.0)
    """
    if value <= 0:
        return 0.0
    exponent = math.floor(math.log10(value))
    return float(f"{math.ceil(value / 10.0**exponent)}e{exponent}")


def exactness(manifest: Manifest) -> str:
    """What is to be told before a bundle runs that its own manifest calls inexact; nothing of any other."""
    tolerance = manifest.model.tolerance
    if tolerance == 0:
        return ""
    return (
        f"this bundle is not exact: by its manifest, scores may differ by up to {tolerance:g} from the whole signal's, "
        "with how a stream is cut and who shares its batch; `statebelt verify` measures it"
    )


def conclusion(checks: Sequence[Check], tolerance: float) -> str:
    """What all checks together say, and what to do about it, in a few sentences."""
    said = []
    if checks and checks[0].span == 0 and checks[0].verdict != "failed":
        said.append(
            "No score moved on these signals, which proves little: give a recording (AUDIO) that the model answers to."
        )
    differing = [check for check in checks if check.verdict != "exact"]
    measured = max((check.difference for check in differing if check.difference < math.inf), default=0.0)
    if not differing:
        said.append("Exact: what a stream yields is, byte for byte, what the model yields on the whole signal at once.")
        return " ".join(said)
    if all(check.ok for check in checks):
        said.append(
            f"Not exact, but within the tolerance of {tolerance:g}: scores differ by up to {measured:.2g} with "
            f"{_on_what(differing)}. They survive any crash."
        )
        if not all(check.events_same for check in checks):
            said.append("Events differ where a score comes near a threshold.")
        return " ".join(said)
    return " ".join([*said, *_what_to_do({check.name: check for check in checks if not check.ok}, measured)])


def _on_what(differing: Sequence[Check]) -> str:
    """The causes, as far as the checks tell them apart."""
    names = {check.name for check in differing}
    causes = ["how a stream is cut"] if names & {"chunking", "causality", "end"} else []
    causes += ["who shares its batch"] if "batch" in names else []
    return " and ".join(causes or ["how a stream is cut", "who shares its batch"])


_GROSS = {
    "repeat": "The same call says another thing each time: is a random operator in the graph (dropout, noise)?",
    "chunking": "Cuts change more than rounding could: is every state declared, with its output; is the block right; "
    "does the model look over its whole call (a mean or a maximum over time, a layer that runs backwards)?",
    "batch": "Streams of one batch change each other by more than rounding could: is each state's batch_axis right; "
    "does the model reduce over the batch?",
    "causality": "What was said changes with the future by more than rounding could: the model looks further ahead "
    "within a call than its latency says.",
}


def _what_to_do(bad: dict[str, Check], measured: float) -> list[str]:
    said = []
    if failed := [name for name, check in bad.items() if check.verdict == "failed"]:
        said.append(
            f"Not carried through: {', '.join(failed)} (the reason stands there). If the graph takes no more than one "
            "stream or one block a call, say one_stream or one_block in the manifest."
        )
    differing = {name: check for name, check in bad.items() if check.verdict != "failed"}
    if not differing:
        return said
    said.append(f"Not exact, beyond tolerance in: {', '.join(differing)}.")
    gross = [name for name, check in differing.items() if not check.rounding]
    said += [_GROSS[name] for name in gross if name in _GROSS]
    if own := [name for name in ("rows", "fresh", "empty", "end") if name in differing]:
        said.append(f"{', '.join(own)}: no tolerance should hide these; please report them.")
    remedies = []
    if "batch" in differing:
        remedies.append("one_stream=true")
    if {"chunking", "causality", "end"} & set(differing):
        remedies.append("one_block=true")
    if remedies:
        each = {"one_stream=true": "one stream", "one_block=true": "one block"}
        said.append(
            f"{' and '.join(remedies)} in the manifest makes it exact, if slower: a call takes "
            f"{' of '.join(each[remedy] for remedy in reversed(remedies))}."
        )
    if not gross:
        said.append(
            f"Or state what was measured, {measured:.2g}, with room to spare: re-adopt with --tolerance "
            f"{rounded_up(_HEADROOM * measured) or 1e-9:g}. Scores then differ by that little with "
            f"{_on_what(list(differing.values()))}; they survive any crash all the same."
        )
    return said
