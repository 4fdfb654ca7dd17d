"""CSV and npz files to samples: separators, headers, times, columns, and what cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline import recordings, sensor
from pipeline.csvfile import read_csv
from pipeline.errors import AudioError, TableError
from pipeline.manifest import InputSpec
from tests.harness import DATA

TWO = InputSpec(sample_rate_hz=1, channels=2, sample_type="float32")
HOURLY = InputSpec(sample_rate_hz=1 / 3600, channels=2, sample_type="float32")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def refusal(path: Path, spec: InputSpec = TWO, columns: tuple[str, ...] | None = None) -> str:
    with pytest.raises(TableError) as raised:
        recordings.read(path, spec, columns)
    return str(raised.value)


@settings(max_examples=20)
@given(
    x=hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 4)), elements=st.floats(-1e6, 1e6, width=32)),
    separator=st.sampled_from(",;\t"),
    header=st.booleans(),
    times=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, x: np.ndarray, separator: str, header: bool, times: bool, end: str
) -> None:
    """Every value as Python's own float() reads it, whatever the dialect."""
    names = [*(["when"] if times else []), *(f"c{n}" for n in range(x.shape[1]))]
    rows = [[*([f"2020-03-01 15:44:{n:02}"] if times else []), *map(repr, row)] for n, row in enumerate(x.tolist())]
    path = tmp_path_factory.mktemp("x") / "x.csv"
    path.write_bytes("".join(separator.join(row) + end for row in ([names] if header else []) + rows).encode())
    got = sensor.read(path, InputSpec(sample_rate_hz=1, channels=x.shape[1], sample_type="float32"))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, x)


def test_a_byte_order_mark_quotes_blank_lines_and_spaces(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b'\xef\xbb\xbf"a, b", c\r\n1.5, 2\r\n\r\n"3",4\r\n')
    assert sensor.read(path, TWO).tolist() == [[1.5, 2.0], [3.0, 4.0]]
    assert read_csv(path).columns == ("a, b", "c")
    assert sensor.read(path, TWO, ("c", "a, b")).tolist() == [[2.0, 1.5], [4.0, 3.0]]


def test_columns_by_name_or_number_and_in_any_order(tmp_path: Path) -> None:
    named = write(tmp_path / "named.csv", "timestamp;a;b;state\n7;1;2;ok\n8;3;4;ok\n")
    assert sensor.read(named, TWO, ("b", "a")).tolist() == [[2, 1], [4, 3]]
    assert sensor.read(named, TWO, ("timestamp", "a")).tolist() == [[7, 1], [8, 3]]
    bare = write(tmp_path / "bare.csv", "1,2,3\n4,5,6\n")
    assert sensor.read(bare, TWO, ("2", "0")).tolist() == [[3, 1], [6, 4]]


def test_a_rate_that_does_not_fit_is_refused_and_gaps_are_told(tmp_path: Path) -> None:
    hours = "".join(f"2016-07-01 {hour:02}:00:00,1,2\n" for hour in (0, 1, 2, 3, 5))
    path = write(tmp_path / "hours.csv", hours)
    assert "3600 s apart, expected 1 s (1 Hz)" in refusal(path)
    warnings: list[str] = []
    assert len(recordings.read(path, HOURLY, None, warnings.append)) == 5
    assert warnings == [
        f"{path}: 1 of 4 rows do not follow the one before by 3600 s; they are taken one behind the other"
    ]


def test_numbers_as_times_are_left_out_and_tell_no_rate(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "Timestamp,a,b\n1393577280000,1,2\n1393577580000,3,4\n")
    assert sensor.read(path, TWO).tolist() == [[1, 2], [3, 4]]
    assert read_csv(path).step_s is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a,b\n1,2\n\n3,\n", "line 4, column 'b': the value is missing"),
        ("a,b\n1,2\nNaN,3\n", "line 3, column 'a': the value is missing"),
        ("a,b\n1,2\n1,inf\n", "line 3, column 'b': 'inf' is not finite"),
        ("1,2\n1,two\n", "line 2, column '1': 'two' is no number"),
        ("a;b\n1;2\n1;2,5\n", "line 3, column 'b': '2,5' is no number (a decimal comma? write a point)"),
        ("a,b\n1,2\n1,2,3\n", "line 3 has 3 cells, expected 2"),
        ("a,b\n1\n", "2 names in the header, but 1 cells"),
        ("a,b\n", "a header and no rows"),
        ("", "is empty"),
        ("a,b,c\n1,2,3\n", "3 columns (a, b, c), expected 2: choose with --columns"),
        ("a,b\n1,2\n1e39,2\n", "beyond what float32 holds"),
        ("2016-07-01\n2016-07-02\n", "holds times and nothing else"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, told: str) -> None:
    assert told in refusal(write(tmp_path / "x.csv", text))


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "a,b,b\n1,2,3\n")
    assert "column 'c' is not in it; there are 3 columns (a, b, b)" in refusal(path, columns=("a", "c"))
    assert "column 'b' is twice in it" in refusal(path, columns=("a", "b"))
    assert "no such file" in refusal(tmp_path / "y.csv")
    (tmp_path / "x.wav").write_bytes(b"")
    assert "this is none" in refusal(tmp_path / "x.wav", columns=("a",))


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("\x1b[2J,b\x00\u202e\n1,2\n", ("c",)),
        ("\x1b[2J,b\x00\u202e,c\n1,2,3\n", None),
        ("\x1b[2J,b\x00\u202e\n", None),
        ("a,b\x1b\x00\u202e\n1,\n", None),
        ("a,b\n1,\x1b\x00\u202e\n", None),
    ],
)
def test_what_a_file_says_steers_no_terminal(tmp_path: Path, text: str, columns: tuple[str, ...] | None) -> None:
    said = refusal(write(tmp_path / "x.csv", text), columns=columns)
    assert said.isprintable()
    assert "\\x1b" in said


def test_a_name_without_end_is_shown_in_part(tmp_path: Path) -> None:
    assert len(refusal(write(tmp_path / "x.csv", f"{'a' * 9999},b,c\n1,2,3\n"))) < 400


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00a")
    assert "cannot be read as CSV" in refusal(tmp_path / "x.csv")


def test_the_first_float_array_of_an_archive(tmp_path: Path) -> None:
    path, x = tmp_path / "x.npz", np.arange(6.0).reshape(3, 2)
    np.savez(path, label=np.arange(3), t=np.zeros(3), imu=x, other=x + 1)
    assert sensor.read(path, TWO).tolist() == x.tolist()
    assert sensor.read(path, TWO, ("1", "0")).tolist() == x[:, ::-1].tolist()
    np.savez(path, label=np.arange(3), t=np.array([1.0, 2, 3], np.float16))
    one = InputSpec(sample_rate_hz=1, sample_type="float32")
    assert sensor.read(path, one).tolist() == [[1], [2], [3]]
    assert "1 column (0), expected 2" in refusal(path)


def test_archives_that_hold_none(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, label=np.arange(3), what=np.array([{}], object))
    assert "no float array [N, C] in it; it holds label (int64 [3]), what (objects)" in refusal(path)
    np.savez(path, x=np.array([[1.0, 2], [np.nan, 3], [4, 5]]))
    assert "NaN or infinity in row 1 (and 0 more)" in refusal(path)
    for bytes_ in (b"PK\x03\x04 no archive", b"", b"\x93NUMPY", b"0.1, 0.2\n"):
        path.write_bytes(bytes_)
        assert "cannot be read as .npz" in (told := refusal(path))
        assert "pickle" not in told  # numpy takes what it does not know for one, and advises to load it unsafely
    with path.open("wb") as file:
        np.save(file, np.zeros((3, 2)))
    assert "one array and no archive" in refusal(path)


def test_whole_numbers_for_a_topic_of_int16(tmp_path: Path) -> None:
    spec = InputSpec(sample_rate_hz=1, channels=2)
    got = sensor.read(write(tmp_path / "x.csv", "-32768,32767\n0,1\n"), spec)
    assert got.dtype == np.int16
    assert got.tolist() == [[-32768, 32767], [0, 1]]
    for text in ("1.5,2\n", "32768,0\n", "-32769,0\n"):
        assert "not all values are whole numbers" in refusal(write(tmp_path / "x.csv", text), spec)


def test_a_folder_is_its_sound_or_else_its_tables(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"or of sensors \.csv"):
        recordings.find([tmp_path])
    table = write(tmp_path / "b.csv", "1\n")
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    assert recordings.find([tmp_path]) == [tmp_path / "a.npz", table]
    (tmp_path / "c.wav").write_bytes(b"")
    assert recordings.find([tmp_path, table]) == [tmp_path / "c.wav", table]


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no corpora at {DATA} (set STATEBELT_DATA)")
@pytest.mark.parametrize(
    ("file", "rate_hz", "shape", "columns"),
    [
        ("ett/ETTh1.csv", 1 / 3600, (17420, 7), None),
        ("skab/data/valve1/1.csv", 1, (1145, 8), ("Accelerometer1RMS", "Accelerometer2RMS", "Current", "Pressure",
         "Temperature", "Thermocouple", "Voltage", "Volume Flow RateRMS")),
        ("nab/data/realKnownCause/nyc_taxi.csv", 1 / 1800, (10320, 1), None),
        ("activity/exp01_user01.npz", 50, (20598, 6), None),
    ],
)  # fmt: skip
def test_the_corpora(file: str, rate_hz: float, shape: tuple[int, int], columns: tuple[str, ...] | None) -> None:
    if not (DATA / file).is_file():
        pytest.skip(f"no {DATA / file}")
    spec = InputSpec(sample_rate_hz=rate_hz, channels=shape[1], sample_type="float32")
    assert sensor.read(DATA / file, spec, columns).shape == shape
