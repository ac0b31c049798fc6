"""Which fields of a recipe decide what is trained: the one definition of "the same training"."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_kit.recipe.document import read_document
from lora_kit.runtime.hashes import json_sha256

# Sections that are read after training, and the name, which only names the run directory.
AFTER_TRAINING = ("name", "evaluation", "merge", "sweep")
# Fields that change nothing of what is trained. A licence may be stated after training.
WITHOUT_EFFECT = re.compile(
    r"training\.(save_steps|save_total_limit|report_to)"
    r"|(backbone|training\.distillation\.teacher|data\.augmentation\.paraphrase\.writer)\.license"
    r"|data\.((train|validation|unlabeled\.texts|reweight\.target)\.\d+|replay)\.license"
    r"|training\.domain_alignment\.target\.\d+\.license"
    r"|retention\.\w+\.license"
)


def training_fields(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a recipe that decide what is trained, by dotted name.

    Args:
        recipe: the recipe as a mapping, such as `model_dump(mode="json")` or a YAML document. A
            document may have fields that this version does not know; they count.
    """
    return {
        name: value
        for name, value in dotted_fields(recipe)
        if name.partition(".")[0] not in AFTER_TRAINING and not WITHOUT_EFFECT.fullmatch(name)
    }


def dotted_fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of each field of a mapping, also within lists.

    Args:
        value: the mapping.
        path: dotted name of the mapping itself; empty for a whole recipe.
    """
    if isinstance(value, Mapping):
        inner = list(value.items())
    elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        inner = list(enumerate(value))
    else:
        yield path, value
        return
    for name, one in inner:
        yield from dotted_fields(one, f"{path}.{name}" if path else str(name))


def training_digest(path: Path) -> str:
    """Return the sha256 of the fields in a recipe file that decide what is trained.

    Raises:
        RecipeError: if the file is not a YAML mapping.
    """
    return json_sha256(training_fields(read_document(path).value))
