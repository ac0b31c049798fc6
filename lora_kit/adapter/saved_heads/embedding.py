"""Description of a saved adapter of embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

from lora_kit.adapter.saved_heads.checks import RESTORE
from lora_kit.backbone.heads import HeadOutputs, embedding_outputs
from lora_kit.recipe.embedding import Pooling
from lora_kit.runtime.errors import AdapterError


@dataclass(frozen=True)
class SavedEmbedding:
    """Vectors of a saved adapter.

    Attributes:
        pairs: number of training pairs.
        pooling: hidden states that become the vector of a text.
        temperature: divisor of the cosines in the loss.
        max_length: tokens to which texts were truncated.
    """

    FILE: ClassVar[str] = "embedding.json"

    pairs: int
    pooling: Pooling
    temperature: float
    max_length: int

    @property
    def outputs(self) -> HeadOutputs:
        """Output of the model."""
        return embedding_outputs(self.pooling)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], path: Path) -> SavedEmbedding:
        """Read the content of the file.

        Raises:
            AdapterError: if it is not valid.
        """
        pairs, pooling = value.get("pairs"), value.get("pooling")
        temperature, length = value.get("temperature"), value.get("max_length")
        are_whole = isinstance(pairs, int) and isinstance(length, int)
        if (
            not are_whole
            or pooling not in get_args(Pooling)
            or not isinstance(temperature, float | int)
        ):
            raise AdapterError(
                f"{path}: pairs and max_length must be whole numbers, temperature a number, and "
                f"pooling one of {', '.join(get_args(Pooling))} (got {pairs!r:.20}, "
                f"{length!r:.20}, {temperature!r:.20} and {pooling!r:.20}). {RESTORE}"
            )
        return cls(pairs, pooling, float(temperature), length)  # type: ignore[arg-type]
