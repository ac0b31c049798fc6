"""The cache folder of this user."""

from __future__ import annotations

import os
from pathlib import Path

from lora_kit.runtime.errors import LoraKitError


def cache_directory() -> Path:
    """Return `$XDG_CACHE_HOME/lora_kit`, by default `~/.cache/lora_kit`.

    Raises:
        LoraKitError: if a file stands where the folder or one above it should be.
    """
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(root) / "lora_kit"
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise LoraKitError(
                f"XDG_CACHE_HOME: the cache {folder} cannot be a folder (got the file {path}). Fix:"
                " set XDG_CACHE_HOME to a folder, or move the file"
            )
    return folder
