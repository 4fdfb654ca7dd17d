"""May a graph be made quicker? Its short convolutions as products, if that is quicker and yields the same bytes.

Adoption's only step that may be left out: whatever goes wrong in it, the graph stays as it was, and a person is told.
"""

from __future__ import annotations

import time

import numpy as np

from pipeline.adopt.probe import Findings
from pipeline.adopt.products import Products
from pipeline.bundle import Bundle
from pipeline.errors import ManifestError
from pipeline.manifest import Manifest
from pipeline.model import OnnxModel, open_runtime

_MAX_BYTES = 64 << 20
_MAX_S = 20.0
"""Of a model that is compared, and for the comparing."""

_STREAMS, _STEPS, _BLOCKS = (1, 2, 5, 33), 4, 2
_TIMED_STREAMS, _TIMES = 16, 7
_WORTH = 0.9


def quicker(plain: Bundle, graph: bytes, about: Findings) -> bytes | None:
    """A graph that yields the bytes of `graph`, which is the one of `plain`, in less time; None if none is found."""
    try:
        how, found = _try(plain, graph)
    except ImportError:
        how, found = "pip install 'statebelt[adopt]' may make them quicker", None
    except Exception as error:  # of onnx, or onnxruntime, about a graph that does run as it is
        how, found = f"another form of them fails: {' '.join(str(error).split())[:200]}", None
    if how:
        about.found("convolutions", "as products of matrices" if found else "as they are", how)
    return found


def _try(plain: Bundle, graph: bytes) -> tuple[str, bytes | None]:
    """What to tell, and the graph."""
    manifest, model = plain.manifest, plain.model
    if manifest.model.streams_a_call == 1 or len(graph) > _MAX_BYTES:
        return "", None  # a lone stream wins nothing
    products = Products(graph, manifest.model)
    if not products.counts:
        return "", None
    if _step_s(model, manifest, 1, 1) * 2 * sum(_STREAMS) * _STEPS * _BLOCKS > _MAX_S:
        return "to compare another form of them would take too long", None
    kept: list[int] = []
    for n in products.counts:  # a branch of an If that is never taken may not even fit the input's length
        spoilt, quick = (_opened(products.write([n], spoilt=spoilt), manifest) for spoilt in (True, False))
        acts = spoilt is not None and not _same_bytes(model, spoilt, manifest)
        if acts and quick is not None and _same_bytes(model, quick, manifest):
            kept.append(n)
    if not kept:
        return "as products of matrices they do not run, or yield other bytes", None
    found = products.write(kept)
    quick = _opened(found, manifest)
    if quick is None or not _same_bytes(model, quick, manifest):
        return "as products of matrices, all of them, they yield other bytes", None
    ratio = _ratio(quick, model, manifest)
    if ratio > _WORTH:
        return f"as products of matrices they take {ratio:.1f} times as long", None
    count = sum(products.counts[n] for n in kept)
    return f"{count} of them, the same bytes; {_TIMED_STREAMS} streams take {ratio:.2f} of the time", found


def _opened(graph: bytes, manifest: Manifest) -> OnnxModel | None:
    try:
        return OnnxModel(open_runtime(graph, "this form"), manifest, "this form")
    except ManifestError:
        return None


def _same_bytes(one: OnnxModel, other: OnnxModel, manifest: Manifest) -> bool:
    """Whether both yield the same scores and states of noise, loud and quiet, for several numbers of streams."""
    rng, spec = np.random.default_rng(0), manifest.model
    for streams in _STREAMS:
        state = one.initial_state(streams)
        for given in one.given:
            state[given.name] = rng.standard_normal((streams, *given.shape)).astype(np.float32)
        before = after = state
        for step in range(_STEPS):
            frames = rng.standard_normal((streams, _BLOCKS * spec.block, spec.features)) * 10.0 ** (1 - step)
            x = frames.astype(np.float32)
            (scores, before), (same, after) = one.step(x, before), other.step(x, after)
            pairs = [(scores, same), *((before[name], after[name]) for name in before)]
            if any(a.tobytes() != b.tobytes() for a, b in pairs):
                return False
    return True


def _ratio(one: OnnxModel, other: OnnxModel, manifest: Manifest) -> float:
    """How long a step of the one takes, of the other's; in turns, the least of each."""
    times = [[_step_s(model, manifest, _TIMED_STREAMS, 1) for model in (one, other)] for _ in range(_TIMES)]
    mine, theirs = (min(column) for column in zip(*times, strict=True))
    return float(mine / theirs)


def _step_s(model: OnnxModel, manifest: Manifest, streams: int, blocks: int) -> float:
    spec, state = manifest.model, model.initial_state(streams)
    x = np.random.default_rng(0).standard_normal((streams, blocks * spec.block, spec.features)).astype(np.float32)
    began_s = time.perf_counter()
    model.step(x, state)
    return time.perf_counter() - began_s
