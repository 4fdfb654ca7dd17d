"""What all parts of a manifest have in common, and the bounds that several of them need."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_ROW_BYTES = 64 << 20
"""What one stream may carry from chunk to chunk, and what one block of it may take in memory."""

ITEM_BYTES = {"float32": 4, "float16": 2, "float64": 8, "int64": 8, "int32": 4, "bool": 1}
LARGEST = {"float16": 65_504.0, "float32": 3.402_823_466_385_288_6e38, "int64": 2.0**53, "int32": 2.0**31 - 1}

Name = Annotated[str, Field(max_length=200)]
Text = Annotated[str, Field(max_length=2_000)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)  # JSON has no NaN: null came back
