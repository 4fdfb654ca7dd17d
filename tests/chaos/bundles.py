"""The two bundles of the chaos: the shipped model once deciding on words, once saying every frame's scores."""

from __future__ import annotations

from pathlib import Path

import onnx

from pipeline.bundle import SHIPPED
from pipeline.manifest import METADATA_KEY, Manifest, ScoresHead
from tests import zoo


def write(folder: Path) -> dict[str, Path]:
    """Group -> bundle. `words` is the shipped digits bundle; `scores` has its graph and no head but the scores."""
    shipped = SHIPPED / "digits.onnx"
    model = onnx.load(shipped)
    text = next(entry.value for entry in model.metadata_props if entry.key == METADATA_KEY)
    dense = Manifest.from_json(text).model_copy(update={"head": ScoresHead(), "task": "every frame's scores"})
    path = folder / "scores.onnx"
    path.write_bytes(zoo.with_manifest(model, dense))
    return {"words": shipped, "scores": path}
