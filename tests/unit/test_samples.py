"""Arrays as programs hand them over: what is taken, how it is converted, and what is said of the others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from pipeline.errors import ChunkRejected
from pipeline.manifest import InputSpec
from pipeline.samples import carried, to_sample_type

PCM = InputSpec(sample_rate_hz=8000)
FLOAT = InputSpec(sample_rate_hz=8000, sample_type="float32")
TONE = np.sin(np.arange(800) / 9)


@given(hnp.arrays(np.int16, st.integers(0, 50)))
def test_int16_survives_the_way_to_float_and_back(x: NDArray[np.int16]) -> None:
    there = to_sample_type(x, "float32")
    assert there.dtype == np.float32
    np.testing.assert_array_equal(there, x.astype(np.float64) / 32768)
    np.testing.assert_array_equal(to_sample_type(there, "int16"), x)


@given(hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(-4, 4, width=32)))
def test_float_to_int16_rounds_and_clips(x: NDArray[np.float32]) -> None:
    expected = [max(-32768, min(32767, round(float(value) * 32768))) for value in x]
    assert to_sample_type(x, "int16").tolist() == expected


ADVICE = [  # the tone at full scale, and the code that is advised for it
    (TONE, 'x.astype("float32")'),
    (TONE.astype("float16"), 'x.astype("float32")'),
    (TONE.astype(">f4"), 'x.astype("float32")'),
    ((TONE * 32767).astype(">i2"), 'x.astype("int16")'),
    ((TONE * 127).astype("int8"), 'x.astype("int16") * 256'),
    ((TONE * 127 + 128).astype("uint8"), '(x.astype("int16") - 128) * 256'),
    ((TONE * 32767 + 32768).astype("uint16"), '(x.astype("int32") - 32768).astype("int16")'),
    ((TONE * (2**31 - 1)).astype("int32"), '(x >> 16).astype("int16")'),
    ((TONE * 32767).astype("int32"), 'x.astype("int16")'),
    ((TONE * 32767).astype("int64"), 'x.astype("int16")'),
]


@pytest.mark.parametrize(("x", "code"), ADVICE, ids=[f"{x.dtype}" for x, _ in ADVICE])
def test_what_is_advised_makes_the_sound_that_was_meant(x: np.ndarray, code: str) -> None:
    """Word for word. `.astype('int16')` was advised for all: of floats it makes silence."""
    with pytest.raises(ChunkRejected, match=f"^stream 's': samples are {x.dtype}; expected int16 or float32") as raised:
        carried(x, PCM, "stream 's'")
    assert raised.value.reason == "wrong_type"
    assert code in str(raised.value)
    got = carried(eval(code, {"x": x}), PCM, "stream 's'")
    assert np.abs(got[:, 0] / 32768 - TONE).max() < 0.02


def test_of_a_topic_of_float32_no_scale_is_advised_but_the_one_it_carries() -> None:
    for kind in ("float64", "uint8", "int32"):
        with pytest.raises(ChunkRejected, match=r'x\.astype\("float32"\)') as raised:
            carried(np.zeros(3, kind), FLOAT, "s")
        assert 'int16")' not in str(raised.value)


@pytest.mark.parametrize("x", [np.array(["a"]), np.zeros(3, bool), np.zeros(3, complex), None, [None, 1]])
def test_what_are_no_samples(x: object) -> None:
    with pytest.raises(ChunkRejected, match="expected int16 or float32") as raised:
        carried(x, PCM, "s")  # type: ignore[arg-type]
    assert "astype" not in str(raised.value)


def test_rows_of_unequal_length() -> None:
    with pytest.raises(ChunkRejected, match=r"no array .*expected \[N, 1\] or \[N\]") as raised:
        carried([[1], [2, 3]], PCM, "s")  # type: ignore[arg-type]
    assert raised.value.reason == "wrong_shape"


@pytest.mark.parametrize("loudest", [2.001, -32768, 32767, 3e38])
def test_floats_on_another_scale_are_refused(loudest: float) -> None:
    """Clipped, they would be a square wave, and nobody would know why the model hears nothing."""
    x = np.array([0, 0.5, loudest], np.float32)
    with pytest.raises(ChunkRejected, match=r"^stream 's': .*reach .*; expected -1\.\.1.*divide.*32768") as raised:
        carried(x, PCM, "stream 's'")
    assert raised.value.reason == "out_of_range"
    assert f"reach {np.float32(loudest):g}" in str(raised.value)
    assert carried(x, FLOAT, "s")[:, 0].tolist() == x.tolist()  # sensors: any number


@pytest.mark.parametrize("x", [[], [2.0, -2.0, 1.0001, -1.3]])
def test_what_overshoots_a_little_is_clipped(x: list[float]) -> None:
    got = carried(np.array(x, np.float32), PCM, "s")[:, 0].tolist()
    assert got == [max(-32768, min(32767, round(value * 32768))) for value in x]
