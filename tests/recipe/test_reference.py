"""The committed reference pages and schemas are those that the classes generate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lora_kit.cli.app import app

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
