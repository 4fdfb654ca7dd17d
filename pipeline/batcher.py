"""The batcher: chunks of many streams through frontend, model and head, a block of rows at a time.

Chunks have any length, the model wants whole blocks, and a batch must be rectangular. So every stream's
samples (what was left over, then the chunk) are cut into blocks, and rounds of equal length are run over
the streams that still have some. Since step equals forward for any cut, this changes no byte of a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np

from pipeline.belt import RowLayout
from pipeline.bundle import Bundle
from pipeline.component import Array, Component, Field, State
from pipeline.head import Events, Forecast
from pipeline.output import Event, Output

T = TypeVar("T")

_TOGETHER = 4
"""Steps of the model in a row, for one of all else: what follows such a step finds nothing of itself in the core's
caches, and is slow to begin."""


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
        self.rate_hz = manifest.input.sample_rate_hz  # by which times are told; a topic's own, for bundles of any rate
        self._labels = bundle.head.labels
        self._names = {
            part: [(f.name, f"{part}.{f.name}") for f in component.fields] for part, component in self._components()
        }
        # Samples stay as they came: int16 is half of what floats would weigh in the log of every commit.
        sample_type = manifest.input.sample_type
        fields = [Field("rest", sample_type, (self._block_samples - 1, manifest.input.channels))]
        for part, component in self._components():
            for f in component.fields:
                dtype = sample_type if f.signal else f.dtype
                fields.append(Field(f"{part}.{f.name}", dtype, f.shape, f.initial))
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
        if not chunks:
            return []
        return self.run_joined(rows, np.concatenate(chunks), np.fromiter(map(len, chunks), np.int64), ends)

    def run_joined(self, rows: Array, fresh: Array, sizes: Array, ends: Array) -> list[Output]:
        """`run` of chunks that lie end to end in `fresh` `[sum, channels]`, of `sizes` int64 `[B]`."""
        outputs = [Output() for _ in range(len(rows))]
        signal, at, left = self._lay_out(rows, fresh, sizes, ends)
        while len(active := np.flatnonzero(left)):
            length = int(left[active].min())
            if self._max_blocks is not None:
                length = min(length, self._max_blocks)
            for some in _shares(len(active), self._max_batch * self._steps_together(length)):
                group = active[some]
                x = _excerpts(signal, at[group], length * self._block_samples)
                broken = self._step(rows, group, x, outputs)
                at[group] += length * self._block_samples
                left[group] -= length
                if len(broken):
                    left[broken] = 0
        if ends.any():
            ended = np.flatnonzero(ends & np.array([not output.broken for output in outputs]))
            for cut in range(0, len(ended), self._max_batch):
                self._finish(rows, ended[cut : cut + self._max_batch], outputs)
        return outputs

    def _steps_together(self, blocks: int) -> int:
        """Of so many blocks a stream, how many steps of the model are prepared and judged together: no more frames in
        all than `max_blocks` bounds for one."""
        return max(1, min(_TOGETHER, (self._max_blocks or 0) // blocks))

    def _lay_out(self, rows: Array, fresh: Array, sizes: Array, ends: Array) -> tuple[Array, Array, Array]:
        """All samples end to end `[sum, channels]`, as they came: int16 stays that until a step takes it; each stream's
        start, its whole blocks. Rows get the rest."""
        size = self._block_samples
        rest = rows["rest_samples"]
        rows["samples"] += sizes
        if not (rest.any() or ends.any() or (sizes % size).any()):
            return fresh, np.cumsum(sizes) - sizes, sizes // size  # whole blocks throughout
        have = rest + sizes
        # The end of a signal is padded with zeros to a whole block, as its beginning is by the frontend.
        blocks = np.where(ends, -(-(have + self._bundle.head.tail_samples) // size), have // size)
        room = np.maximum(have, blocks * size)
        start, stop = np.cumsum(room) - room, np.cumsum(sizes)
        left = np.where(ends, 0, have - blocks * size)
        carried, padding = rows["rest"], room - have
        silence = np.zeros((int(padding.max()), fresh.shape[1]), fresh.dtype)
        parts = []
        each = zip(rest.tolist(), sizes.tolist(), stop.tolist(), padding.tolist(), strict=True)
        for i, (n, count, end, pad) in enumerate(each):
            parts += [carried[i, :n], fresh[end - count : end], silence[:pad]]
        signal = np.concatenate(parts)
        for i in np.flatnonzero((left > 0) | (rest > 0)).tolist():
            at = int(start[i] + blocks[i] * size)
            carried[i] = 0
            carried[i, : left[i]] = signal[at : at + left[i]]
        rows["rest_samples"] = left
        return signal, start, blocks

    def _state(self, rows: Array, group: Array, part: str) -> State:
        where = _span(group)
        return {name: rows[column][where] for name, column in self._names[part]}

    def _keep(self, rows: Array, group: Array, part: str, state: State) -> None:
        where = _span(group)
        for name, column in self._names[part]:
            rows[column][where] = state[name]

    def _step(self, rows: Array, group: Array, x: Array, outputs: list[Output]) -> Array:
        """Run the streams `group` on `x` `[G, k * block_samples, channels]`; return those whose state broke."""
        frames, state = self._bundle.frontend.step(x, self._state(rows, group, "frontend"))
        self._keep(rows, group, "frontend", state)
        scores = self._score(rows, group, frames)
        sound = _finite([scores, *self._state(rows, group, "model").values()])
        count, where = rows["frames"], _span(group)
        count[where] += frames.shape[1]
        if self._bundle.model.latency == 0:
            sound = self._decide_sound(rows, group, scores, sound, outputs)
        else:  # it has nothing to say of a stream's first steps; streams differ in how far they are
            before = count[where] - frames.shape[1]
            warm_up = np.clip(self._bundle.model.latency - before, 0, scores.shape[1])
            for skip in set(warm_up.tolist()):
                chosen = np.flatnonzero(warm_up == skip)
                sound[chosen] = self._decide_sound(rows, group[chosen], scores[chosen, skip:], sound[chosen], outputs)
        broken: Array = group[~sound]
        if len(broken):
            self._break(rows, broken, outputs)
        return broken

    def _score(self, rows: Array, group: Array, frames: Array) -> Array:
        """`frames` `[G, T, F]` through the model, to scores `[G, T, C]`; `max_batch` streams in one step."""
        before, scores = self._state(rows, group, "model"), []
        for now in _shares(len(group), self._max_batch):
            made, after = self._bundle.model.step(frames[now], {name: array[now] for name, array in before.items()})
            self._keep(rows, group[now], "model", after)
            scores.append(made)
        return scores[0] if len(scores) == 1 else np.concatenate(scores)

    def _decide_sound(self, rows: Array, group: Array, scores: Array, sound: Array, outputs: list[Output]) -> Array:
        """`_decide` over those of the group that are sound. Returns which still are."""
        if sound.all():
            return self._decide(rows, group, scores, outputs)
        sound = sound.copy()
        chosen = np.flatnonzero(sound)
        sound[chosen] = self._decide(rows, group[chosen], scores[chosen], outputs)
        return sound

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
        head, state = self._bundle.head, self._state(rows, group, "head")
        # Copies: the state's arrays may be views of the rows that are about to be written.
        before = {name: state[name].copy() for name in ("at", "frames") if name in state}
        made, state = head.step(scores, state)
        self._keep(rows, group, "head", state)
        if isinstance(made, Events):
            self._publish(rows, group, made, outputs)
        else:
            sound = _finite([made, *state.values()])
            self._play(rows, group[sound], made[sound], before["at"][sound], outputs)
        if self._keep_scores:
            published: Iterable[Array] = scores
            if isinstance(head, Forecast) and not self._keep_all:
                starts = before["frames"].tolist()
                published = [head.published(kept, start) for kept, start in zip(scores, starts, strict=True)]
            for i, kept, is_sound in zip(group.tolist(), published, sound.tolist(), strict=True):
                if is_sound and len(kept):
                    outputs[i].scores = _with(outputs[i].scores, kept)
        return sound

    def _finish(self, rows: Array, group: Array, outputs: list[Output]) -> None:
        """Flush in order: what the model still owes goes through the head, then the head gives what it holds."""
        tail = self._bundle.model.flush(self._state(rows, group, "model"))
        sound = np.isfinite(tail).all(axis=(1, 2))
        self._break(rows, group[~sound], outputs)
        group, tail = group[sound], tail[sound]
        late = np.clip(self._bundle.model.latency - rows["frames"][group], 0, tail.shape[1])
        sound = np.ones(len(group), bool)
        for skip in set(late.tolist()):  # np.unique would import numpy.ma in the midst of it, 11 ms
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
                outputs[i].samples = _with(outputs[i].samples, samples[a:b])

    def _publish(self, rows: Array, group: Array, events: Events, outputs: list[Output]) -> None:
        for b, label, start, end, score in zip(*(column.tolist() for column in events), strict=True):
            i = int(group[b])
            # Frames of padding and silence may follow the last sample, and ends are padded: none lies after its signal.
            last = int(rows["samples"][i])
            event = Event(
                label=self._labels[label],
                start_s=min(start, last) / self.rate_hz,
                end_s=min(end, last) / self.rate_hz,
                score=round(score, 6),
            )
            outputs[i].events = _with(outputs[i].events, event)


def _with(items: Sequence[T], item: T) -> list[T]:
    """`items` and one more: in the same list, if it is one already."""
    if isinstance(items, list):
        items.append(item)
        return items
    return [*items, item]


def _span(group: Array) -> Array | slice:
    """A run of neighbouring rows as a slice, of which numpy makes a view; other groups as they are."""
    if not len(group):
        return group
    first, last = int(group[0]), int(group[-1])
    return slice(first, last + 1) if last - first + 1 == len(group) else group


def _shares(count: int, most: int) -> list[slice]:
    """So many streams in shares of at most so many; evenly, for one stream over a full step would take a step of its
    own, at several times its cost there.

    >>> _shares(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    shares = -(-count // most)
    return [slice(first, stop) for first, stop in pairwise([-(-count * n // shares) for n in range(shares + 1)])]


def _excerpts(signal: Array, at: Array, length: int) -> Array:
    """`[G, length, channels]`: from each of `at` `[G]`, rising, so many samples, which none shares with another; a view
    where they lie end to end."""
    first, last = int(at[0]), int(at[-1])
    if last - first == (len(at) - 1) * length:
        joined = signal[first : last + length]
    else:
        joined = np.concatenate([signal[start : start + length] for start in at.tolist()])
    return joined.reshape(len(at), length, signal.shape[1])


def _finite(arrays: Sequence[Array]) -> Array:
    """Bool `[B]`: which streams hold neither NaN nor infinity in any of these arrays `[B, ...]`."""
    sound = np.ones(len(arrays[0]), bool)
    for array in arrays:
        finite = np.isfinite(array)
        if not finite.all():
            sound &= finite.reshape(len(sound), -1).all(axis=1)
    return sound
