"""The batcher: chunks of many streams through frontend, model and head, a block of rows at a time.

Chunks have any length, the model wants whole blocks, and a batch must be rectangular. So every stream's
samples (what was left over, then the chunk) are cut into blocks, and rounds of equal length are run over
the streams that still have some. Since step equals forward for any cut, this changes no byte of a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.belt import RowLayout
from pipeline.bundle import Bundle, as_float
from pipeline.component import Array, Component, Field, State
from pipeline.head import Events, Forecast


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that was recognised: `label` from `start_s` to `end_s` of its stream, `score` in 0..1."""

    label: str
    start_s: float
    end_s: float
    score: float


@dataclass(slots=True)
class Output:
    """What one chunk brought about.

    events: in the order in which they were completed. scores: `[T, C]` float32 if they were asked for.
    samples: `[n]` float32, the audio of a head that yields some: as many in all as the stream has.
    broken: the state became non-finite, so the row was reset and the rest of the chunk skipped.
    """

    events: list[Event]
    scores: list[Array]
    samples: list[Array]
    broken: bool = False


class Batcher:
    """Runs a bundle over gathered rows. Does no I/O and reads no clock.

    Args:
        bundle: what to run.
        max_batch: streams in one model step; about where the LSTM reaches the core's peak.
        max_blocks: blocks in one model step, which bounds memory; None runs a chunk in one step, however long.
        keep_scores: also return every frame's scores, whatever the head publishes.
    """

    def __init__(
        self, bundle: Bundle, *, max_batch: int = 64, max_blocks: int | None = 64, keep_scores: bool = False
    ) -> None:
        self._bundle = bundle
        manifest = bundle.manifest
        self._max_batch = max_batch
        self._max_blocks = max_blocks
        self._keep_all, self._keep_scores = keep_scores, keep_scores or bundle.head.publishes_scores
        self._block_samples = bundle.frontend.block * bundle.model.block
        self._rate_hz = manifest.input.sample_rate_hz
        self._labels = bundle.head.labels
        self._names = {
            part: [(f.name, f"{part}.{f.name}") for f in component.fields] for part, component in self._components()
        }
        fields = [Field("rest", "float32", (self._block_samples - 1, manifest.input.channels))]
        for part, component in self._components():
            fields += [Field(f"{part}.{f.name}", f.dtype, f.shape, f.initial) for f in component.fields]
        self.layout = RowLayout(bundle.fingerprint, fields, [f"model.{f.name}" for f in bundle.model.given])

    def _components(self) -> list[tuple[str, Component[Array] | Component[Events]]]:
        return [("frontend", self._bundle.frontend), ("model", self._bundle.model), ("head", self._bundle.head)]

    def give(self, row: Array, values: Array) -> None:
        """Put what a producer gave a stream (float32 `[n]`, all of the manifest's `given`) into its row."""
        for name, value in self._bundle.model.split_given(values).items():
            row[f"model.{name}"] = value

    def lacks(self, row: Array) -> bool:
        """Whether a stream is about to begin without what its bundle is given: it then runs with the initial values."""
        names = self.layout.kept
        if not names or row["samples"] > 0:
            return False
        return all(row[name].tobytes() == self.layout.blank[name].tobytes() for name in names)

    def run(self, rows: Array, chunks: Sequence[Array], ends: Array) -> list[Output]:
        """Advance `rows` by one chunk each.

        Args:
            rows: gathered rows `[B]` of `layout.dtype`; changed here, so the caller scatters them back.
            chunks: B arrays `[n_i, channels]` of the manifest's sample type, all finite.
            ends: bool `[B]`: the chunk is its stream's last; what is pending is flushed.
        """
        outputs = [Output([], [], []) for _ in chunks]
        if not outputs:
            return outputs
        signal, start, blocks = self._lay_out(rows, chunks, ends)
        done = np.zeros(len(rows), np.int64)
        while len(active := np.flatnonzero(done < blocks)):
            left = (blocks - done)[active]
            length = int(left.min())
            if self._max_blocks is not None:
                length = min(length, self._max_blocks)
            for cut in range(0, len(active), self._max_batch):
                group = active[cut : cut + self._max_batch]
                at = start[group] + done[group] * self._block_samples
                x = signal[at[:, None] + np.arange(length * self._block_samples)]
                broken = self._step(rows, group, x, outputs)
                done[group] += length
                done[broken] = blocks[broken]
        ended = np.flatnonzero(ends & np.array([not output.broken for output in outputs]))
        for cut in range(0, len(ended), self._max_batch):
            self._finish(rows, ended[cut : cut + self._max_batch], outputs)
        return outputs

    def _lay_out(self, rows: Array, chunks: Sequence[Array], ends: Array) -> tuple[Array, Array, Array]:
        """All samples end to end `[sum, channels]`, each stream's start, its whole blocks; rows get the rest."""
        size = self._block_samples
        rest = rows["rest_samples"]
        fresh_samples = np.array([len(chunk) for chunk in chunks], np.int64)
        have = rest + fresh_samples
        # The end of a signal is padded with zeros to a whole block, as its beginning is by the frontend.
        blocks = np.where(ends, -(-(have + self._bundle.head.tail_samples) // size), have // size)
        room = np.maximum(have, blocks * size)
        start = np.cumsum(room) - room
        signal = np.zeros((int(room.sum()), rows["rest"].shape[2]), np.float32)
        for i, chunk in enumerate(chunks):
            at = int(start[i])
            signal[at : at + rest[i]] = rows["rest"][i, : rest[i]]
            signal[at + rest[i] : at + have[i]] = as_float(chunk)
        rows["samples"] += fresh_samples
        left = np.where(ends, 0, have - blocks * size)
        for i in np.flatnonzero((left > 0) | (rest > 0)).tolist():
            at = int(start[i] + blocks[i] * size)
            rows["rest"][i] = 0
            rows["rest"][i, : left[i]] = signal[at : at + left[i]]
        rows["rest_samples"] = left
        return signal, start, blocks

    def _state(self, rows: Array, group: Array, part: str) -> State:
        return {name: rows[column][group] for name, column in self._names[part]}

    def _keep(self, rows: Array, group: Array, part: str, state: State) -> None:
        for name, column in self._names[part]:
            rows[column][group] = state[name]

    def _step(self, rows: Array, group: Array, x: Array, outputs: list[Output]) -> Array:
        """Run the streams `group` on `x` `[G, k * block_samples, channels]`; return those whose state broke."""
        frames, state = self._bundle.frontend.step(x, self._state(rows, group, "frontend"))
        self._keep(rows, group, "frontend", state)
        scores, state = self._bundle.model.step(frames, self._state(rows, group, "model"))
        self._keep(rows, group, "model", state)
        sound = np.asarray(np.isfinite(scores).all(axis=(1, 2)))
        for array in state.values():
            sound &= np.isfinite(array).reshape(len(group), -1).all(axis=1)
        warm_up = np.clip(self._bundle.model.latency - rows["frames"][group], 0, scores.shape[1])
        rows["frames"][group] += frames.shape[1]
        # A model with latency has nothing to say of a stream's first steps; streams differ in how far they are.
        for skip in np.unique(warm_up):
            chosen = np.flatnonzero((warm_up == skip) & sound)
            sound[chosen] = self._decide(rows, group[chosen], scores[chosen, skip:], outputs)
        broken: Array = group[~sound]
        self._break(rows, broken, outputs)
        return broken

    def _break(self, rows: Array, broken: Array, outputs: list[Output]) -> None:
        """Rows whose state is not finite start afresh; who they are and where they stand in their log stays."""
        for i in broken.tolist():
            outputs[i].broken = True
            kept = {name: rows[name][i].copy() for name in ("status", "next_seq", "last_ms", *self.layout.kept)}
            rows[i] = self.layout.blank
            for name, value in kept.items():
                rows[name][i] = value

    def _decide(self, rows: Array, group: Array, scores: Array, outputs: list[Output]) -> Array:
        """Scores through the head. Returns bool `[G]`: false where the sums of finite scores are not finite."""
        sound = np.ones(len(group), bool)
        if len(group) == 0 or scores.shape[1] == 0:
            return sound
        before = self._state(rows, group, "head")
        made, state = self._bundle.head.step(scores, before)
        self._keep(rows, group, "head", state)
        if isinstance(made, Events):
            self._publish(rows, group, made, outputs)
        else:
            for array in (made, *state.values()):
                sound &= np.isfinite(array).reshape(len(group), -1).all(axis=1)
            self._play(rows, group[sound], made[sound], before["at"][sound], outputs)
        if self._keep_scores:
            head = None if self._keep_all else self._bundle.head
            for g in np.flatnonzero(sound).tolist():
                kept = head.published(scores[g], int(before["frames"][g])) if isinstance(head, Forecast) else scores[g]
                if len(kept):
                    outputs[int(group[g])].scores.append(kept)
        return sound

    def _finish(self, rows: Array, group: Array, outputs: list[Output]) -> None:
        """Flush in order: what the model still owes goes through the head, then the head gives what it holds."""
        tail = self._bundle.model.flush(self._state(rows, group, "model"))
        sound = np.isfinite(tail).all(axis=(1, 2))
        self._break(rows, group[~sound], outputs)
        group, tail = group[sound], tail[sound]
        late = np.clip(self._bundle.model.latency - rows["frames"][group], 0, tail.shape[1])
        sound = np.ones(len(group), bool)
        for skip in np.unique(late):
            chosen = np.flatnonzero(late == skip)
            sound[chosen] = self._decide(rows, group[chosen], tail[chosen, skip:], outputs)
        self._break(rows, group[~sound], outputs)
        group = group[sound]
        state = self._state(rows, group, "head")
        made = self._bundle.head.flush(state)
        if isinstance(made, Events):
            self._publish(rows, group, made, outputs)
        else:
            self._play(rows, group, made, state["at"], outputs)

    def _play(self, rows: Array, group: Array, made: Array, at: Array, outputs: list[Output]) -> None:
        """Audio `[G, n]`, the first sample of which is the stream's sample `at` `[G]`: what lies before the stream's
        beginning, or is made of the padding and the silence behind its last sample, is no part of it."""
        first, stop = np.maximum(0, -at), np.clip(rows["samples"][group] - at, 0, made.shape[1])
        for i, samples, a, b in zip(group.tolist(), made, first.tolist(), stop.tolist(), strict=True):
            if a < b:
                outputs[i].samples.append(samples[a:b])

    def _publish(self, rows: Array, group: Array, events: Events, outputs: list[Output]) -> None:
        for b, label, start, end, score in zip(*(column.tolist() for column in events), strict=True):
            i = int(group[b])
            # Frames of padding and silence may follow the last sample, and ends are padded: none lies after its signal.
            last = int(rows["samples"][i])
            outputs[i].events.append(
                Event(
                    label=self._labels[label],
                    start_s=min(start, last) / self._rate_hz,
                    end_s=min(end, last) / self._rate_hz,
                    score=round(score, 6),
                )
            )
