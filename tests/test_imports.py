"""Packages that take long to import and are seldom needed are imported where they are used."""

import ast
from pathlib import Path

LATE = {"cleanlab", "sklearn", "matplotlib", "lm_eval", "evaluate"}


def test_slow_packages_are_not_imported_with_a_module() -> None:
    found = []
    for path in sorted((Path(__file__).parents[1] / "lora_kit").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.partition(".")[0] in LATE for name in names):
                found.append(f"{path.name}:{node.lineno}")
    assert not found, found
