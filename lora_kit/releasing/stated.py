"""Where licences are stated: in the recipe, beside the weights, in a GGUF file, or nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard

import yaml

from lora_kit.backbone.files import ALIASES, BackboneFiles, package_file, resolve
from lora_kit.data.files.tables import is_hub_id
from lora_kit.data.sources import BUILT_IN_LICENSES
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.data import SELF, ReplaySpec, SourceSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.retention import TextsSpec
from lora_kit.releasing.licences import Licensed
from lora_kit.runtime.errors import BackboneError

NOWHERE = "nowhere"
IN_RECIPE = "the recipe"


def works(recipe: Recipe) -> tuple[Licensed, ...]:
    """The base model and every source of a recipe, each with the licence that is stated for it."""
    data, kept = recipe.data, recipe.retention
    return (
        _base(recipe.backbone),
        *(_source(one, "train") for one in data.train),
        *([_source(data.replay, "replay")] if _is_replayed(data.replay) else []),
        *(_source(one, "retention") for one in (kept.kl, kept.ewc) if one),
        *(_source(one, "validation") for one in data.validation),
        *([_source(kept.early_stopping, "validation")] if kept.early_stopping else []),
    )


def _is_replayed(replay: ReplaySpec | None) -> TypeGuard[ReplaySpec]:
    """Whether it is somebody's work, which the base's own words are not."""
    return replay is not None and replay.fraction > 0 and replay.source != SELF


def shown(reference: str) -> str:
    """A reference without the folders of the machine that it was made on."""
    path = Path(reference).expanduser()
    return path.name if path.is_absolute() else reference


def _base(spec: BackboneSpec) -> Licensed:
    alias = ALIASES.get(spec.model)
    license_, stated = _of_base(spec)
    return Licensed(
        work=alias.hub if alias else shown(spec.model),
        used="base",
        license=license_,
        stated=stated,
        hub=bool(alias) or (is_hub_id(spec.model) and ":" not in spec.model),
    )


def _of_base(spec: BackboneSpec) -> tuple[str | None, str]:
    if spec.license is not None:
        return spec.license, IN_RECIPE
    if spec.model in ALIASES:
        return ALIASES[spec.model].license, "lora_kit's alias"
    path = Path(spec.model).expanduser()
    if spec.model.startswith("package:"):
        path = package_file(spec.model) or path
    if path.suffix == ".gguf":
        found = _gguf_license(path)
        return found, "the GGUF file" if found else NOWHERE
    try:
        directory = path if path.is_dir() else _on_this_machine(spec).directory
    except BackboneError:
        return None, NOWHERE
    return _front_matter_license(directory)


def _on_this_machine(spec: BackboneSpec) -> BackboneFiles:
    return resolve(spec, allow_network=False)


def _source(spec: SourceSpec | ReplaySpec | TextsSpec, used: str) -> Licensed:
    license_, stated = _of_source(spec)
    return Licensed.model_validate(
        {
            "work": shown(spec.source),
            "used": used,
            "license": license_,
            "stated": stated,
            "hub": spec.source not in BUILT_IN_LICENSES and is_hub_id(spec.source),
        }
    )


def _of_source(spec: SourceSpec | ReplaySpec | TextsSpec) -> tuple[str | None, str]:
    if spec.license is not None:
        return spec.license, IN_RECIPE
    if spec.source in BUILT_IN_LICENSES:
        return BUILT_IN_LICENSES[spec.source]
    return _front_matter_license(Path(spec.source).expanduser())


def _gguf_license(path: Path) -> str | None:
    from gguf import GGUFReader

    try:
        field = GGUFReader(path).get_field("general.license")
    except (OSError, ValueError):
        return None
    return _text(field.contents()) if field else None


def _front_matter_license(directory: Path) -> tuple[str | None, str]:
    """What the card of a model or of data says: `license`, or the name of another one."""
    path = directory / "README.md"
    try:
        text = path.read_text(encoding="utf-8")
        head, mark, _ = text.removeprefix("---\n").partition("\n---")
        values = yaml.safe_load(head) if mark and text.startswith("---\n") else None
    except (OSError, ValueError, yaml.YAMLError):
        values = None
    if not isinstance(values, dict):
        return None, NOWHERE
    stated = values.get("license")
    # Such as `license: other` with `license_name: qwen-research`.
    found = _text(values.get("license_name") if stated in (None, "other") else stated)
    return found, "its README.md" if found else NOWHERE


def _text(value: object) -> str | None:
    """A text that names a licence; the hub's `unknown` and `other` name none."""
    if isinstance(value, list) and value:
        value = " AND ".join(str(one) for one in value)
    named = isinstance(value, str) and value.strip().lower() not in ("", "unknown", "other")
    return str(value).strip()[:200] if named else None
