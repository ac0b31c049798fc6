"""Rows and texts that a language model generates before training, kept in the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from lora_kit.runtime.cache import cache_directory
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.files import read_json, write_json
from lora_kit.runtime.hashes import json_sha256

# Part of the cache key. Raise it when prompts or sampling change.
VERSION = 2
Records = list[dict[str, Any]]


def cached_records(parts: list[Any], seed: int, generate: Callable[[], Records]) -> Records:
    """Return cached records, or generate them; for one process alone.

    Args:
        parts: JSON values that determine the records besides library versions.
        seed: seed of torch's random state while they are generated.
        generate: function that generates the records.
    """
    digest = json_sha256([*parts, VERSION, torch.__version__, transformers.__version__])
    path = cache_directory() / "self-distillation" / f"{digest}.json"
    if path.is_file():
        return read_records(path, "records")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        records = generate()
    write_json(path, {"records": records})
    return records


def read_records(path: Path, key: str) -> Records:
    """Read the records of a kind from a file.

    Raises:
        DataError: if the file holds no list of them.
    """
    value = read_json(path, DataError).get(key)
    if not isinstance(value, list):
        raise DataError(
            f"{path}: `{key}` is not a list (got {type(value).__name__}). Fix: delete the file, so "
            "that its rows are generated again"
        )
    return value
