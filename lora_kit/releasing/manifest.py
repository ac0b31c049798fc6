"""The manifest: sha256 of every file of a release, and the check of it, offline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_kit.errors import ReleaseError
from lora_kit.evaluation.harness import check_verdict, read_verdict
from lora_kit.files import read_json, write_json
from lora_kit.gguf import file_sha256

MANIFEST = "manifest.json"


def write_manifest(directory: Path, facts: Mapping[str, Any]) -> None:
    """Hash every file below `directory` into its manifest."""
    files = {name: file_sha256(directory / name) for name in _files(directory)}
    write_json(directory / MANIFEST, {"format": 1, **facts, "files": files})


def verify_manifest(directory: Path) -> int:
    """Check every file, and that the verdict follows from the ledger.

    Returns:
        How many files were checked.

    Raises:
        ReleaseError: naming each file that changed, is missing, or is not in the manifest.
    """
    path = directory / MANIFEST
    expected = read_json(path, ReleaseError).get("files")
    if not isinstance(expected, dict):
        raise ReleaseError(f"{path}: names no files, so no manifest")
    present = set(_files(directory))
    problems = [f"missing: {name}" for name in sorted(set(expected) - present)]
    problems += [f"not in the manifest: {name}" for name in sorted(present - set(expected))]
    problems += [
        f"changed: {name}"
        for name in sorted(present & set(expected))
        if (directory / name).is_dir() or file_sha256(directory / name) != expected[name]
    ]
    if problems:
        raise ReleaseError(
            f"{directory}: not what was released\n" + "\n".join(f"  {p}" for p in problems)
        )
    check_verdict(directory / "evaluation")
    decision = read_verdict(directory / "evaluation")["decision"]
    if decision != "PASS":
        raise ReleaseError(f"{directory}: its verdict is {decision}, so it was never released")
    return len(expected)


def _files(directory: Path) -> list[str]:
    return sorted(
        str(path.relative_to(directory).as_posix())
        for path in directory.rglob("*")
        # A link is listed whatever it leads to, so that nothing hides behind one.
        if (path.is_file() or path.is_symlink()) and path != directory / MANIFEST
    )
