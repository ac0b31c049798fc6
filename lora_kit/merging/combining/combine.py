"""Several adapters -> one adapter directory, module by module; the model is never loaded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lora_kit.merging.combining.arithmetic import (
    Cut,
    concatenated,
    cut_dense,
    cut_factors,
    dropped,
    elected,
    ties,
)
from lora_kit.merging.combining.directory import write_adapter
from lora_kit.merging.combining.methods import CombinationMethod
from lora_kit.merging.combining.sources import Source, read_source, require_one_backbone
from lora_kit.runtime.errors import MergeError

# The share that the TIES paper keeps; and a share at which, after DARE, some of the update is left
# in the few directions that a rank has room for.
DENSITY = {"ties": 0.2, "dare_linear": 0.5, "dare_ties": 0.5}


@dataclass(frozen=True)
class Combination:
    """How adapters are combined.

    Attributes:
        method: `linear` (exact, the ranks add up), `svd` (the best approximation of the same sum at
            a rank), `ties`, `dare_linear` or `dare_ties`.
        weights: one an adapter, used as they are; by default 1/n each, which is the mean.
        weigh_by_examples: weights in proportion to the examples that each was trained on, summing
            to one: federated averaging (McMahan et al. 2017, arXiv:1602.05629, algorithm 1).
        rank: of all methods but `linear`; by default, of each module, the largest that it has in
            an adapter.
        density: share of values that `ties` and `dare_*` keep, by default 0.2 and 0.5.
        seed: of what `dare_*` drops, by default 0.
    """

    method: CombinationMethod = "linear"
    weights: tuple[float, ...] = ()
    weigh_by_examples: bool = False
    rank: int | None = None
    density: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.weights and self.weigh_by_examples:
            raise MergeError("--weight and --weigh-by-examples: choose one")
        if not all(math.isfinite(weight) and weight != 0 for weight in self.weights):
            raise MergeError("--weight: finite and not 0; leave an adapter out to give it none")
        if self.rank is not None and self.method == "linear":
            raise MergeError("--rank: linear is exact, its rank is the sum; use svd to choose one")
        if self.rank is not None and self.rank < 1:
            raise MergeError(f"--rank {self.rank}: at least 1")
        if self.density is not None and self.method not in DENSITY:
            raise MergeError(f"--density goes with {', '.join(DENSITY)}, not with {self.method}")
        if self.density is not None and not 0 < self.density <= 1:
            raise MergeError(f"--density {self.density}: above 0, at most 1")
        if self.seed is not None and not self.method.startswith("dare"):
            raise MergeError(f"--seed goes with dare_linear and dare_ties, not with {self.method}")


@dataclass(frozen=True)
class CombinedModule:
    """What became of one module. `kept_energy` is the share of the squared Frobenius norm."""

    adapters: int
    rank: int
    kept_energy: float


@dataclass(frozen=True)
class Combined:
    """What was written.

    Attributes:
        compared_by: `fingerprint` of the backbones, or the weaker `name` that adapters of other
            tools give.
        kept_energy: share of the squared Frobenius norm of all updates that the ranks had room for.
        examples: of all adapters; `None` where one does not say.
        sources: name, sha256, weight, examples and number of modules of each adapter.
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
        """The module that lost most."""
        return min(self.modules.items(), key=lambda item: item[1].kept_energy)

    @property
    def partial(self) -> int:
        """Modules that not all adapters change."""
        return sum(module.adapters < len(self.sources) for module in self.modules.values())

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def combine(targets: Sequence[Path], how: Combination, output: Path) -> Combined:
    """Write the combined adapter to `output`, whole or not at all.

    A module that an adapter leaves alone has an update of zero in it.

    Args:
        targets: run or adapter directories, in the order of the weights.
        how: method and options.
        output: a directory that is not there or empty.

    Raises:
        MergeError: if the adapters are not plain LoRA of one backbone, or are not finite.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise MergeError(f"{output}: is there already and not empty; choose another --output")
    if len(targets) < 2 and how.method != "svd":
        raise MergeError("one adapter alone is only combined by svd, which lowers its rank")
    sources = [read_source(target) for target in targets]
    by_fingerprint = require_one_backbone(sources)
    _require_one_task(sources)
    _require_one_layout(sources)
    weights = _weights(sources, how)
    cuts = {
        module: _combined_module(module, sources, weights, how)
        for module in sorted({module for source in sources for module in source.modules})
    }
    result = _described(sources, weights, cuts, how, by_fingerprint)
    factors = {name: cut.factors for name, cut in cuts.items()}
    write_adapter(sources, factors, by_fingerprint, result.to_dict(), output)
    return result


def _require_one_task(sources: Sequence[Source]) -> None:
    first = sources[0]
    for source in sources[1:]:
        one, other = (s.config.get("task_type") for s in (first, source))
        if one != other:
            raise MergeError(
                f"{source.name}: task_type: {other}, but {one} in {first.name}; only adapters of "
                "one task are combined"
            )


def _require_one_layout(sources: Sequence[Source]) -> None:
    layouts = {bool(source.config.get("fan_in_fan_out")) for source in sources}
    if len(layouts) > 1:
        raise MergeError("fan_in_fan_out: true in some of the adapters, false in others")


def _weights(sources: Sequence[Source], how: Combination) -> tuple[float, ...]:
    if how.weights and len(how.weights) != len(sources):
        raise MergeError(f"--weight: {len(how.weights)} given for {len(sources)} adapters")
    if how.weights:
        return how.weights
    if not how.weigh_by_examples:
        return (1 / len(sources),) * len(sources)
    unknown = [source.name for source in sources if source.examples is None]
    if unknown:
        raise MergeError(
            f"--weigh-by-examples: {', '.join(unknown)} does not say how many examples it was "
            "trained on (run.json of a run does); give each its --weight"
        )
    counts = [source.examples or 0 for source in sources]
    return tuple(count / sum(counts) for count in counts)


def _density(how: Combination) -> float | None:
    return DENSITY.get(how.method) if how.density is None else how.density


def _seed(how: Combination) -> int | None:
    return (how.seed or 0) if how.method.startswith("dare") else None


def _combined_module(
    module: str, sources: Sequence[Source], weights: Sequence[float], how: Combination
) -> Cut:
    having = [number for number, source in enumerate(sources) if module in source.modules]
    parts = [sources[number].factors(module) for number in having]
    shapes = {(part.b.shape[0], part.a.shape[1]) for part in parts}
    if len(shapes) > 1:
        raise MergeError(f"{module}: of different sizes in the adapters: {sorted(shapes)}")
    used = [weights[number] for number in having]
    joined = concatenated(parts, used)
    if not math.isfinite(joined.energy):
        raise MergeError(f"{module}: the combined update overflows float32; give smaller weights")
    rank = how.rank or max(part.rank for part in parts)
    if how.method == "linear":
        return Cut(joined, joined.energy, joined.energy)
    if how.method == "svd":
        return cut_factors(joined, rank)
    density = _density(how) or 1.0
    updates = [part.b @ part.a for part in parts]
    if how.method.startswith("dare"):
        updates = [
            dropped(update, density, _generator(_seed(how) or 0, module, number))
            for number, update in zip(having, updates, strict=True)
        ]
    if how.method == "dare_linear":
        summed = torch.stack([w * u for w, u in zip(used, updates, strict=True)]).sum(dim=0)
        return cut_dense(summed, rank)
    total = sum(abs(weight) for weight in weights)
    if how.method == "dare_ties":
        return cut_dense(elected(updates, used, total), rank)
    return cut_dense(ties(updates, used, density, total), rank)


def _generator(seed: int, module: str, number: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}\0{module}\0{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def _share(kept: float, energy: float) -> float:
    # Of an update that is zero, nothing is lost.
    return min(kept / energy, 1.0) if energy else 1.0


def _described(
    sources: Sequence[Source],
    weights: Sequence[float],
    cuts: Mapping[str, Cut],
    how: Combination,
    by_fingerprint: bool,
) -> Combined:
    energy = sum(cut.energy for cut in cuts.values())
    counts = [source.examples for source in sources]
    known = [count for count in counts if count is not None]
    return Combined(
        method=how.method,
        compared_by="fingerprint" if by_fingerprint else "name",
        density=_density(how),
        seed=_seed(how),
        kept_energy=_share(sum(cut.kept for cut in cuts.values()), energy),
        examples=sum(known) if len(known) == len(counts) else None,
        sources=tuple(_described_source(s, w) for s, w in zip(sources, weights, strict=True)),
        modules={
            module: CombinedModule(
                adapters=sum(module in source.modules for source in sources),
                rank=cut.factors.rank,
                kept_energy=_share(cut.kept, cut.energy),
            )
            for module, cut in cuts.items()
        },
    )


def _described_source(source: Source, weight: float) -> dict[str, Any]:
    # A path of this machine means nothing to who gets the adapter.
    place = source.directory.resolve()
    in_run = place.name == "adapter" and (place.parent / "recipe.yaml").is_file()
    return {
        "name": place.parent.name if in_run else place.name,
        "sha256": source.sha256,
        "weight": weight,
        "examples": source.examples,
        "modules": len(source.modules),
    }
