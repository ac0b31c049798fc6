"""Lookup of stated licences: in the recipe, next to the weights, or in a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lora_kit.backbone.card import card_license, license_name
from lora_kit.backbone.files import ALIASES, package_file, resolve
from lora_kit.data.files.tables import is_hub_id
from lora_kit.data.sources import BUILT_IN
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.data import ReplaySpec, SourceSpec
from lora_kit.recipe.outside import named_models, named_sources
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.retention import TextsSpec
from lora_kit.releasing.licences import LicensedWork
from lora_kit.runtime.errors import BackboneError

NOWHERE = "nowhere"
IN_RECIPE = "the recipe"
ModelUse = Literal["base", "teacher", "writer"]
# Use of the model that a field names.
MODELS: dict[str, ModelUse] = {
    "backbone": "base",
    "training.distillation.teacher": "teacher",
    "data.augmentation.paraphrase.writer": "writer",
}


def licensed_works(recipe: Recipe) -> tuple[LicensedWork, ...]:
    """Return every model and data source of a recipe, with their stated licences."""
    return (
        *(_model(spec, MODELS[field]) for field, spec in named_models(recipe)),
        *(_source(spec, _use(field)) for field, spec in named_sources(recipe)),
    )


def _use(field: str) -> str:
    """Return the use of the source that a field names."""
    if field == "retention.early_stopping":
        return "validation"
    section, name, *_ = field.split(".")
    if section == "retention":
        return section
    return name if name in ("replay", "validation") else "train"


def without_folders(reference: str) -> str:
    """Return a reference without the folders of the local machine, which must not be published."""
    path = Path(reference).expanduser()
    return path.name if path.is_absolute() else reference


def _model(spec: BackboneSpec, used: ModelUse) -> LicensedWork:
    alias = ALIASES.get(spec.model)
    license_, stated = _base_license(spec)
    return LicensedWork(
        work=alias.hub if alias else without_folders(spec.model),
        used=used,
        license=license_,
        stated=stated,
        hub=bool(alias) or (is_hub_id(spec.model) and ":" not in spec.model),
    )


def _base_license(spec: BackboneSpec) -> tuple[str | None, str]:
    """Return the licence of the base, and the place where it is stated."""
    if spec.license is not None:
        return spec.license, IN_RECIPE
    if spec.model in ALIASES:
        return ALIASES[spec.model].license, "lora_kit's alias"
    path = Path(spec.model).expanduser()
    if spec.model.startswith("package:"):
        path = package_file(spec.model) or path
    if path.suffix == ".gguf":
        license_ = _gguf_license(path)
        return license_, "the GGUF file" if license_ else NOWHERE
    try:
        directory = path if path.is_dir() else resolve(spec, allow_network=False).directory
    except BackboneError:
        return None, NOWHERE
    return _card_license(directory)


def _source(spec: SourceSpec | ReplaySpec | TextsSpec, used: str) -> LicensedWork:
    license_: str | None
    if spec.license is not None:
        license_, stated = spec.license, IN_RECIPE
    elif spec.source in BUILT_IN:
        license_, stated = BUILT_IN[spec.source].license
    else:
        license_, stated = _card_license(Path(spec.source).expanduser())
    return LicensedWork.model_validate(
        {
            "work": without_folders(spec.source),
            "used": used,
            "license": license_,
            "stated": stated,
            "hub": spec.source not in BUILT_IN and is_hub_id(spec.source),
        }
    )


def _gguf_license(path: Path) -> str | None:
    from gguf import GGUFReader

    try:
        field = GGUFReader(path).get_field("general.license")
    except (OSError, ValueError):
        return None
    return license_name(field.contents()) if field else None


def _card_license(directory: Path) -> tuple[str | None, str]:
    name = card_license(directory)
    return name, "its README.md" if name else NOWHERE
