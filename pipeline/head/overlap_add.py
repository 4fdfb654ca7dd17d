"""Overlap-add: each frame's scores are a window of audio, a hop behind the one before; where they overlap, they add up.

Frame t's window covers the `window` samples before sample (t + 1) * hop, as the window frontend cut them. So the first
`window - hop` samples that come out lie before the signal's beginning, and the same number is still to come when
the last window has been added: N samples in, N samples out, each in its own place, the last ones at the end. The signal
is followed by `tail_samples` of silence, so that its last samples are in as many windows as all others.

Exact whatever the chunks: every sample is a sum in one fixed order, the oldest window first; what is unfinished is
carried as the sum so far. Exact whatever the batch: additions are elementwise. The hop need not divide the window.
"""

from __future__ import annotations

import numpy as np

from pipeline.component import Array, Field, State, fresh


class OverlapAdd:
    """`[B, T, window]` float32 windows to `[B, T * hop]` float32 samples.

    The state's `at` says where in its stream the next sample lies: negative before its beginning. Streams of a batch
    stand at different places, so it is the caller who drops what lies before the beginning or behind the end.

    Args:
        window_samples: of each frame.
        hop_samples: from one window to the next.
    """

    block = 1
    latency = 0
    publishes_scores = False
    publishes_samples = True
    labels: tuple[str, ...] = ()

    def __init__(self, window_samples: int, hop_samples: int) -> None:
        self.window_samples = window_samples
        self.hop_samples = hop_samples
        self.lead_samples = window_samples - hop_samples
        self.tail_samples = self.lead_samples
        self.fields: tuple[Field, ...] = (Field("at", "int64", (), -self.lead_samples),)
        if self.lead_samples:
            self.fields += (Field("sums", "float32", (self.lead_samples,)),)

    def initial_state(self, batch: int) -> State:
        """No window added."""
        return fresh(self.fields, batch)

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        """The samples that no later window reaches."""
        batch, frames, window = x.shape
        hop, lead = self.hop_samples, self.lead_samples
        pieces = -(-window // hop)  # of a window, a hop long each but perhaps the last
        total = np.zeros((batch, frames + pieces - 1, hop), np.float32)
        flat = total.reshape(batch, (frames + pieces - 1) * hop)
        if lead:
            flat[:, :lead] = state["sums"]
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for what is not finite
            for n in range(pieces - 1, -1, -1):  # a window's last piece falls on the first ones of later windows
                piece = x[:, :, n * hop : (n + 1) * hop]
                total[:, n : n + frames, : piece.shape[2]] += piece
        after = {"at": state["at"] + frames * hop}
        if lead:
            after["sums"] = flat[:, frames * hop : frames * hop + lead].copy()
        return flat[:, : frames * hop], after

    def flush(self, state: State) -> Array:
        """The last windows' rest."""
        return state["sums"] if self.lead_samples else np.empty((len(state["at"]), 0), np.float32)
