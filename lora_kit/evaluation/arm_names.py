"""Arms by their names: models of a run, and files that others serve."""

from __future__ import annotations

from lora_kit.recipe.sections import MERGED_ARMS

# Between the kind of a file and its name, as in `gguf=model.gguf`.
FILE_SEPARATOR = "="


def is_file_arm(arm: str) -> bool:
    """Return true for an arm that is an exported file."""
    return FILE_SEPARATOR in arm


def is_shipped(arm: str) -> bool:
    """Return true for an arm that may be given to others, and is judged as the adapter is."""
    return arm in MERGED_ARMS or is_file_arm(arm)
