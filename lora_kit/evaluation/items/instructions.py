"""Short requests with constraints that a program can check: form only, not whether it is true."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import yaml

from lora_kit.metrics.instruction_checks import Check


@dataclass(frozen=True)
class InstructionRow:
    """One request and what its response must satisfy."""

    id: str
    prompt: str
    checks: tuple[Check, ...]
    """All must hold; at least one."""


def rows() -> list[InstructionRow]:
    """All instructions, in the order of `instructions.yaml`."""
    items = resources.files("lora_kit.evaluation.items")
    text = items.joinpath("instructions.yaml").read_text("utf-8")
    return [parse(mapping) for mapping in yaml.safe_load(text)]


def parse(mapping: Mapping[str, object]) -> InstructionRow:
    """The instruction that a YAML mapping describes; its `example` is for the tests.

    Raises:
        ValueError: a part is missing or of the wrong type, or a check is not valid.
    """
    name, prompt, checks = (mapping.get(key) for key in ("id", "prompt", "checks"))
    if not (isinstance(name, str) and isinstance(prompt, str) and name and prompt):
        raise ValueError(f"an instruction needs an id and a prompt: {mapping!r}")
    if not isinstance(checks, list) or not checks:
        raise ValueError(f"instruction {name!r} needs a list of checks")
    try:
        return InstructionRow(name, prompt, tuple(Check.parse(check) for check in checks))
    except ValueError as error:
        raise ValueError(f"instruction {name!r}: {error}") from error
