"""The compiled spectra against numpy's 64-bit transform, and themselves over batches, cuts and vector widths."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.component import Array, as_float
from pipeline.frontend import PowerSpectrum
from pipeline.frontend.spectra import COMPILED, Spectra, spectra
from tests import fft

SOURCE = Path(__file__).parents[2] / "pipeline" / "frontend" / "_spectra.c"
LENGTHS = sorted(
    n for n in {2 * 2**a * 3**b * 5**c for a in range(11) for b in range(7) for c in range(5)} if n <= 4096
)

compiled = pytest.mark.skipif(not COMPILED, reason="the spectra were not compiled where this was installed")


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def power(window: Array, signal: Array, hop: int, *, by: bool | Spectra) -> Array:
    """Of all windows of `signal` `[b, n]`, and what is behind it in the end is checked."""
    overlap = len(window) - hop
    frames = (signal.shape[1] - overlap) // hop
    found = np.full((len(signal), frames, len(window) // 2 + 1), np.nan, np.float32)
    context, samples = signal[:, :overlap].astype(np.float32), signal[:, overlap : overlap + frames * hop].copy()
    after = np.full_like(context, np.nan)
    (spectra(window, compiled=by) if isinstance(by, bool) else by)(context, samples, found, after)
    assert (after == signal[:, frames * hop : frames * hop + overlap]).all()
    return found


@compiled
@pytest.mark.parametrize("length", LENGTHS)
def test_every_length_that_it_takes_is_numpys_transform(length: int) -> None:
    window, hop = np.hanning(length + 1)[:length].astype(np.float32), max(1, length // 3)
    signal = noise(3, length + 4 * hop, seed=length)
    windows = np.lib.stride_tricks.sliding_window_view(signal.astype(np.float64), length, axis=1)[:, ::hop]
    expected = np.abs(np.fft.rfft(windows * window)) ** 2
    got = power(window, signal, hop, by=True)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < 1e-6 * expected.max()
    # And the same sums in their order, in numpy: that is what chaos runs compare with, byte for byte.
    by_the_book = fft.power(windows.astype(np.float32).reshape(-1, length), window)
    assert got.reshape(by_the_book.shape).tobytes() == by_the_book.tobytes()


@pytest.mark.parametrize("length", [7, 14, 255, 4098, 5000])
def test_lengths_that_it_does_not_take_are_scipys(length: int) -> None:
    window, signal = np.ones(length, np.float32), noise(2, length + 5)
    assert power(window, signal, 2, by=COMPILED).tobytes() == power(window, signal, 2, by=False).tobytes()


@pytest.mark.parametrize("by", [pytest.param(True, marks=compiled), False], ids=["compiled", "scipy"])
@given(
    window=st.sampled_from([8, 30, 50, 256, 400]),
    hop=st.integers(1, 9),
    cuts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    streams=st.integers(1, 20),
)
@settings(max_examples=60, deadline=None)
def test_no_byte_depends_on_neighbours_or_cuts(by: bool, window: int, hop: int, cuts: list[int], streams: int) -> None:
    hop = max(1, window * hop // 10)
    frontend = PowerSpectrum(window, hop, compiled=by)
    signal = noise(streams, sum(cuts) * hop)[:, :, None]
    state, parts, at = frontend.initial_state(streams), [], 0
    for frames in cuts:
        part, state = frontend.step(signal[:, at : at + frames * hop], state)
        parts.append(part)
        at += frames * hop
    streamed = np.concatenate(parts, axis=1)
    for n in {0, streams - 1}:
        alone, _ = frontend.step(signal[n : n + 1], frontend.initial_state(1))
        assert alone[0].tobytes() == streamed[n].tobytes()


@pytest.mark.parametrize("by", [pytest.param(True, marks=compiled), False], ids=["compiled", "scipy"])
@given(frames=st.integers(0, 30), streams=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_int16_is_the_float_that_it_stands_for(by: bool, frames: int, streams: int, seed: int) -> None:
    samples = np.random.default_rng(seed).integers(-32768, 32768, (streams, frames * 60, 1)).astype(np.int16)
    frontend = PowerSpectrum(100, 60, compiled=by)
    state = {"context": noise(streams, 40, seed=seed)}
    ints, floats = frontend.step(samples, state), frontend.step(as_float(samples), state)
    assert ints[0].tobytes() == floats[0].tobytes()
    assert ints[1]["context"].tobytes() == floats[1]["context"].tobytes()


@pytest.mark.parametrize("by", [pytest.param(True, marks=compiled), False], ids=["compiled", "scipy"])
def test_samples_that_are_no_whole_hops_are_refused(by: bool) -> None:
    frontend = PowerSpectrum(100, 60, compiled=by)
    with pytest.raises(ValueError, match="121 samples a stream: expected whole hops of 60"):
        frontend.step(noise(1, 121, 1), frontend.initial_state(1))


@compiled
def test_what_does_not_fit_is_refused() -> None:
    """Windows of 8 every 2: arrays of other sizes would be read, or written, beyond their ends."""
    write = spectra(np.ones(8, np.float32))
    context, samples, found, after = (
        noise(2, 6),
        noise(2, 6),
        np.empty((2, 3, 5), np.float32),
        np.empty_like(noise(2, 6)),
    )
    write(context, samples, found, after)
    write(context, samples[:, :0].copy(), found[:, :0].copy(), after)
    for wrong in [
        (context, samples, found[:, :2].copy(), after),
        (context, samples, np.empty((2, 4, 5), np.float32), after),
        (context, samples, np.empty((2, 3, 4), np.float32), after),
        (context, samples[:, :5].copy(), found, after),
        (context, noise(3, 6), found, after),
        (context, samples.astype(np.int16), found[:1].copy(), after),
        (context[:, :5].copy(), samples, found, after),
        (context[:, :5].copy(), samples, found, after[:, :5].copy()),
        (noise(2, 8), samples, found, noise(2, 8)),
        (noise(2, 9), samples, found, noise(2, 9)),
        (context, samples, found, after[:1].copy()),
    ]:
        with pytest.raises(ValueError, match="do not fit each other"):
            write(*wrong)
    with pytest.raises((BufferError, ValueError)):
        write(context, noise(2, 12)[:, ::2], found, after)
    found.flags.writeable = False
    with pytest.raises((BufferError, TypeError)):
        write(context, samples, found, after)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The same source without its clones: what a processor with SSE2 alone runs."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    built = tmp_path_factory.mktemp("plain") / "_spectra.so"
    include = sysconfig.get_path("include")
    flags = ["-O2", "-fPIC", "-shared", "-ffp-contract=off", "-DCLONED=", "-w"]
    subprocess.run([compiler, *flags, f"-I{include}", str(SOURCE), "-o", str(built), "-lm"], check=True, timeout=120)
    spec = importlib.util.spec_from_file_location("_spectra", built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@compiled
@pytest.mark.parametrize("length", [256, 400, 480, 2000])
def test_a_processor_without_wide_vectors_has_the_same_bytes(plain: ModuleType, length: int) -> None:
    window, signal = np.hanning(length).astype(np.float32), noise(5, 2 * length, seed=length)
    plan = plain.plan(window)

    def there(context: Array, samples: Array, found: Array, after: Array) -> None:
        plain.spectra(plan, len(context), context, samples, False, found, after)

    assert power(window, signal, 7, by=True).tobytes() == power(window, signal, 7, by=there).tobytes()
