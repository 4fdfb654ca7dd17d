"""`--wav`: audio that a stream or a recording yielded, as a file that can be played at any moment, however it ends."""

from __future__ import annotations

import errno
import os
import wave
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline.cli.outfile import identity
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.component import Array

_MOST_BYTES = 2**32 - 2**16  # a WAV file counts its bytes in 32 bits


class WavFile:
    """One channel of 16-bit PCM, clipped, written as it comes; `samples` of them so far.

    Raises:
        ConfigError: it cannot be written, or not as WAV.
    """

    def __init__(self, path: Path, rate_hz: float) -> None:
        check_place(path, rate_hz)
        self.path = path
        self.samples = 0
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise self._unwritable(error) from None
        if not self._file.seekable():  # its header says how long it is
            self._file.close()
            raise ConfigError(f"--wav {path}: is no file that can be written anywhere; name a regular one")
        self._wave = wave.Wave_write(self._file)
        self._wave.setnchannels(1)
        self._wave.setsampwidth(2)
        self._wave.setframerate(int(rate_hz))
        try:
            self._append(b"")
        except ConfigError:
            self.close()
            raise

    def write(self, samples: Array) -> None:
        """float32 `[n]`, in -1..1; what lies beyond is clipped."""
        from pipeline.samples import to_sample_type

        self._append(to_sample_type(samples, "int16").astype("<i2").tobytes())

    def _append(self, pcm: bytes) -> None:
        """Samples, and a header that knows of them."""
        if 2 * self.samples + len(pcm) > _MOST_BYTES:
            raise ConfigError(f"--wav {self.path}: full: a WAV file holds 4 GB; what came before is in it")
        self.samples += len(pcm) // 2
        try:
            self._wave.writeframes(pcm)
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(f"--wav {self.path}: cannot be written: {error.strerror}")

    def __enter__(self) -> WavFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is left to be written."""
        for file in (self._wave, self._file):
            with suppress(OSError):  # a full disk was told by `write`
                file.close()


def check_place(path: Path, rate_hz: float) -> None:
    """Raises ConfigError for what can be known before there is any audio, which may be hours of it."""
    if path.suffix.lower() not in ("", ".wav", ".wave"):
        raise ConfigError(f"--wav {path}: what is written is WAV, not {path.suffix}: name the file .wav")
    if rate_hz != int(rate_hz):
        raise ConfigError(f"--wav: a WAV file has a whole number of samples a second, not {rate_hz}")
    why = None
    try:
        os.stat(os.path.join(path.parent, "."))  # the dot: it is there, and a folder
    except OSError as error:
        why = error.strerror
    if os.path.isdir(path):
        why = os.strerror(errno.EISDIR)
    elif why is None and not os.access(path if os.path.exists(path) else path.parent, os.W_OK):
        why = os.strerror(errno.EACCES)
    if why is not None:
        raise ConfigError(f"--wav {path}: cannot be written: {why}")


def places(wav: Path, asked: Sequence[Path], recordings: Sequence[Path], rate_hz: float) -> list[Path]:
    """Where the audio of each recording goes: one file in, one file out; several, or a folder, into a folder.

    Raises:
        ConfigError: there cannot be such a file or folder, or a recording would be overwritten.
    """
    from pipeline.cli.playback import stream_names

    if len(asked) == 1 and not os.path.isdir(asked[0]) and not os.path.isdir(wav):
        found = [wav]
    else:
        try:
            wav.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--wav {wav}: the audio of several recordings goes into a folder, and this cannot be one "
                f"({error.strerror})"
            ) from None
        found = [wav / f"{name.replace('/', '-').lstrip('-')}.wav" for name in stream_names(recordings)]
    for path in found:
        check_place(path, rate_hz)
    taken = {identity(path) for path in recordings}
    for path in found:
        if identity(path) in taken:
            raise ConfigError(f"--wav {wav}: would overwrite the recording {path}; name another place")
        taken.add(identity(path))
    return found
