"""README's "Your own model in five minutes", run from its own text."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import until

from .conftest import original

ROOT = Path(__file__).parents[2]
SECTION = re.search(r"^## Your own model in five minutes\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)


def blocks() -> list[tuple[str, str]]:
    """(language, text) of the section's blocks of code."""
    assert SECTION is not None
    return re.findall(r"^```(\w*)\n(.*?)^```", SECTION.group(1), re.M | re.S)


def test_every_command_of_the_section(tmp_path: Path, url: str) -> None:
    pytest.importorskip("torch")
    original("silero-vad")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "recordings").symlink_to(ROOT / "pipeline" / "recordings")
    around = {**os.environ, "REDIS_URL": url, "STATEBELT_STATUS_DIR": str(tmp_path / "status")}
    started, told = [], {}
    try:
        for language, text in blocks():
            if language == "python":
                (tmp_path / "mine.py").write_text(text)
                subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, check=True, capture_output=True)
                continue
            for line in text.splitlines():
                command, *words = shlex.split(line)
                if command == "pip":  # done already, by the list that the tests install
                    assert words[-1] in (ROOT / "tests/adopt/wheels.txt").read_text().split()
                    continue
                assert command == "statebelt"
                full = [sys.executable, "-m", "pipeline.cli", *words]
                env = {**around, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}  # not the folder of the same name
                if words[0] == "worker":
                    log = tmp_path / "worker.log"
                    with log.open("w") as file:
                        started.append(subprocess.Popen(full, cwd=tmp_path, env=env, stdout=file, stderr=file))
                    continue
                done = subprocess.run(
                    full, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
                )
                assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
                told[line] = done.stdout
    finally:
        for process in started:
            process.terminate()
        for process in started:
            until(lambda process=process: process.poll() is not None, "the worker's end")  # type: ignore[misc]
    said = " ".join(told)
    for word in ("adopt mine.onnx", "verify", "run", "push", "tail", "--recipe silero-vad", "vad.onnx"):
        assert word in said
    assert "Exact" in next(out for line, out in told.items() if line.startswith("statebelt verify"))
    assert next(out for line, out in told.items() if "tail" in line).rstrip().endswith("end")
    assert next(out for line, out in told.items() if line.startswith("statebelt run vad")).count("speech_start") == 12
