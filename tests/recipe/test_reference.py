"""The committed reference pages and schemas are those that the classes generate."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from typer.testing import CliRunner

from lora_kit.cli.app import app
from lora_kit.evaluation.suite import Suite
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.section import Section, inner_section

ROOT = Path(__file__).parents[2]
GENERATED = {
    "recipes/recipe.schema.json": ["schema"],
    "recipes/REFERENCE.md": ["schema", "--markdown"],
    "eval/suites/suite.schema.json": ["schema", "suite"],
    "eval/REFERENCE.md": ["schema", "suite", "--markdown"],
}
DOCUMENTS = sorted([*ROOT.glob("recipes/*.yaml"), *ROOT.glob("eval/suites/*.yaml")])


@pytest.mark.parametrize("file", GENERATED)
def test_a_committed_reference_is_current(file: str) -> None:
    printed = CliRunner().invoke(app, GENERATED[file])
    assert printed.exit_code == 0
    assert (ROOT / file).read_text() == printed.stdout, "run `make reference`"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_a_bundled_document_names_a_schema_that_holds_all_its_fields(path: Path) -> None:
    first_line = path.read_text().splitlines()[0]
    assert first_line.startswith("# yaml-language-server: $schema=")
    schema = json.loads((path.parent / first_line.partition("$schema=")[2]).read_text())
    unknown = yaml.safe_load(path.read_text()).keys() - schema["properties"].keys()
    assert not unknown
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("file", ["recipes/recipe.schema.json", "eval/suites/suite.schema.json"])
def test_an_editor_knows_every_bound(file: str) -> None:
    schema = json.loads((ROOT / file).read_text())
    sections = [schema, *schema["$defs"].values()]
    fields = {name: field for one in sections for name, field in one.get("properties", {}).items()}
    keywords = {
        *("type", "enum", "const", "items", "anyOf", "$ref", "additionalProperties", "pattern"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems"),
        *("minProperties", "minLength"),
        *("title", "description", "default"),
    }
    assert not set[str]().union(*fields.values()) - keywords
    assert fields["tasks" if "suites" in file else "train"]["minItems"] == 1
    assert fields["seed"]["minimum"] == 0


def sections(model: type[Section]) -> Iterator[type[Section]]:
    """Yield a model and every section below it."""
    yield model
    for field in model.model_fields.values():
        inner, _ = inner_section(field.annotation)
        if inner is not None:
            yield from sections(inner)


@pytest.mark.parametrize("model", [Recipe, Suite])
def test_the_bound_that_pydantic_keeps_is_the_narrower_one(model: type[Section]) -> None:
    narrower = {Ge: max, Gt: max, Le: min, Lt: min, MinLen: max}
    for section in sections(model):
        for name, field in section.model_fields.items():
            for kind, choose in narrower.items():
                bounds = [bound for bound in field.metadata if isinstance(bound, kind)]
                values = [dataclasses.astuple(bound)[0] for bound in bounds]
                assert not values or values[-1] == choose(values), f"{section.__name__}.{name}"
