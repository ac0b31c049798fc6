"""Manifest of a release: its provenance and the sha256 of each file."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from lora_kit.adapter.saved import ADAPTER_CONFIG
from lora_kit.backbone.encoder_decoder import SEQUENCE_TO_SEQUENCE
from lora_kit.backbone.fingerprint import Fingerprint
from lora_kit.evaluation.assembly import LEDGER
from lora_kit.evaluation.ledger import Ledger
from lora_kit.evaluation.verdict_file import read_suites
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.section import Section
from lora_kit.releasing.acceptance import Acceptance
from lora_kit.releasing.gate import Clearance
from lora_kit.releasing.licences import LicensedWork
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.errors import ReleaseError
from lora_kit.runtime.files import read_json, write_json
from lora_kit.runtime.hashes import file_sha256, json_sha256
from lora_kit.runtime.machine import versions
from lora_kit.statistics.decisions import Decision

MANIFEST = "manifest.json"
CARD = "README.md"
RECIPE = "recipe.yaml"
EVALUATION = "evaluation"
ADAPTER = "adapter"
FORMAT = 5
"""Version of the manifest and the card. Raise it when the contents of a release or the text of its
card change, so that a release of another version is not mistaken for a manipulated one."""


class Manifest(Section):
    """Provenance and file hashes of a release."""

    format: Literal[5] = 5
    """Version of the manifest and the card."""
    name: str
    """Name of the recipe."""
    decision: Decision
    """Decision for the adapter and the merged model together."""
    acceptance: Acceptance | None
    """Acceptance of an INCONCLUSIVE verdict, with its reason."""
    backbone: dict[str, str]
    """Parts of the frozen model's fingerprint, and their digest."""
    has_encoder: bool = False
    """True for an encoder-decoder model (sequence to sequence)."""
    adapter: str
    """sha256 of the adapter's weights and configuration."""
    recipe: dict[str, Any]
    """Resolved recipe."""
    data: dict[str, Any]
    """Rows and tokens of each source, and the sha256 of all rows."""
    suites: dict[str, str]
    """sha256 of each suite, fixed before training."""
    seeds: dict[str, int]
    """Seed of the recipe, and seed of each suite's selection of items."""
    training: dict[str, Any]
    """Versions, hardware, commit and duration of training, in seconds."""
    released_with: dict[str, str]
    """Versions of the packages that built the release."""
    works: tuple[LicensedWork, ...]
    """Base model and data sources, with their stated licences."""
    warnings: tuple[str, ...]
    """Reasons why some programs cannot load a part of the release unchanged."""
    formats: dict[str, str] = Field(default_factory=dict)
    """Exported files beside the merged model, and the name of the arm that each was judged as."""
    results: dict[str, Any]
    """Path of the ledger, and number of results of each arm."""
    files: dict[str, str]
    """sha256 of every file except the manifest."""

    @property
    def resolved_recipe(self) -> Recipe:
        """Recipe, validated."""
        return Recipe.model_validate(self.recipe)

    @property
    def digest(self) -> str:
        """sha256 of the manifest without `files`, which include the card that prints the digest."""
        return json_sha256(self.model_dump(mode="json", exclude={"files"}))


def build_manifest(
    run: RunDirectory,
    clearance: Clearance,
    works: tuple[LicensedWork, ...],
    warnings: tuple[str, ...],
) -> Manifest:
    """Build the manifest of a run that passed the gate, without the hashes of files.

    Args:
        run: the run.
        clearance: result of the gate.
        works: base model and data sources with their licences.
        warnings: reasons why some programs cannot load a part of the release.

    Raises:
        ReleaseError: if the run's record lacks values that a release needs.
    """
    recipe, record = run.load_recipe(), run.load_record()
    lacking = [key for key in ("backbone", "data", "versions", "machine") if key not in record]
    if lacking:
        raise ReleaseError(
            f"{run.record}: values are missing (got no {', '.join(lacking)}). Fix: train again",
            status=2,
        )
    trained = record.get("training", {})
    return Manifest(
        name=recipe.name,
        decision=clearance.decision,
        acceptance=clearance.acceptance,
        backbone=record["backbone"],
        has_encoder=read_json(run.adapter / ADAPTER_CONFIG, ReleaseError).get("task_type")
        == SEQUENCE_TO_SEQUENCE,
        adapter=clearance.recorded.lineage.adapter,
        recipe=recipe.model_dump(mode="json"),
        data=record["data"],
        suites=dict(clearance.recorded.lineage.suite_digests),
        seeds={"recipe": recipe.seed, **{s.name: s.seed for s in read_suites(run.evaluation)}},
        training={
            **{key: record.get(key) for key in ("started", "versions", "machine", "checkout")},
            **{key: trained[key] for key in ("steps", "seconds") if key in trained},
        },
        released_with=versions(),
        works=works,
        warnings=warnings,
        formats={path.name: arm for arm, path in clearance.formats.items()},
        results={"ledger": f"{EVALUATION}/{LEDGER}", "rows": rows_by_arm(run.evaluation)},
        files={},
    )


def rows_by_arm(evaluation: Path) -> dict[str, int]:
    """Return the number of results of each arm in the ledger."""
    return Ledger(evaluation / LEDGER).rows_by_arm()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Add the hash of every file below `directory` to the manifest, and write the manifest."""
    files = {name: file_sha256(directory / name) for name in files_below(directory)}
    complete = manifest.model_copy(update={"files": files})
    write_json(directory / MANIFEST, complete.model_dump(mode="json"))


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a release.

    Raises:
        ReleaseError: if the file is not a manifest, or has another version.
    """
    path = directory / MANIFEST
    value = read_json(path, ReleaseError)
    if not isinstance(value.get("files"), dict):
        raise ReleaseError(
            f"{path}: files: not a list of files with hashes (got {value.get('files')!r:.80}). "
            "Fix: name the directory of a release"
        )
    if value.get("format") != FORMAT:
        made = value.get("released_with", value.get("versions", {}))
        version = made.get("lora-kit", "another version") if isinstance(made, Mapping) else "?"
        raise ReleaseError(
            f"{path}: this version of lora-kit verifies only format {FORMAT} (got format "
            f"{value.get('format')!r}). Fix: verify with the version that built the release "
            f"(lora-kit {version})",
            status=2,
        )
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ReleaseError(
            f"{path}: {field}: {first['msg']} (got {first['input']!r:.80}). Fix: download the "
            "release again"
        ) from error


def unexpected_files(directory: Path, expected: Mapping[str, str]) -> list[str]:
    """Describe every file that is missing, new, changed or not regular, one line each.

    Args:
        directory: the release.
        expected: sha256 of each file, from the manifest.
    """
    present = set(files_below(directory))
    problems = [f"missing: {name}" for name in sorted(set(expected) - present)]
    problems += [
        f"not in the manifest: {name}"
        for name in sorted(present - set(expected))
        if not is_hub_metadata(directory / name, name, expected)
    ]
    for name in sorted(present & set(expected)):
        # The target of a link can change without a change in this directory.
        if not stat.S_ISREG((directory / name).lstat().st_mode):
            problems.append(
                f"not a regular file: {name} (`hf download --local-dir` writes regular files)"
            )
        elif file_sha256(directory / name) != expected[name]:
            problems.append(f"changed: {name}")
    return problems


def files_below(directory: Path) -> list[str]:
    """Return the paths of all files and links below a directory, except the manifest, sorted."""
    return sorted(
        str(path.relative_to(directory).as_posix())
        for path in directory.rglob("*")
        if (path.is_symlink() or not path.is_dir()) and path != directory / MANIFEST
    )


def is_hub_metadata(path: Path, name: str, expected: Mapping[str, str]) -> bool:
    """Return True if the hub or a download from the hub wrote this file, which nothing loads.

    The hub adds `.gitattributes` to a repository; `hf download --local-dir` adds a folder with the
    version of each file.

    Args:
        path: the file.
        name: path of the file within the release.
        expected: files of the release.
    """
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 1 << 16:
        return False
    if name == ".gitattributes":
        rules = path.read_text(encoding="utf-8", errors="replace").splitlines()
        attributes = {"filter=lfs", "diff=lfs", "merge=lfs", "-text"}
        return all(set(rule.split()[1:]) <= attributes for rule in rules if rule.strip())
    folder = ".cache/huggingface/"
    rest = name.removeprefix(f"{folder}download/")
    downloaded = [*expected, MANIFEST, ".gitattributes"]
    return name in (f"{folder}.gitignore", f"{folder}CACHEDIR.TAG") or (
        rest != name
        and rest in {f"{one}.{end}" for one in downloaded for end in ("metadata", "lock")}
    )


def fingerprint_digest(parts: Mapping[str, str]) -> str | None:
    """Compute the digest of a fingerprint from its parts; `None` if parts are missing."""
    try:
        fingerprint = Fingerprint(**{key: part for key, part in parts.items() if key != "digest"})
    except TypeError:
        return None
    return fingerprint.digest
