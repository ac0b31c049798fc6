"""Write the files beside merged weights: configuration, generation configuration, tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

from lora_kit.adapter.tokenizer_files import copy_adapter_tokenizer
from lora_kit.merging.plan import MergePlan
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.files import read_json, write_json

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.jinja")


def write_configuration(
    plan: MergePlan, rows: int, untied: bool, directory: Path, architecture: str | None = None
) -> None:
    """Write configuration and generation configuration, and copy the tokenizer.

    Args:
        plan: plan of the merge.
        rows: rows of the merged embeddings.
        untied: if true, the merged model has a head of its own where the backbone has none.
        directory: directory of the merged weights.
        architecture: class of the merged model, if it is not that of the backbone's configuration.
    """
    config = read_json(plan.base / "config.json", MergeError)
    config.pop("quantization_config", None)
    config.pop("torch_dtype", None)
    # A path on the machine that converted the model; meaningless elsewhere.
    config.pop("_name_or_path", None)
    config["dtype"] = plan.stored_dtype
    if untied:
        config["tie_word_embeddings"] = False
    text = config.get("text_config", config)
    if text.get("vocab_size", rows) != rows:
        text["vocab_size"] = rows
    if architecture is not None:
        config["architectures"] = [architecture]
    write_json(directory / "config.json", config)
    if not plan.masked:
        _write_generation_configuration(plan, directory)
    copy_tokenizer(plan.base, directory)
    if plan.adapter and plan.own_tokenizer:
        copy_adapter_tokenizer(plan.base, plan.adapter, directory)


def _write_generation_configuration(plan: MergePlan, directory: Path) -> None:
    path = plan.base / "generation_config.json"
    generation = read_json(path, MergeError) if path.is_file() else {}
    stops = list(plan.stop_token_ids)
    generation["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    write_json(directory / "generation_config.json", generation)


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Copy the files of a tokenizer and its chat template."""
    for file in (file for pattern in TOKENIZER_FILES for file in source.glob(pattern)):
        shutil.copy2(file, directory / file.name)
