"""The adapters that are combined: read, checked, and compared as to their backbone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lora_kit.adapter.attach import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_sha256
from lora_kit.adapter.saved_configuration import is_off, require_types
from lora_kit.backbone.fingerprint import require_saved
from lora_kit.merging.combining.arithmetic import Factors
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.files import read_json

BACKBONE = "backbone.json"
RECORD = "combined.json"
PREFIX = "base_model.model."
SUFFIX_A, SUFFIX_B = ".lora_A.weight", ".lora_B.weight"
# What a configuration may say of an adapter that is `scaling * B @ A` and no more. Any other option
# that is set is refused, those too that PEFT is yet to invent.
PLAIN = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern",
    "alpha_pattern", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "fan_in_fan_out", "init_lora_weights", "eva_config", "megatron_core", "qalora_group_size",
}  # fmt: skip
# The other initialisations take their first factors out of the base's weights, which are then no
# longer the backbone's; saved with `path_initial_model_for_weight_conversion` they are plain.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Source:
    """One adapter.

    Attributes:
        name: as the user gave it.
        directory: of its files.
        config: its `adapter_config.json`.
        backbone: its `backbone.json`; `None` of another tool's adapter.
        sha256: of weights and configuration.
        examples: that it was trained on; `None` where its directory does not say.
        modules: names of the modules that it changes.
    """

    name: str
    directory: Path
    config: Mapping[str, Any]
    backbone: Mapping[str, Any] | None
    sha256: str
    examples: int | None
    modules: tuple[str, ...]

    def factors(self, module: str) -> Factors:
        """The update of a module that it changes, its scaling in `b`.

        Raises:
            MergeError: if a tensor is no finite matrix, or has another rank than the configuration.
        """
        path = self.directory / ADAPTER_WEIGHTS
        with safe_open(path, framework="pt") as file:
            a = _matrix(file.get_tensor(f"{PREFIX}{module}{SUFFIX_A}"), module, SUFFIX_A, path)
            b = _matrix(file.get_tensor(f"{PREFIX}{module}{SUFFIX_B}"), module, SUFFIX_B, path)
        rank, scaling = _rank_and_scaling(self.config, module)
        if not a.shape[0] == b.shape[1] == rank:
            raise MergeError(
                f"{path}: {module}: lora_A is {tuple(a.shape)} and lora_B {tuple(b.shape)}, but "
                f"its rank in {ADAPTER_CONFIG} is {rank}"
            )
        return Factors(a, scaling * b)


def _matrix(tensor: torch.Tensor, module: str, suffix: str, path: Path) -> torch.Tensor:
    if tensor.dim() != 2:
        raise MergeError(
            f"{path}: {PREFIX}{module}{suffix} has {tensor.dim()} dimensions; only the updates of "
            "linear layers, which are matrices, are combined"
        )
    if not torch.isfinite(tensor).all():
        raise MergeError(f"{path}: {PREFIX}{module}{suffix} holds values that are no numbers")
    return tensor.float()


def _rank_and_scaling(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    from peft.utils.other import get_pattern_key

    def of(pattern: str, default: str) -> float:
        patterns = config.get(pattern) or {}
        return float(patterns.get(get_pattern_key(patterns.keys(), module), config[default]))

    rank, alpha = int(of("rank_pattern", "r")), of("alpha_pattern", "lora_alpha")
    # rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) divides by the root of the rank.
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def read_source(target: Path) -> Source:
    """Read what a run or an adapter directory says of its adapter; weights are read later.

    Raises:
        MergeError: if it holds no adapter that is a plain LoRA.
    """
    directory = target / "adapter" if (target / "recipe.yaml").is_file() else target
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (directory / name).is_file():
            raise MergeError(f"{target}: neither a run nor an adapter in safetensors (no {name})")
    config = read_json(directory / ADAPTER_CONFIG, MergeError)
    _require_plain(directory, config)
    return Source(
        name=str(target),
        directory=directory,
        config=config,
        backbone=_backbone(directory / BACKBONE),
        sha256=adapter_sha256(directory),
        examples=_examples(directory),
        modules=_modules(directory / ADAPTER_WEIGHTS),
    )


def _backbone(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    value = read_json(path, MergeError)
    remedy = "delete the file, and the names of the backbones are compared"
    require_saved(value.get("fingerprint"), path, MergeError, remedy)
    return value


def _require_plain(directory: Path, config: Mapping[str, Any]) -> None:
    from peft import LoraConfig

    if config.get("peft_type") != "LORA":
        raise MergeError(
            f"{directory}: peft_type {config.get('peft_type')}; only LORA adapters are combined"
        )
    for option, value in config.items():
        if option not in PLAIN and not is_off(value):
            raise MergeError(
                f"{directory}: {option}: {value!r} makes it more than a low-rank update, which "
                "cannot be combined"
            )
    start = config.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        raise MergeError(
            f"{directory}: init_lora_weights: {start!r} changes the base's weights, so that the "
            "factors alone are not the update; save it with PEFT's "
            "path_initial_model_for_weight_conversion"
        )
    for field in ("r", "lora_alpha"):
        if not isinstance(config.get(field), int | float):
            raise MergeError(f"{directory / ADAPTER_CONFIG}: {field} is missing or no number")
    require_types(config, LoraConfig, directory / ADAPTER_CONFIG, MergeError)
    _require_ranks(directory / ADAPTER_CONFIG, config)
    _require_patterns(directory / ADAPTER_CONFIG, config)


def _require_ranks(path: Path, config: Mapping[str, Any]) -> None:
    """Raises MergeError for a rank that a scaling cannot be divided by."""
    ranks = {"r": config["r"]}
    ranks |= {f"rank_pattern.{n}": rank for n, rank in (config.get("rank_pattern") or {}).items()}
    for field, rank in ranks.items():
        if rank < 1 or not float(rank).is_integer():
            raise MergeError(f"{path}: {field}: {rank}; possible: whole numbers from 1 on")


def _require_patterns(path: Path, config: Mapping[str, Any]) -> None:
    """Raises MergeError for a pattern that cannot be matched with any module."""
    for option in ("rank_pattern", "alpha_pattern"):
        for name in config.get(option) or {}:
            try:
                re.compile(name)
            except re.error as error:
                raise MergeError(
                    f"{path}: {option}: {name} is no regular expression: {error}"
                ) from error


def _modules(path: Path) -> tuple[str, ...]:
    try:
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
    except SafetensorError as error:
        raise MergeError(f"{path}: cannot be read: {error}") from error
    modules = {
        key.removeprefix(PREFIX).removesuffix(SUFFIX_A)
        for key in keys
        if key.startswith(PREFIX) and key.endswith(SUFFIX_A)
    }
    wanted = {f"{PREFIX}{module}{suffix}" for module in modules for suffix in (SUFFIX_A, SUFFIX_B)}
    if keys != wanted or not keys:
        first = min(keys ^ wanted, default="(none)")
        raise MergeError(
            f"{path}: {len(keys ^ wanted)} tensors are no pair of lora_A and lora_B of a linear "
            f"layer, the first: {first}"
        )
    return tuple(sorted(modules))


def _examples(directory: Path) -> int | None:
    """How many examples an adapter was trained on, of its run or of what it was combined from."""
    combined, run = directory / RECORD, directory.parent / "run.json"
    if combined.is_file():
        found = read_json(combined, MergeError).get("examples")
    elif directory.name == "adapter" and run.is_file():
        found = (read_json(run, MergeError).get("data") or {}).get("used")
    else:
        return None
    return found if isinstance(found, int) and found > 0 else None


def require_one_backbone(sources: Sequence[Source]) -> bool:
    """Check that the adapters are of one backbone.

    Returns:
        Whether fingerprints say so; else only the names that the adapters give.

    Raises:
        MergeError: if they are not, with what differs.
    """
    marked = [source for source in sources if source.backbone]
    for source in marked[1:]:
        one, other = (s.backbone["fingerprint"] for s in (marked[0], source) if s.backbone)
        if one["digest"] != other["digest"]:
            different = [part for part in one if part != "digest" and one[part] != other.get(part)]
            raise MergeError(
                f"{source.name}: trained on another backbone than {marked[0].name}; different: "
                f"{', '.join(different)}"
            )
    if len(marked) == len(sources):
        return True
    names = [_base_model(source) for source in sources]
    for source, name in zip(sources, names, strict=True):
        if name != names[0]:
            raise MergeError(
                f"{source.name}: trained on {name}, but {sources[0].name} on {names[0]}"
            )
    return False


def _base_model(source: Source) -> str:
    name, revision = (source.config.get(key) for key in ("base_model_name_or_path", "revision"))
    if not name:
        raise MergeError(f"{source.name}: names no base model, so that none can be compared")
    return f"{name} at {revision}" if revision else str(name)
