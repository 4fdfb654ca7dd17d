"""`--given`: what a stream is given once, from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.component import Array

Given = Annotated[
    Path | None,
    typer.Option(help="A .npy file of float32: what each stream is given before its samples (a speaker's embedding)."),
]


def read_given(path: Path | None) -> Array | None:
    """The values of a .npy file, flattened. Raises ConfigError: no such file, no numbers, or not finite."""
    import zipfile

    import numpy as np

    from pipeline.errors import ConfigError

    if path is None:
        return None
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise ConfigError(f"--given {path}: cannot be read as .npy ({error})") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        raise ConfigError(f"--given {path}: expected one array of floats")
    flat = values.astype(np.float32).reshape(-1)
    if not np.isfinite(flat).all():
        raise ConfigError(f"--given {path}: holds NaN or infinity")
    return flat
