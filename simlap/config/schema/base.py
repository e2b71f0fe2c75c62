"""What all sections of the experiment file share: strict frozen models and constrained numbers."""

from __future__ import annotations

from typing import Annotated, LiteralString

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Interval = tuple[Positive, Positive]


class Strict(BaseModel):
    """Frozen, no unknown keys, no silent conversions (`lr: true` and `epochs: "5"` are errors)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def wrong(key: str, value: object, message: LiteralString, **words: object) -> PydanticCustomError:
    """An error at a key below the model whose validator raises it. `{name}` in the message stands for a word."""
    return PydanticCustomError("wrong_key", message, {"key": key, "value": value, **words})
