"""What a foreign graph asks for and gives: its inputs and outputs, and how their axes behave when it is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.component import Array
from pipeline.errors import ManifestError
from pipeline.manifest import METADATA_KEY
from pipeline.model import Runtime, open_runtime, refused_by
from pipeline.onnxfile import inspect

Dim = int | str | None
"""A length, or the name of one that may vary, or nothing known."""


@dataclass(frozen=True)
class Tensor:
    """One input or output: `dtype` as numpy names it, None where a graph holds something else than numbers."""

    name: str
    dtype: str | None
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        shape = ", ".join("?" if n is None else str(n) for n in self.shape)
        return f"{self.name} {self.dtype or 'of another kind'} [{shape}]"


@dataclass(frozen=True)
class Graph:
    """A model's face. `runtime` runs it."""

    source: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    runtime: Runtime

    def input(self, name: str) -> Tensor | None:
        """The input of that name."""
        return next((t for t in self.inputs if t.name == name), None)

    def output(self, name: str) -> Tensor | None:
        """The output of that name."""
        return next((t for t in self.outputs if t.name == name), None)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Run it once. Raises ManifestError with onnxruntime's reason."""
        try:
            return list(self.runtime.run(list(outputs), dict(feeds)))
        except Exception as error:  # onnxruntime raises classes of its own, one for each status code
            given = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise ManifestError(f"{self.source}: the graph does not run on {given}: {refused_by(error)}") from None


_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


def open_graph(model: bytes, source: str) -> Graph:
    """Open a model that is no bundle yet.

    Raises:
        ManifestError: no ONNX model, one with operators that do not run here, or one that is a bundle already.
    """
    if METADATA_KEY in inspect(model, source).metadata:
        raise ManifestError(f"{source}: a bundle already: run it, or adopt the model that it was made from")
    runtime = open_runtime(model, source)
    inputs, outputs = (
        tuple(Tensor(node.name, _DTYPES.get(node.type), tuple(n or None for n in node.shape)) for node in nodes)
        for nodes in (runtime.get_inputs(), runtime.get_outputs())
    )
    return Graph(source, inputs, outputs, runtime)
