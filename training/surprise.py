"""A model that remembers and was never trained: running means and the range that each has kept, as an ONNX graph.

Everything is learnt within the stream and carried as state. For each channel there are features: a fast running mean
less a slow one (spikes, shifts of level), and the value less that of a season ago. Each feature has a range: how far it
has gone up, and how far down. Both are running means of its 8th power, so that the largest values count most and old
ones fade. With e the feature, u and d the 8th roots of these two, times WIDTH, the surprise is

    |2 e - (u - d)| / (u + d)

which is 1 at either end of the range (for a Gaussian e about three standard deviations out) and 0 in its middle. r is
the 8-norm over all features and channels. What is told is r / (1 + r), in 0..1: 0.5 is the edge of what has been. With
`quiet` only news is told: a surprise that exceeds those of so many frames before it; all other frames get 0.

Exact over cuts and batches, to the byte: what depends on the frame before runs in a Scan, frame by frame, and every
operator in the graph is elementwise and correctly rounded by IEEE 754 (no exp, no log, no sum over an axis), or copies,
or compares. 8th powers are three squarings, of ratios of at most 1 for the ranges, so nothing overflows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import ConfigError
from pipeline.manifest import StateSpec
from training.graph import IR_VERSION, OPSET, GraphBuilder
from training.models.encoder import State

WIDTH = 1.8
"""8th root of the mean 8th power of a Gaussian's half is 1.64 standard deviations: the range's edge lies at 2.95."""

LARGEST = 100.0
"""A surprise; a series that never moved and then does has no other."""

OUTLYING = 2.0
"""Beyond so many times its reach, how far a value lies outside does not widen a learnt range any faster."""

_TINY = 1e-30
_FOR_EVER = 1e9  # frames
_COUNTED = 2.0**24  # float32 counts no further


@dataclass(frozen=True)
class Surprise:
    """The constants; all lengths in frames.

    channels: C of the input `[B, T, C]`. fast, slow: lengths of the running means of which each feature is the
    difference; 1 is the value itself. season: one more feature: the value less the one so long ago; 0: none.
    memory: of the ranges; as it is the 8th power that fades, a range halves in 5.5 times as many.
    start: from here on a feature may surprise (the seasonal one from two seasons on).
    learn: slow means and ranges are learnt in the stream's first so many frames; 0: for ever.
    widen: from then on means stay, and a range widens e-fold in so many frames of values that lie far outside of it: of
    what lasts, an ever greater part is normal (values above OUTLYING times its reach count as that). 0: ranges stay.
    quiet: a surprise is told if it exceeds those of so many frames before; 0: all are told.
    """

    channels: int
    fast: tuple[int, ...]
    slow: tuple[int, ...]
    season: int = 0
    memory: int = 4032
    start: int = 20
    learn: int = 0
    widen: int = 0
    quiet: int = 0

    def __post_init__(self) -> None:
        if not self.fast or len(self.fast) != len(self.slow) or any(a >= b for a, b in self.pairs):
            raise ConfigError(f"fast {list(self.fast)}, slow {list(self.slow)}: as many of both, each slow one longer")
        if (
            min(self.channels, self.memory, *self.fast) < 1
            or min(self.season, self.start, self.learn, self.widen, self.quiet) < 0
        ):
            raise ConfigError(f"{self}: lengths are whole frames, of means, memory and channels at least 1")

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return tuple(zip(self.fast, self.slow, strict=True))

    @property
    def features(self) -> int:
        return len(self.fast) + (self.season > 0)

    @property
    def means(self) -> tuple[tuple[int, bool], ...]:
        """Length of each running mean that is carried, and whether it is a slow one."""
        fast = sorted({(a, False) for a in self.fast if a > 1})
        return (*fast, *sorted({(b, True) for b in self.slow}))

    @property
    def states(self) -> tuple[State, ...]:
        carried = [
            State("count", (1, 1, 1), 0),
            State("means", (1, len(self.means), self.channels), 0),
            State("range", (1, 2 * self.features, self.channels), 0),
        ]
        if self.season:
            carried.append(State("past", (1, self.season, self.channels), 0))
        if self.quiet:
            carried.append(State("recent", (1, self.quiet, 1), 0))
        return tuple(carried)


def graph(spec: Surprise) -> onnx.ModelProto:
    """The checked graph: `x [B, T, C]` and the states to `y [B, T, 1]` and the states, named with an `n` behind."""
    g = GraphBuilder(spec.states)
    lagged = _lagged(g, spec) if spec.season else "x"
    body = _frame(spec)
    seen = [g.op("Identity", g.state(name)) for name in ("count", "means", "range")]
    count, means, kept, surprises = g.ops(
        "Scan", *seen, "x", lagged, outputs=4,
        body=body, num_scan_inputs=2, scan_input_axes=[1, 1], scan_output_axes=[1],
    )  # fmt: skip
    for name, after in (("count", count), ("means", means), ("range", kept)):
        g.carry(name, after)
    told = _told(g, spec, surprises)
    g.nodes.append(helper.make_node("Identity", [told], ["y"]))

    made = helper.make_graph(
        g.nodes,
        "surprise",
        [_value("x", "B", "T", spec.channels), *(_value(s.name, "B", *s.shape[1:]) for s in spec.states)],
        [_value("y", "B", "T", 1), *(_value(f"{s.name}n", "B", *s.shape[1:]) for s in spec.states)],
        [numpy_helper.from_array(array, name) for name, array in g.constants.items()],
    )
    built = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="statebelt")
    built.ir_version = IR_VERSION
    onnx.checker.check_model(built, full_check=True)
    return built


def state_specs(spec: Surprise) -> tuple[StateSpec, ...]:
    """The states as a manifest names them."""
    return tuple(StateSpec(input=s.name, output=f"{s.name}n", shape=s.shape, batch_axis=0) for s in spec.states)


def _value(name: str, *shape: int | str | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _number(g: GraphBuilder, value: float, name: str) -> str:
    return g.constant(np.array(value, np.float32), name)


def _column(values: list[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)[None, :, None]


def _lagged(g: GraphBuilder, spec: Surprise) -> str:
    """`[B, T, C]`: each value less that of a season ago."""
    wide = g.op("Concat", g.state("past"), "x", axis=1)
    g.carry("past", g.cut(wide, -spec.season, None, 1))
    return g.op("Sub", "x", g.cut(wide, None, -spec.season, 1))


def _told(g: GraphBuilder, spec: Surprise, surprises: str) -> str:
    """`[B, T, K, C]` surprises to the one `[B, T, 1]` that is told."""
    count = spec.features * spec.channels
    flat = g.op("Reshape", surprises, g.integers(0, 0, count))
    parts = g.split(_eighth_power(g, flat), count, 2)
    r = _eighth_root(g, g.op("Sum", *parts))
    y = g.op("Div", r, g.op("Add", r, _number(g, 1, "one")))
    if not spec.quiet:
        return y
    wide = g.op("Concat", g.state("recent"), y, axis=1)  # [B, quiet + T, 1]
    g.carry("recent", g.cut(wide, -spec.quiet, None, 1))
    rows = g.op("Transpose", wide, perm=[0, 2, 1])
    highest = g.op("Transpose", g.op("MaxPool", rows, kernel_shape=[spec.quiet], strides=[1]), perm=[0, 2, 1])
    before = g.cut(highest, None, -1, 1)  # window t covers the frames t - quiet to t - 1
    return g.op("Where", g.op("Greater", y, before), y, _number(g, 0, "nothing"))


def _frame(spec: Surprise) -> onnx.GraphProto:
    """The Scan's body: states and one frame `[B, C]`, and its seasonal difference, to states and surprises
    `[B, K, C]`."""
    names = ("count", "means", "range")
    states = [state for state in spec.states if state.name in names]
    g = GraphBuilder(tuple(states))
    one, zero, tiny = (_number(g, v, n) for v, n in ((1, "one"), (0, "nothing"), (_TINY, "tiny")))

    n = g.op("Min", g.op("Add", g.state("count"), one), _number(g, _COUNTED, "counted"))  # [B, 1, 1]
    g.carry("count", n)

    x = g.op("Unsqueeze", "frame", g.integers(1))
    lengths = [float(length) for length, _ in spec.means]
    rate = g.op("Div", one, g.op("Min", n, g.constant(_column(lengths), "lengths")))
    learns = _column([float(spec.learn) if slow and spec.learn else _FOR_EVER for _, slow in spec.means])
    rate = g.op("Where", g.op("LessOrEqual", n, g.constant(learns, "means_until")), rate, zero)
    step = g.op("Mul", rate, g.op("Sub", x, g.state("means")))
    means = g.op("Add", g.state("means"), step)
    g.carry("means", means)

    points = g.op("Concat", x, means, axis=1)
    place = {(1, False): 0} | {mean: number + 1 for number, mean in enumerate(spec.means)}
    fast = g.op("Gather", points, g.integers(*(place[a, False] for a in spec.fast)), axis=1)
    slow = g.op("Gather", points, g.integers(*(place[b, True] for b in spec.slow)), axis=1)
    e = g.op("Sub", fast, slow)
    delays, starts = [0.0] * len(spec.fast), [float(spec.start)] * len(spec.fast)
    if spec.season:
        e = g.op("Concat", e, g.op("Unsqueeze", "lagged", g.integers(1)), axis=1)
        delays, starts = [*delays, float(spec.season)], [*starts, 2.0 * spec.season]
    age = g.op("Sub", n, g.constant(_column(delays), "delays"))  # [B, K, 1], frames that the feature has been there
    e = g.op("Where", g.op("Greater", age, zero), e, zero)

    up, down = g.split(g.state("range"), 2, 1)
    width = g.op("Max", g.op("Add", up, down), tiny)
    out = g.op("Sub", g.op("Mul", e, _number(g, 2 / WIDTH, "twice")), g.op("Sub", up, down))
    r = g.op("Min", g.op("Div", g.op("Abs", out), width), _number(g, LARGEST, "largest"))
    r = g.op("Where", g.op("Greater", n, g.constant(_column(starts), "starts")), r, zero)
    g.nodes.append(helper.make_node("Identity", [r], ["surprise"]))

    sides = g.op("Concat", g.op("Relu", e), g.op("Relu", g.op("Neg", e)), axis=1)  # [B, 2 K, C]
    ages = g.op("Max", g.op("Concat", age, age, axis=1), one)
    rate = g.op("Div", one, g.op("Min", ages, _number(g, spec.memory, "memory")))
    if not spec.learn:
        g.carry("range", _mixed(g, sides, rate))
    else:
        still = g.op("LessOrEqual", n, _number(g, spec.learn, "range_until"))
        after = _widened(g, spec, sides, g.op("Max", up, down)) if spec.widen else g.state("range")
        g.carry("range", g.op("Where", still, _mixed(g, sides, rate), after))

    frames = [_value(name, "B", spec.channels) for name in ("frame", "lagged")]
    surprises = _value("surprise", "B", spec.features, spec.channels)
    return helper.make_graph(
        g.nodes,
        "frame",
        [*(_value(s.name, "B", *s.shape[1:]) for s in states), *frames],
        [*(_value(f"{s.name}n", "B", *s.shape[1:]) for s in states), surprises],
        [numpy_helper.from_array(array, name) for name, array in g.constants.items()],
    )


def _widened(g: GraphBuilder, spec: Surprise, sides: str, reach: str) -> str:
    """Ranges after a frame beyond those that are learnt; `reach` `[B, K, C]` is the greater of their sides."""
    most = g.op("Mul", g.op("Concat", reach, reach, axis=1), _number(g, OUTLYING, "outlying"))
    rate = 8.0 / (spec.widen * OUTLYING**8)  # a mean of 8th powers that is fed OUTLYING**8 times itself
    return _mixed(g, g.op("Min", sides, most), _number(g, rate, "late"))


def _mixed(g: GraphBuilder, sides: str, rate: str) -> str:
    """Ranges after a frame: 8th roots of the running means of 8th powers."""
    one = _number(g, 1, "one")
    top = g.op("Max", g.op("Max", g.state("range"), sides), _number(g, _TINY, "tiny"))
    old = _eighth_power(g, g.op("Div", g.state("range"), top))
    new = _eighth_power(g, g.op("Div", sides, top))
    mixed = g.op("Add", g.op("Mul", g.op("Sub", one, rate), old), g.op("Mul", rate, new))
    return g.op("Mul", top, _eighth_root(g, mixed))


def _eighth_power(g: GraphBuilder, x: str) -> str:
    for _ in range(3):
        x = g.op("Mul", x, x)
    return x


def _eighth_root(g: GraphBuilder, x: str) -> str:
    for _ in range(3):
        x = g.op("Sqrt", x)
    return x
