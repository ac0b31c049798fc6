"""Read the adapters that are combined, and check that they are plain LoRA of one backbone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lora_kit.adapter.quick_patterns import require_quick_patterns
from lora_kit.adapter.saved import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BACKBONE, adapter_sha256
from lora_kit.adapter.saved_configuration import PREFIX, plain_lora_problem, require_option_types
from lora_kit.adapter.weights import require_plain_names, require_weight_file
from lora_kit.backbone.fingerprint import require_saved_fingerprint
from lora_kit.backbone.heads import FEATURE_EXTRACTION
from lora_kit.merging.combining.arithmetic import LoraFactors
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.files import read_json

RECORD = "combined.json"
SUFFIX_A, SUFFIX_B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class AdapterSource:
    """Adapter to be combined.

    Attributes:
        name: path as the user gave it.
        directory: directory of the adapter's files.
        config: content of `adapter_config.json`.
        backbone: content of `backbone.json`; `None` for an adapter of another tool.
        sha256: digest of weights and configuration.
        examples: number of training examples; `None` where it is unknown.
        modules: names of the modules that the adapter changes.
    """

    name: str
    directory: Path
    config: Mapping[str, Any]
    backbone: Mapping[str, Any] | None
    sha256: str
    examples: int | None
    modules: tuple[str, ...]

    def factors(self, module: str) -> LoraFactors:
        """Read the update of a module in `modules`, with the scaling folded into `b`.

        Raises:
            MergeError: if a tensor is no finite matrix, or its rank differs from the
                configuration's.
        """
        path = self.directory / ADAPTER_WEIGHTS
        with safe_open(path, framework="pt") as file:
            a = _matrix(file.get_tensor(f"{PREFIX}{module}{SUFFIX_A}"), module, SUFFIX_A, path)
            b = _matrix(file.get_tensor(f"{PREFIX}{module}{SUFFIX_B}"), module, SUFFIX_B, path)
        rank, scaling = _rank_and_scaling(self.config, module)
        if not a.shape[0] == b.shape[1] == rank:
            raise MergeError(
                f"{path}: {module}: rank differs from {ADAPTER_CONFIG} (got lora_A "
                f"{tuple(a.shape)} and lora_B {tuple(b.shape)}, rank in {ADAPTER_CONFIG} is "
                f"{rank}). Fix: restore the configuration that was saved with the weights"
            )
        return LoraFactors(a, scaling * b)


def _matrix(tensor: torch.Tensor, module: str, suffix: str, path: Path) -> torch.Tensor:
    if tensor.dim() != 2:
        raise MergeError(
            f"{path}: {PREFIX}{module}{suffix} is no matrix (got {tensor.dim()} dimensions). Fix: "
            "combine only adapters of linear layers"
        )
    if not torch.isfinite(tensor).all():
        raise MergeError(
            f"{path}: {PREFIX}{module}{suffix} has values that are infinite or NaN (got dtype "
            f"{tensor.dtype}). Fix: train the adapter again"
        )
    return tensor.float()


def _rank_and_scaling(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    from peft.utils.other import get_pattern_key

    def value_of(pattern: str, default: str) -> float:
        patterns = config.get(pattern) or {}
        return float(patterns.get(get_pattern_key(patterns.keys(), module), config[default]))

    rank, alpha = int(value_of("rank_pattern", "r")), value_of("alpha_pattern", "lora_alpha")
    # rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) divides by the root of the rank.
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def read_adapter_source(target: Path) -> AdapterSource:
    """Read the configuration of a run's adapter or of an adapter directory; no weights.

    Raises:
        MergeError: if the directory has no adapter, or one that is not plain LoRA.
    """
    run = RunDirectory(target)
    directory = run.adapter if run.recipe.is_file() else target
    if not (directory / ADAPTER_CONFIG).is_file():
        raise MergeError(
            f"{target}: neither a run nor an adapter in safetensors (got no {ADAPTER_CONFIG}). "
            "Fix: give a run directory or a PEFT adapter directory"
        )
    require_weight_file(directory, MergeError)
    config = read_json(directory / ADAPTER_CONFIG, MergeError)
    _require_plain(directory, config)
    modules = _modules(directory / ADAPTER_WEIGHTS)
    require_quick_patterns(config, modules, f"{directory / ADAPTER_CONFIG}: ", MergeError)
    return AdapterSource(
        name=str(target),
        directory=directory,
        config=config,
        backbone=_backbone(directory / BACKBONE),
        sha256=adapter_sha256(directory),
        examples=_examples(directory),
        modules=modules,
    )


def _backbone(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    value = read_json(path, MergeError)
    remedy = "delete the file; the names of the backbones are compared instead"
    require_saved_fingerprint(value.get("fingerprint"), path, MergeError, remedy)
    return value


def _require_plain(directory: Path, config: Mapping[str, Any]) -> None:
    from peft import LoraConfig

    path = directory / ADAPTER_CONFIG
    if config.get("task_type") == FEATURE_EXTRACTION:
        raise MergeError(
            f"{directory}: embeddings are not combined: vectors of two trainings have no common "
            "space (got task_type FEATURE_EXTRACTION). Fix: train one embedding on the rows of both"
        )
    if problem := plain_lora_problem(config):
        raise MergeError(
            f"{path}: {problem}. Fix: combine only plain LoRA and rsLoRA; leave this adapter out"
        )
    for field in ("r", "lora_alpha"):
        if not isinstance(config.get(field), int | float):
            raise MergeError(
                f"{path}: {field}: missing or no number (got {config.get(field)!r}). Fix: restore "
                "the value that the adapter was trained with"
            )
    require_option_types(config, LoraConfig, path, MergeError)
    _require_ranks(path, config)
    _require_patterns(path, config)


def _require_ranks(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse ranks that are no whole numbers from 1 on: the scaling divides by the rank."""
    ranks = {"r": config["r"]}
    ranks |= {f"rank_pattern.{n}": rank for n, rank in (config.get("rank_pattern") or {}).items()}
    for field, rank in ranks.items():
        if rank < 1 or not float(rank).is_integer():
            raise MergeError(
                f"{path}: {field}: must be a whole number from 1 on (got {rank}). Fix: restore the "
                "rank that the adapter was trained with"
            )


def _require_patterns(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse patterns that are no regular expressions."""
    for option in ("rank_pattern", "alpha_pattern"):
        for name in config.get(option) or {}:
            try:
                re.compile(name)
            except re.error as error:
                raise MergeError(
                    f"{path}: {option}: no regular expression (got {name}: {error}). Fix: give a "
                    "module name, or a valid expression"
                ) from error


def _modules(path: Path) -> tuple[str, ...]:
    try:
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
    except SafetensorError as error:
        raise MergeError(
            f"{path}: cannot be read (got {error}). Fix: copy or save the adapter again"
        ) from error
    require_plain_names(keys, path, MergeError)
    modules = {
        key.removeprefix(PREFIX).removesuffix(SUFFIX_A)
        for key in keys
        if key.startswith(PREFIX) and key.endswith(SUFFIX_A)
    }
    pairs = {f"{PREFIX}{module}{suffix}" for module in modules for suffix in (SUFFIX_A, SUFFIX_B)}
    if keys != pairs or not keys:
        first = min(keys ^ pairs, default="no tensor at all")
        raise MergeError(
            f"{path}: {len(keys ^ pairs)} tensors are no pair of lora_A and lora_B of a linear "
            f"layer (got {first} first). Fix: combine only adapters of linear layers"
        )
    return tuple(sorted(modules))


def _examples(directory: Path) -> int | None:
    """Return the number of training examples, from the run or from an earlier combination."""
    combined, run = directory / RECORD, RunDirectory(directory.parent)
    if combined.is_file():
        examples = read_json(combined, MergeError).get("examples")
    elif directory == run.adapter and run.record.is_file():
        examples = (read_json(run.record, MergeError).get("data") or {}).get("used")
    else:
        return None
    return examples if isinstance(examples, int) and examples > 0 else None


def require_one_backbone(sources: Sequence[AdapterSource]) -> bool:
    """Refuse adapters of different backbones.

    Returns:
        True if the fingerprints of all adapters were compared; False if only the names of their
        base models could be.

    Raises:
        MergeError: if the backbones differ, naming the difference.
    """
    fingerprinted = [source for source in sources if source.backbone]
    for source in fingerprinted[1:]:
        one, other = (s.backbone["fingerprint"] for s in (fingerprinted[0], source) if s.backbone)
        if one["digest"] != other["digest"]:
            different = [part for part in one if part != "digest" and one[part] != other.get(part)]
            raise MergeError(
                f"{source.name}: trained on another backbone than {fingerprinted[0].name} (got "
                f"different: {', '.join(different)}). Fix: combine only adapters of one backbone"
            )
    if len(fingerprinted) == len(sources):
        return True
    names = [_base_model(source) for source in sources]
    for source, name in zip(sources, names, strict=True):
        if name != names[0]:
            raise MergeError(
                f"{source.name}: trained on another base model than {sources[0].name} (got {name}, "
                f"there {names[0]}). Fix: combine only adapters of one backbone"
            )
    return False


def _base_model(source: AdapterSource) -> str:
    name, revision = (source.config.get(key) for key in ("base_model_name_or_path", "revision"))
    if not name:
        raise MergeError(
            f"{source.name}: base_model_name_or_path: missing, so that backbones cannot be compared"
            f" (got {name!r}). Fix: set it in {ADAPTER_CONFIG}"
        )
    return f"{name} at {revision}" if revision else str(name)
