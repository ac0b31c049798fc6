"""Record of a combination: sources, ranks, and the energy that was kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class CombinedModule:
    """Result for one module.

    Attributes:
        adapters: number of adapters that change the module.
        rank: rank of the combined update.
        kept_energy: share of the squared Frobenius norm that the rank keeps.
    """

    adapters: int
    rank: int
    kept_energy: float


@dataclass(frozen=True)
class CombinationResult:
    """Record of a combination.

    Attributes:
        method: combination method.
        compared_by: `fingerprint` of the backbones, or the weaker `name`, where an adapter of
            another tool has no fingerprint.
        density: share of values kept; `None` for methods that keep all.
        seed: seed of the dropped values; `None` for methods that drop none.
        kept_energy: share of the squared Frobenius norm of all updates that the ranks keep.
        examples: number of training examples of all adapters; `None` where one is unknown.
        sources: name, sha256, weight, examples and number of modules of each adapter.
        modules: result of each module, by name.
    """

    method: str
    compared_by: Literal["fingerprint", "name"]
    density: float | None
    seed: int | None
    kept_energy: float
    examples: int | None
    sources: tuple[dict[str, Any], ...]
    modules: Mapping[str, CombinedModule]

    @property
    def worst(self) -> tuple[str, CombinedModule]:
        """Name and result of the module that keeps least energy."""
        return min(self.modules.items(), key=lambda item: item[1].kept_energy)

    @property
    def partial(self) -> int:
        """Number of modules that some adapters do not change."""
        return sum(module.adapters < len(self.sources) for module in self.modules.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return asdict(self)
