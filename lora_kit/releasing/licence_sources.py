"""Lookup of stated licences: in the recipe, next to the weights, or in a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard

import yaml

from lora_kit.backbone.files import ALIASES, package_file, resolve
from lora_kit.data.files.tables import is_hub_id
from lora_kit.data.sources import BUILT_IN
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
    return _front_matter_license(directory)


def _source(spec: SourceSpec | ReplaySpec | TextsSpec, used: str) -> LicensedWork:
    license_: str | None
    if spec.license is not None:
        license_, stated = spec.license, IN_RECIPE
    elif spec.source in BUILT_IN:
        license_, stated = BUILT_IN[spec.source].license
    else:
        license_, stated = _front_matter_license(Path(spec.source).expanduser())
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
    return _license_name(field.contents()) if field else None


def _front_matter_license(directory: Path) -> tuple[str | None, str]:
    """Return `license` or `license_name` of a model's or data set's card, and its place."""
    path = directory / "README.md"
    try:
        text = path.read_text(encoding="utf-8")
        head, mark, _ = text.removeprefix("---\n").partition("\n---")
        values = yaml.safe_load(head) if mark and text.startswith("---\n") else None
    except (OSError, ValueError, yaml.YAMLError):
        values = None
    if not isinstance(values, dict):
        return None, NOWHERE
    license_ = values.get("license")
    # For example `license: other` with `license_name: qwen-research`.
    name = _license_name(values.get("license_name") if license_ in (None, "other") else license_)
    return name, "its README.md" if name else NOWHERE


def _license_name(value: object) -> str | None:
    """Return the name of a licence; `None` for the hub's `unknown` and `other`."""
    if isinstance(value, list) and value:
        value = " AND ".join(str(one) for one in value)
    is_name = isinstance(value, str) and value.strip().lower() not in ("", "unknown", "other")
    return str(value).strip()[:200] if is_name else None
