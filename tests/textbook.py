"""The architectures as their equations say, in 64-bit numpy, frame by frame: an oracle that shares no code with them.

Each takes a net of `training.models` for its weights only, and frames `[T, I]` of one stream from its beginning.
"""
# ruff: noqa: N806  the letters are the textbook's

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, Array]


def weights(net: Any) -> Weights:
    """Parameters and buffers by name, in 64 bits."""
    return {name: value.detach().numpy().astype(np.float64) for name, value in net.state_dict().items()}


def under(w: Weights, prefix: str) -> Weights:
    """Those below a name, by what follows it."""
    return {name[len(prefix) + 1 :]: value for name, value in w.items() if name.startswith(prefix + ".")}


def sigma(a: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-a))


def softmax(a: Array) -> Array:
    e = np.exp(a - a.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def normed(u: Array, w: Weights) -> Array:
    """Batch normalisation by what it has seen."""
    return (u - w["running_mean"]) / np.sqrt(w["running_var"] + 1e-5) * w["weight"] + w["bias"]


def layer_normed(u: Array, w: Weights) -> Array:
    return (u - u.mean()) / np.sqrt(u.var() + 1e-5) * w["weight"] + w["bias"]


# --- one layer over `[T, I]`, from state to state ---------------------------------------------------------------------


def gate(w: Weights, place: int, hidden: int) -> tuple[Array, Array, Array, Array]:
    """W, R and the two biases of one of torch's stacked gates."""
    rows = slice(place * hidden, (place + 1) * hidden)
    return w["weight_ih_l0"][rows], w["weight_hh_l0"][rows], w["bias_ih_l0"][rows], w["bias_hh_l0"][rows]


def rnn_layer(w: Weights, x: Array) -> Array:
    hidden = w["weight_hh_l0"].shape[1]
    W, R, b, d = gate(w, 0, hidden)
    h, ys = np.zeros(hidden), []
    for x_t in x:
        h = np.tanh(W @ x_t + b + R @ h + d)
        ys.append(h)
    return np.array(ys)


def lstm_layer(w: Weights, x: Array, h: Array | None = None, c: Array | None = None) -> tuple[Array, Array, Array]:
    hidden = w["weight_hh_l0"].shape[1]
    h, c = np.zeros(hidden) if h is None else h, np.zeros(hidden) if c is None else c
    ys = []
    for x_t in x:
        a_i, a_f, a_g, a_o = (W @ x_t + b + R @ h + d for W, R, b, d in (gate(w, n, hidden) for n in range(4)))
        c = sigma(a_f) * c + sigma(a_i) * np.tanh(a_g)
        h = sigma(a_o) * np.tanh(c)
        ys.append(h)
    return np.array(ys), h, c


def gru_layer(w: Weights, x: Array) -> Array:
    hidden = w["weight_hh_l0"].shape[1]
    h, ys = np.zeros(hidden), []
    (W_r, R_r, b_r, d_r), (W_z, R_z, b_z, d_z), (W_n, R_n, b_n, d_n) = (gate(w, n, hidden) for n in range(3))
    for x_t in x:
        r = sigma(W_r @ x_t + b_r + R_r @ h + d_r)
        z = sigma(W_z @ x_t + b_z + R_z @ h + d_z)
        n = np.tanh(W_n @ x_t + b_n + r * (R_n @ h + d_n))
        h = (1 - z) * n + z * h
        ys.append(h)
    return np.array(ys)


def coupled_layer(w: Weights, x: Array) -> Array:
    hidden = w["R"].shape[1]
    h, c, ys = np.zeros(hidden), np.zeros(hidden), []
    for x_t in x:
        a_i, a_o, a_g = np.split(w["W"] @ x_t + w["R"] @ h + w["b"], 3)
        i = sigma(a_i)
        c = (1 - i) * c + i * np.tanh(a_g)
        h = sigma(a_o) * np.tanh(c)
        ys.append(h)
    return np.array(ys)


def peephole_layer(w: Weights, x: Array) -> Array:
    hidden = w["R"].shape[1]
    h, c, ys = np.zeros(hidden), np.zeros(hidden), []
    p_i, p_o, p_f = w["p"]
    for x_t in x:
        a_i, a_o, a_f, a_g = np.split(w["W"] @ x_t + w["R"] @ h + w["b"], 4)
        before, c = c, sigma(a_f + p_f * c) * c + sigma(a_i + p_i * c) * np.tanh(a_g)
        assert before is not c
        h = sigma(a_o + p_o * c) * np.tanh(c)
        ys.append(h)
    return np.array(ys)


# --- encoders, `[T, I]` to `[T, D]` -----------------------------------------------------------------------------------


def layers(w: Weights, prefix: str) -> list[Weights]:
    found: list[Weights] = []
    while part := under(w, f"{prefix}.{len(found)}"):
        found.append(part)
    return found


def stacked(layer: Callable[[Weights, Array], Array]) -> Callable[[Any, Array], Array]:
    def run(encoder: Any, x: Array) -> Array:
        for w in layers(weights(encoder), "cells"):
            x = layer(w, x)
        return x

    return run


def bilstm(encoder: Any, x: Array) -> Array:
    """Block by block, with its right context; what came before the stream, and comes after it, is zeros."""
    block, ahead, w = encoder.block, encoder.latency, weights(encoder)
    onward, back = layers(w, "onward"), layers(w, "back")
    kept: list[tuple[Array | None, Array | None]] = [(None, None)] * len(onward)
    wide, ys = np.concatenate([np.zeros((ahead, x.shape[1])), x]), []
    for start in range(0, len(x), block):
        u = wide[start : start + block + ahead]
        for n in range(len(onward)):
            head, *kept_n = lstm_layer(onward[n], u[:block], *kept[n])
            kept[n] = (kept_n[0], kept_n[1])
            tail, _, _ = lstm_layer(onward[n], u[block:], *kept[n])
            reverse = lstm_layer(back[n], u[::-1])[0][::-1]
            u = np.concatenate([np.concatenate([head, tail]), reverse], axis=1)
        ys.append(u[:block])
    return np.concatenate(ys)


def cnn(encoder: Any, x: Array) -> Array:
    w = weights(encoder)
    u = np.maximum(0, normed(x @ w["stem.linear.weight"].T, under(w, "stem.norm")))
    for n, dilation in enumerate(encoder.dilations):
        filters = w[f"filters.{n}.weight"][:, 0]  # [H, K]
        taps = filters.shape[1]
        d = np.zeros_like(u)
        for t in range(len(u)):
            for j in range(taps):
                at = t - (taps - 1 - j) * dilation
                if at >= 0:
                    d[t] += filters[:, j] * u[at]
        mixed = normed(d @ w[f"mixers.{n}.linear.weight"].T, under(w, f"mixers.{n}.norm"))
        u = u + np.maximum(0, mixed)
    return u


def crnn(encoder: Any, x: Array) -> Array:
    a = x[:, :, None]  # [T, M, C]
    for n, convolution in enumerate(encoder.convolutions):
        w = weights(convolution)
        filters, step = w["conv.weight"], convolution.bands  # [O, C, K, bands]
        taps, stride = filters.shape[2], encoder.block if n == 0 else 1
        patches = -(-a.shape[1] // step)
        out = np.zeros((len(a) // stride, patches, len(filters)))
        for t in range(len(out)):
            for p in range(patches):
                for j in range(taps):
                    for q in range(filters.shape[3]):
                        at, band = (t + 1) * stride - 1 - (taps - 1 - j), step * p + q
                        if at >= 0 and band < a.shape[1]:
                            out[t, p] += filters[:, :, j, q] @ a[at, band]
        a = np.maximum(0, normed(out, under(w, "norm")))
    y = a.reshape(len(a), -1)
    for w in layers(weights(encoder.gru), "cells"):
        y = gru_layer(w, y)
    return y.repeat(encoder.block, axis=0)


def attention(encoder: Any, x: Array) -> Array:
    w = weights(encoder)
    u = x @ w["stem.weight"].T + w["stem.bias"]
    for b in layers(w, "blocks"):
        heads, window = b["by_distance"].shape
        z = np.array([layer_normed(row, under(b, "look")) for row in u])
        q, k, v = np.split(z @ b["qkv.weight"].T + b["qkv.bias"], 3, axis=1)
        d = u.shape[1] // heads
        looked = np.zeros_like(u)
        for t in range(len(u)):
            for h in range(heads):
                part = slice(h * d, (h + 1) * d)
                ages = range(min(window, t + 1))
                e = np.array([q[t, part] @ k[t - j, part] / np.sqrt(d) + b["by_distance"][h, j] for j in ages])
                looked[t, part] = sum(share * v[t - j, part] for share, j in zip(softmax(e), ages, strict=True))
        u = u + looked @ b["mix.weight"].T + b["mix.bias"]
        z = np.array([layer_normed(row, under(b, "think")) for row in u])
        wide = np.maximum(0, z @ b["widen.weight"].T + b["widen.bias"])
        u = u + wide @ b["narrow.weight"].T + b["narrow.bias"]
    return np.array([layer_normed(row, under(w, "end")) for row in u])


ENCODERS: dict[str, Callable[[Any, Array], Array]] = {
    "rnn": stacked(rnn_layer),
    "lstm": stacked(lambda w, x: lstm_layer(w, x)[0]),
    "lstm_coupled": stacked(coupled_layer),
    "lstm_peephole": stacked(peephole_layer),
    "gru": stacked(gru_layer),
    "bilstm": bilstm,
    "cnn": cnn,
    "crnn": crnn,
    "attention": attention,
}


def scores(cell: str, net: Any, x: Array) -> Array:
    """`[T, F]` frames to `[T, C]` probabilities: front, encoder, readout, softmax."""
    w = weights(net)
    x = np.log(x @ w["front.mel"] + net.front.floor) if "front.mel" in w else x
    x = (x - w["front.mean"]) * w["front.scale"]
    return softmax(ENCODERS[cell](net.encoder, x) @ w["readout.weight"].T + w["readout.bias"])
