"""Combine several adapters into one, module by module; the model is never loaded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_kit.merging.combining.arithmetic import (
    TruncatedUpdate,
    concatenate_factors,
    drop_and_rescale,
    elect_and_average,
    ties_merge,
    truncate_dense,
    truncate_factors,
)
from lora_kit.merging.combining.directory import write_adapter
from lora_kit.merging.combining.methods import CombinationMethod
from lora_kit.merging.combining.result import CombinationResult, CombinedModule
from lora_kit.merging.combining.sources import (
    AdapterSource,
    read_adapter_source,
    require_one_backbone,
)
from lora_kit.merging.combining.tokenizer import common_tokenizer
from lora_kit.merging.partial import require_empty_output
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.errors import MergeError

# Default densities: for `ties` the share that its paper keeps; for DARE a share at which some of
# the update remains in the few directions that a rank allows.
DENSITY = {"ties": 0.2, "dare_linear": 0.5, "dare_ties": 0.5}


@dataclass(frozen=True)
class CombinationOptions:
    """Method of a combination, and its options.

    Attributes:
        method: `linear` (exact, the ranks add up), `svd` (the best approximation of the same sum at
            a rank), `ties`, `dare_linear` or `dare_ties`.
        weights: one weight per adapter, used as given; by default 1/n each, which is the mean.
        weigh_by_examples: if true, weights are proportional to the number of training examples and
            sum to one: federated averaging (McMahan et al. 2017, arXiv:1602.05629, algorithm 1).
        rank: rank of the result, for all methods but `linear`; by default, in each module, the
            largest rank among the adapters.
        density: share of values that `ties` and `dare_*` keep, by default 0.2 and 0.5.
        seed: seed of the values that `dare_*` drops, by default 0.
    """

    method: CombinationMethod = "linear"
    weights: tuple[float, ...] = ()
    weigh_by_examples: bool = False
    rank: int | None = None
    density: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.weights and self.weigh_by_examples:
            raise MergeError(
                "--weight: excludes --weigh-by-examples (got both). Fix: choose one of the two"
            )
        if not all(math.isfinite(weight) and weight != 0 for weight in self.weights):
            raise MergeError(
                f"--weight: must be finite and not 0 (got {', '.join(map(str, self.weights))}). "
                "Fix: leave out an adapter that should not count"
            )
        if self.rank is not None and self.method == "linear":
            raise MergeError(
                f"--rank: linear is exact, its rank is the sum of the ranks (got {self.rank}). "
                "Fix: use --method svd to choose a rank"
            )
        if self.rank is not None and self.rank < 1:
            raise MergeError(f"--rank: must be at least 1 (got {self.rank}). Fix: raise it")
        if self.density is not None and self.method not in DENSITY:
            raise MergeError(
                f"--density: only for {', '.join(DENSITY)} (got method {self.method}). Fix: drop "
                "it, or choose one of these methods"
            )
        if self.density is not None and not 0 < self.density <= 1:
            raise MergeError(
                f"--density: must be above 0 and at most 1 (got {self.density}). Fix: give a share "
                "such as 0.2"
            )
        if self.seed is not None and not self.method.startswith("dare"):
            raise MergeError(
                f"--seed: only for dare_linear and dare_ties (got method {self.method}). Fix: drop "
                "it, or choose one of these methods"
            )

    @property
    def effective_density(self) -> float | None:
        """Density in use; `None` for methods that keep all values."""
        return DENSITY.get(self.method) if self.density is None else self.density

    @property
    def effective_seed(self) -> int | None:
        """Seed in use; `None` for methods that draw nothing."""
        return (self.seed or 0) if self.method.startswith("dare") else None


def combine(
    targets: Sequence[Path], options: CombinationOptions, output: Path
) -> CombinationResult:
    """Write the combined adapter to `output`, completely or not at all.

    An adapter that does not change a module counts there as an update of zero.

    Args:
        targets: run or adapter directories, in the order of the weights.
        options: method and its options.
        output: directory that does not exist or is empty.

    Raises:
        MergeError: if the adapters are not plain LoRA of one backbone, or are not finite.
    """
    require_empty_output(output)
    if len(targets) < 2 and options.method != "svd":
        raise MergeError(
            f"adapters: a single adapter can only be combined by svd, which lowers its rank (got "
            f"method {options.method}). Fix: give two adapters, or --method svd"
        )
    sources = [read_adapter_source(target) for target in targets]
    by_fingerprint = require_one_backbone(sources)
    _require_same_options(sources)
    tokenizer = common_tokenizer([source.directory for source in sources])
    weights = _weights(sources, options)
    updates = {
        module: _combine_module(module, sources, weights, options)
        for module in sorted({module for source in sources for module in source.modules})
    }
    result = _result(sources, weights, updates, options, by_fingerprint)
    factors = {name: update.factors for name, update in updates.items()}
    write_adapter(sources, factors, by_fingerprint, result.to_dict(), output, tokenizer)
    return result


def _require_same_options(sources: Sequence[AdapterSource]) -> None:
    """Refuse adapters of different tasks or weight layouts."""
    first = sources[0]
    for source in sources[1:]:
        expected, actual = (s.config.get("task_type") for s in (first, source))
        if expected != actual:
            raise MergeError(
                f"{source.name}: task_type: differs between the adapters (got {actual}, but "
                f"{expected} in {first.name}). Fix: combine only adapters of one task"
            )
    layouts = {source.name: bool(source.config.get("fan_in_fan_out")) for source in sources}
    if len(set(layouts.values())) > 1:
        transposed = ", ".join(name for name, is_transposed in layouts.items() if is_transposed)
        raise MergeError(
            f"fan_in_fan_out: differs between the adapters (got true in {transposed}, false in the "
            "others). Fix: combine only adapters of one layout"
        )


def _weights(sources: Sequence[AdapterSource], options: CombinationOptions) -> tuple[float, ...]:
    if options.weights and len(options.weights) != len(sources):
        raise MergeError(
            f"--weight: one weight per adapter is needed (got {len(options.weights)} for "
            f"{len(sources)} adapters). Fix: give {len(sources)}"
        )
    if options.weights:
        return options.weights
    if not options.weigh_by_examples:
        return (1 / len(sources),) * len(sources)
    unknown = [source.name for source in sources if source.examples is None]
    if unknown:
        raise MergeError(
            f"--weigh-by-examples: number of training examples unknown (got none for "
            f"{', '.join(unknown)}). Fix: give run directories, whose run.json has the number, or "
            "a --weight for each adapter"
        )
    counts = [source.examples or 0 for source in sources]
    return tuple(count / sum(counts) for count in counts)


def _combine_module(
    module: str,
    sources: Sequence[AdapterSource],
    weights: Sequence[float],
    options: CombinationOptions,
) -> TruncatedUpdate:
    numbers = [number for number, source in enumerate(sources) if module in source.modules]
    parts = [sources[number].factors(module) for number in numbers]
    shapes = {(part.b.shape[0], part.a.shape[1]) for part in parts}
    if len(shapes) > 1:
        raise MergeError(
            f"{module}: shapes differ between the adapters (got {sorted(shapes)}). Fix: combine "
            "only adapters of one backbone"
        )
    used = [weights[number] for number in numbers]
    joined = concatenate_factors(parts, used)
    if not math.isfinite(joined.energy):
        raise MergeError(
            f"{module}: combined update overflows float32 (got weights {used}). Fix: give smaller "
            "weights"
        )
    rank = options.rank or max(part.rank for part in parts)
    if options.method == "linear":
        return TruncatedUpdate(joined, joined.energy, joined.energy)
    if options.method == "svd":
        return truncate_factors(joined, rank)
    density = options.effective_density or 1.0
    updates = [part.b @ part.a for part in parts]
    if options.method.startswith("dare"):
        updates = [
            drop_and_rescale(
                update, density, _generator(options.effective_seed or 0, module, number)
            )
            for number, update in zip(numbers, updates, strict=True)
        ]
    if options.method == "dare_linear":
        weighted = torch.stack([w * u for w, u in zip(used, updates, strict=True)]).sum(dim=0)
        return truncate_dense(weighted, rank)
    total = sum(abs(weight) for weight in weights)
    if options.method == "dare_ties":
        return truncate_dense(elect_and_average(updates, used, total), rank)
    return truncate_dense(ties_merge(updates, used, density, total), rank)


def _generator(seed: int, module: str, number: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}\0{module}\0{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def _kept_share(kept: float, energy: float) -> float:
    # Nothing of a zero update can be lost.
    return min(kept / energy, 1.0) if energy else 1.0


def _result(
    sources: Sequence[AdapterSource],
    weights: Sequence[float],
    updates: Mapping[str, TruncatedUpdate],
    options: CombinationOptions,
    by_fingerprint: bool,
) -> CombinationResult:
    energy = sum(update.energy for update in updates.values())
    counts = [source.examples for source in sources]
    known = [count for count in counts if count is not None]
    return CombinationResult(
        method=options.method,
        compared_by="fingerprint" if by_fingerprint else "name",
        density=options.effective_density,
        seed=options.effective_seed,
        kept_energy=_kept_share(sum(update.kept for update in updates.values()), energy),
        examples=sum(known) if len(known) == len(counts) else None,
        sources=tuple(_source_record(s, w) for s, w in zip(sources, weights, strict=True)),
        modules={
            module: CombinedModule(
                adapters=sum(module in source.modules for source in sources),
                rank=update.factors.rank,
                kept_energy=_kept_share(update.kept, update.energy),
            )
            for module, update in updates.items()
        },
    )


def _source_record(source: AdapterSource, weight: float) -> dict[str, Any]:
    # The name only: a path on this machine is meaningless elsewhere.
    place = source.directory.resolve()
    run = RunDirectory(place.parent)
    in_run = place == run.adapter and run.recipe.is_file()
    return {
        "name": run.root.name if in_run else place.name,
        "sha256": source.sha256,
        "weight": weight,
        "examples": source.examples,
        "modules": len(source.modules),
    }
