"""Page of a sweep."""

from __future__ import annotations

from pathlib import Path

from lora_kit.runtime.files import write_text
from lora_kit.selection.sweep.result import SweepResult


def write_page(path: Path, result: SweepResult) -> None:
    """Write the page."""
    write_text(path, result.name)
