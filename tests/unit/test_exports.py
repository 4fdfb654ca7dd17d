"""What `from pipeline import ...` offers, and that it costs no more than what is asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from pipeline import errors

README = Path(__file__).parents[2] / "README.md"
ERRORS = {name for name in vars(errors) if re.search(rf"\b{name}\b", README.read_text()) and name[0].isupper()}


@pytest.mark.parametrize("name", pipeline.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(pipeline, name).__name__ == name


def test_the_errors_that_the_readme_names_can_be_caught() -> None:
    assert {"BacklogFull", "ChunkRejected", "ConfigError", "Fenced", "ManifestError"} <= ERRORS
    assert set(pipeline.__all__) >= ERRORS
    for name in ERRORS:
        assert getattr(pipeline, name) is getattr(errors, name)
        assert issubclass(getattr(pipeline, name), pipeline.StatebeltError)


def test_an_error_costs_no_import_of_anything_heavy() -> None:
    heavy = "numpy scipy onnxruntime redis pydantic soundfile asyncio"
    code = f"import sys; from pipeline import BacklogFull; print([m for m in {heavy.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_not_there_is_said_by_name() -> None:
    with pytest.raises(AttributeError, match="'pipeline' has no attribute 'Nothing'"):
        _ = pipeline.Nothing
