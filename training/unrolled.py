"""An ONNX graph run by torch, with its recurrences unrolled: what onnxruntime keeps to itself can be looked at here.

The weights (W, R, B, P) are read back from the bundle. LSTM, GRU and RNN are the loops of the ONNX specification
(opset 14), one frame after the other, and write down their gates; the other operators are torch's own. So gradients go
through the whole graph, and what is drawn is what the shipped file does, not what training remembers of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from pipeline.errors import ConfigError
from training.operators import OPERATORS, Attributes

KINDS = ("LSTM", "GRU", "RNN")


@dataclass
class Layer:
    """One recurrent operator of one direction, while it ran.

    kind: LSTM, GRU or RNN. x: `[T, B, I]`, what it was fed. parts: `[T, B, H]` each, by name; LSTM: input, forget,
    output, candidate, cell, hidden; GRU: update, reset, candidate, hidden; RNN: hidden.
    """

    kind: str
    x: Tensor
    parts: dict[str, Tensor]


@dataclass
class Ran:
    """What a graph computed: every value by its name, its recurrent layers in order, and the last activation's input.

    logits: what the last Softmax or Sigmoid was given; None where the graph has neither.
    """

    values: dict[str, Tensor]
    layers: list[Layer] = field(default_factory=list)
    logits: Tensor | None = None


class Unrolled:
    """A graph of standard operators. Raises ConfigError at the first one that is not known here."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._constants = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in model.graph.initializer}

    def run(self, feeds: dict[str, Tensor]) -> Ran:
        """All operators in the graph's order; `feeds` holds the graph's inputs by name."""
        ran = Ran({**self._constants, **feeds})
        for node in self._graph.node:
            inputs = [ran.values[name] if name else None for name in node.input]
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type in KINDS:
                outputs, layers = _recurrent(node.op_type, inputs, attributes)
                ran.layers += layers
            elif node.op_type in OPERATORS and node.domain in ("", "ai.onnx"):
                outputs = OPERATORS[node.op_type](inputs, {**attributes, "outputs": len(node.output)})
            else:
                known = ", ".join(sorted([*OPERATORS, *KINDS]))
                raise ConfigError(f"operator {node.op_type} (of {node.name or 'no name'}) is none of {known}")
            if node.op_type in ("Softmax", "Sigmoid"):
                ran.logits = inputs[0]
            ran.values.update(zip(node.output, outputs, strict=False))
        return ran


def _recurrent(kind: str, inputs: list[Tensor | None], attributes: Attributes) -> tuple[list[Tensor], list[Layer]]:
    """(Y `[T, D, B, H]` and the last states `[D, B, H]`, a Layer a direction)."""
    odd = set(attributes) & {"activations", "clip", "layout", "activation_alpha", "activation_beta"}
    given = dict(enumerate(inputs))
    x, w, r, b, lengths = (given.get(n) for n in range(5))
    first = [given.get(n) for n in (5, 6, 7)]
    if odd or lengths is not None or x is None or w is None or r is None:
        raise ConfigError(f"a {kind} with {', '.join(sorted(odd)) or 'sequence lengths'}: only its plain form is known")
    direction = attributes.get("direction", b"forward").decode()
    hidden, layers = r.shape[2], []
    ys, lasts = [], []
    for d in range(len(w)):
        backwards = direction == "reverse" or d == 1
        zero = x.new_zeros(x.shape[1], hidden)
        h, c = (zero if s is None else s[d] for s in first[:2])
        bias = x.new_zeros(2 * w.shape[1]) if b is None else b[d]
        peep = None if first[2] is None else torch.split(first[2][d], hidden)
        cell = _Cell(w[d], r[d], bias, hidden, attributes, peep)
        frames = {"LSTM": cell.lstm, "GRU": cell.gru, "RNN": cell.rnn}[kind]
        seen = x.flip(0) if backwards else x
        parts = frames(seen, h, c)
        last = [parts["hidden"][-1] if len(x) else h]
        if kind == "LSTM":
            last.append(parts["cell"][-1] if len(x) else c)
        if backwards:
            parts = {name: part.flip(0) for name, part in parts.items()}
        layers.append(Layer(kind, x, parts))
        ys.append(parts["hidden"])
        lasts.append(last)
    after = [torch.stack([last[n] for last in lasts]) for n in range(len(lasts[0]))]
    return [torch.stack(ys, dim=1), *after], layers


class _Cell:
    """Weights of one direction: w `[G * H, I]`, r `[G * H, H]`, bias `[2 * G * H]`, peep p_i, p_o, p_f `[H]`."""

    def __init__(
        self, w: Tensor, r: Tensor, bias: Tensor, hidden: int, attributes: Attributes, peep: Any = None
    ) -> None:
        self.w, self.r, self.hidden, self.peep = w, r, hidden, peep
        self.bias_w, self.bias_r = torch.split(bias, len(w))
        self.coupled = attributes.get("input_forget", 0) == 1
        self.reset_last = attributes.get("linear_before_reset", 0) != 0

    def lstm(self, x: Tensor, h: Tensor, c: Tensor) -> dict[str, Tensor]:
        """ONNX's order of gates: i, o, f, c. `[T, B, I]` to its parts."""
        p_i, p_o, p_f = self.peep or (0.0, 0.0, 0.0)
        rows: list[tuple[Tensor, ...]] = []
        for a in (x @ self.w.T + self.bias_w + self.bias_r).unbind():
            i, o, f, g = torch.split(a + h @ self.r.T, self.hidden, dim=-1)
            i = torch.sigmoid(i + p_i * c)
            f = 1.0 - i if self.coupled else torch.sigmoid(f + p_f * c)
            g = torch.tanh(g)
            c = f * c + i * g
            o = torch.sigmoid(o + p_o * c)
            h = o * torch.tanh(c)
            rows.append((i, f, o, g, c, h))
        return _stacked(("input", "forget", "output", "candidate", "cell", "hidden"), rows, x, self.hidden)

    def gru(self, x: Tensor, h: Tensor, _: Tensor) -> dict[str, Tensor]:
        """ONNX's order: z, r, h."""
        rows: list[tuple[Tensor, ...]] = []
        r_zr, r_n = torch.split(self.r, [2 * self.hidden, self.hidden])
        b_zr, b_n = torch.split(self.bias_r, [2 * self.hidden, self.hidden])
        for a in (x @ self.w.T + self.bias_w).unbind():
            a_zr, a_n = torch.split(a, [2 * self.hidden, self.hidden], dim=-1)
            z, r = torch.split(torch.sigmoid(a_zr + h @ r_zr.T + b_zr), self.hidden, dim=-1)
            inner = r * (h @ r_n.T + b_n) if self.reset_last else (r * h) @ r_n.T + b_n
            n = torch.tanh(a_n + inner)
            h = (1.0 - z) * n + z * h
            rows.append((z, r, n, h))
        return _stacked(("update", "reset", "candidate", "hidden"), rows, x, self.hidden)

    def rnn(self, x: Tensor, h: Tensor, _: Tensor) -> dict[str, Tensor]:
        """tanh."""
        rows: list[tuple[Tensor, ...]] = []
        for a in (x @ self.w.T + self.bias_w + self.bias_r).unbind():
            h = torch.tanh(a + h @ self.r.T)
            rows.append((h,))
        return _stacked(("hidden",), rows, x, self.hidden)


def _stacked(names: tuple[str, ...], rows: list[tuple[Tensor, ...]], x: Tensor, hidden: int) -> dict[str, Tensor]:
    if not rows:
        return dict.fromkeys(names, x.new_zeros(0, x.shape[1], hidden))
    return {name: torch.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
