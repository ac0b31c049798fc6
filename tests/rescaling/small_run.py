"""A small run to rescale: its suites, and what a command makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_kit.cli import main
from lora_kit.evaluation.harness import LEDGER
from lora_kit.evaluation.ledger import DRIFT, Entry, read_ledger

GAIN = """
name: aim
role: gain
tasks:
  - {name: sums, kind: loss, source: ITEMS, max_length: 64}
"""
KEEP = """
name: keep
role: retention
tasks:
  - {name: prose, kind: loss, source: python-reference, limit: 30, max_length: 16, margin: MARGIN}
"""
SUMS, PROSE = 24, 30


def suite(directory: Path, text: str, **values: object) -> str:
    for name, value in values.items():
        text = text.replace(name, str(value))
    path = directory / f"{'-'.join(map(str, values.values())).replace('/', '')}.yaml"
    path.write_text(text)
    return str(path)


def recorded(run: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run / "rescale.json").read_text())
    return value


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def entries(run: Path, half: str) -> list[Entry]:
    return [e for e in read_ledger(run / "rescale" / half / LEDGER) if e.arm != DRIFT]
