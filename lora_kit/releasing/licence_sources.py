"""Lookup of stated licences: in the recipe, next to the weights, or in a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard

from lora_kit.backbone.card import card_license, license_name
from lora_kit.backbone.files import ALIASES, package_file, resolve
from lora_kit.data.files.tables import is_hub_id
from lora_kit.data.sources import BUILT_IN_LICENSES
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.data import SELF, ReplaySpec, SourceSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.retention import TextsSpec
from lora_kit.releasing.licences import LicensedWork
from lora_kit.runtime.errors import BackboneError

NOWHERE = "nowhere"
IN_RECIPE = "the recipe"


def licensed_works(recipe: Recipe) -> tuple[LicensedWork, ...]:
    """Return the base model and every data source of a recipe, with their stated licences."""
    data, retention = recipe.data, recipe.retention
    return (
        _base(recipe.backbone),
        *(_source(one, "train") for one in data.train),
        *([_source(data.replay, "replay")] if _is_replayed(data.replay) else []),
        *(_source(one, "retention") for one in (retention.kl, retention.ewc) if one),
        *(_source(one, "validation") for one in data.validation),
        *([_source(retention.early_stopping, "validation")] if retention.early_stopping else []),
    )


def _is_replayed(replay: ReplaySpec | None) -> TypeGuard[ReplaySpec]:
    """Return True if replay uses a source, and not rows that the base generates."""
    return replay is not None and replay.fraction > 0 and replay.source != SELF


def without_folders(reference: str) -> str:
    """Return a reference without the folders of the local machine, which must not be published."""
    path = Path(reference).expanduser()
    return path.name if path.is_absolute() else reference


def _base(spec: BackboneSpec) -> LicensedWork:
    alias = ALIASES.get(spec.model)
    license_, stated = _base_license(spec)
    return LicensedWork(
        work=alias.hub if alias else without_folders(spec.model),
        used="base",
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
    elif spec.source in BUILT_IN_LICENSES:
        license_, stated = BUILT_IN_LICENSES[spec.source]
    else:
        license_, stated = _card_license(Path(spec.source).expanduser())
    return LicensedWork.model_validate(
        {
            "work": without_folders(spec.source),
            "used": used,
            "license": license_,
            "stated": stated,
            "hub": spec.source not in BUILT_IN_LICENSES and is_hub_id(spec.source),
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
