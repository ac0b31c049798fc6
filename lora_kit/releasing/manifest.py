"""The manifest: what a release came from and the sha256 of each of its files."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from lora_kit.adapter.attach import ADAPTER_CONFIG
from lora_kit.backbone.encoder_decoder import SEQUENCE_TO_SEQUENCE
from lora_kit.backbone.fingerprint import Fingerprint
from lora_kit.evaluation.assembly import LEDGER
from lora_kit.evaluation.harness import SUITES
from lora_kit.evaluation.ledger import Ledger
from lora_kit.evaluation.suite import Suite
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.section import Section
from lora_kit.releasing.acceptance import Acceptance
from lora_kit.releasing.gate import Clearance
from lora_kit.releasing.licences import Licensed
from lora_kit.runs.directory import RunDirectory, versions
from lora_kit.runtime.errors import ReleaseError
from lora_kit.runtime.files import read_json, write_json
from lora_kit.runtime.hashes import file_sha256, json_sha256
from lora_kit.statistics.decisions import Decision

MANIFEST = "manifest.json"
CARD = "README.md"
RECIPE = "recipe.yaml"
EVALUATION = "evaluation"
ADAPTER = "adapter"
FORMAT = 4
"""Raised when a release holds other things, or its card says them otherwise, so that a release of
another version is told apart from one that was tampered with."""


class Manifest(Section):
    """What a release came from."""

    format: Literal[4] = 4
    """Of this file and of the card."""
    name: str
    """The recipe's."""
    decision: Decision
    """Of the adapter and the merged model together."""
    acceptance: Acceptance | None
    """Who released a verdict that is INCONCLUSIVE said why."""
    backbone: dict[str, str]
    """Every part of the fingerprint of the frozen model, and its digest."""
    has_encoder: bool = False
    """Whether the model is an encoder with a decoder (sequence to sequence)."""
    adapter: str
    """The sha256 of the adapter's weights and configuration."""
    recipe: dict[str, Any]
    """The resolved recipe."""
    data: dict[str, Any]
    """Rows and tokens of each source, and the sha256 of all that was read."""
    suites: dict[str, str]
    """The sha256 of each suite, set before the training."""
    seeds: dict[str, int]
    """Of the recipe, and of each suite's choice of items."""
    training: dict[str, Any]
    """Versions, hardware and commit of the training, and how long it took, in seconds."""
    released_with: dict[str, str]
    """Versions that made the release."""
    works: tuple[Licensed, ...]
    """The base model and the sources, with the licences that are stated for them."""
    warnings: tuple[str, ...]
    """What keeps a program from loading a part of the release as it is."""
    results: dict[str, Any]
    """Where every item's result lies, and how many there are of each arm."""
    files: dict[str, str]
    """The sha256 of every file but this one."""

    @property
    def resolved(self) -> Recipe:
        """The recipe, as it was validated."""
        return Recipe.model_validate(self.recipe)

    @property
    def digest(self) -> str:
        """The sha256 of all that it says but for `files`, one of which is the card with this."""
        said = self.model_dump(mode="json", exclude={"files"})
        return json_sha256(said)


def collect(
    run: RunDirectory, clearance: Clearance, works: tuple[Licensed, ...], warnings: tuple[str, ...]
) -> Manifest:
    """The manifest of a run that was cleared, but for its files.

    Raises:
        ReleaseError: if the run's record lacks what a release has to say.
    """
    recipe, record = run.load_recipe(), run.load_record()
    lacking = [key for key in ("backbone", "data", "versions", "machine") if key not in record]
    if lacking:
        raise ReleaseError(f"{run.record}: says nothing of {', '.join(lacking)}", status=2)
    trained = record.get("training", {})
    return Manifest(
        name=recipe.name,
        decision=clearance.decision,
        acceptance=clearance.acceptance,
        backbone=record["backbone"],
        has_encoder=read_json(run.adapter / ADAPTER_CONFIG, ReleaseError).get("task_type")
        == SEQUENCE_TO_SEQUENCE,
        adapter=clearance.verdict["adapter"],
        recipe=recipe.model_dump(mode="json"),
        data=record["data"],
        suites=clearance.verdict["suite_digests"],
        seeds={"recipe": recipe.seed, **_suite_seeds(run.evaluation)},
        training={
            **{key: record.get(key) for key in ("started", "versions", "machine", "checkout")},
            **{key: trained[key] for key in ("steps", "seconds") if key in trained},
        },
        released_with=versions(),
        works=works,
        warnings=warnings,
        results={"ledger": f"{EVALUATION}/{LEDGER}", "rows": rows_by_arm(run.evaluation)},
        files={},
    )


def rows_by_arm(evaluation: Path) -> dict[str, int]:
    """How many results the ledger has of each arm."""
    return Ledger(evaluation / LEDGER).rows_by_arm()


def _suite_seeds(evaluation: Path) -> dict[str, int]:
    suites = json.loads((evaluation / SUITES).read_text(encoding="utf-8"))
    return {suite.name: suite.seed for suite in map(Suite.model_validate, suites)}


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Hash every file below `directory` into its manifest."""
    files = {name: file_sha256(directory / name) for name in files_below(directory)}
    whole = manifest.model_copy(update={"files": files})
    write_json(directory / MANIFEST, whole.model_dump(mode="json"))


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a release.

    Raises:
        ReleaseError: if it is none, or one of another version.
    """
    path = directory / MANIFEST
    value = read_json(path, ReleaseError)
    if not isinstance(value.get("files"), dict):
        raise ReleaseError(f"{path}: names no files, so no manifest")
    if value.get("format") != FORMAT:
        made = value.get("released_with", value.get("versions", {}))
        version = made.get("lora-kit", "another version") if isinstance(made, Mapping) else "?"
        raise ReleaseError(
            f"{path}: of format {value.get('format')!r}, this lora-kit checks {FORMAT}; check it "
            f"with the version that made it (lora-kit {version})",
            status=2,
        )
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ReleaseError(f"{path}: {field}: {first['msg']}") from error


def changed_files(directory: Path, expected: Mapping[str, str]) -> list[str]:
    """What of the files is not as the manifest says: every one that is missing, new or changed."""
    present = set(files_below(directory))
    problems = [f"missing: {name}" for name in sorted(set(expected) - present)]
    problems += [
        f"not in the manifest: {name}"
        for name in sorted(present - set(expected))
        if not left_by_the_hub(directory / name, name, expected)
    ]
    for name in sorted(present & set(expected)):
        # What a link leads to can change without a change here.
        if not stat.S_ISREG((directory / name).lstat().st_mode):
            problems.append(f"no plain file: {name} (`hf download --local-dir` makes plain ones)")
        elif file_sha256(directory / name) != expected[name]:
            problems.append(f"changed: {name}")
    return problems


def files_below(directory: Path) -> list[str]:
    """Every file below a directory but its manifest, and every link, whatever it leads to."""
    return sorted(
        str(path.relative_to(directory).as_posix())
        for path in directory.rglob("*")
        if (path.is_symlink() or not path.is_dir()) and path != directory / MANIFEST
    )


def left_by_the_hub(path: Path, name: str, expected: Mapping[str, str]) -> bool:
    """Whether the hub or a download from it wrote this file, which nothing loads.

    The hub adds `.gitattributes` to a repository; `hf download --local-dir` leaves a folder with a
    note of each file's version.
    """
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 1 << 16:
        return False
    if name == ".gitattributes":
        rules = path.read_text(encoding="utf-8", errors="replace").splitlines()
        marks = {"filter=lfs", "diff=lfs", "merge=lfs", "-text"}
        return all(set(rule.split()[1:]) <= marks for rule in rules if rule.strip())
    folder = ".cache/huggingface/"
    rest = name.removeprefix(f"{folder}download/")
    noted = [*expected, MANIFEST, ".gitattributes"]
    return name in (f"{folder}.gitignore", f"{folder}CACHEDIR.TAG") or (
        rest != name and rest in {f"{one}.{end}" for one in noted for end in ("metadata", "lock")}
    )


def fingerprint_digest(parts: Mapping[str, str]) -> str | None:
    """The digest that a fingerprint's parts have; `None` if they are not all there."""
    try:
        made = Fingerprint(**{key: value for key, value in parts.items() if key != "digest"})
    except TypeError:
        return None
    return made.digest
