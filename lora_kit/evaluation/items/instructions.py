"""Short instructions with constraints that a program can verify: form only, not facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lora_kit.evaluation.items.parse import read_item_file
from lora_kit.metrics.instruction_checks import InstructionCheck


@dataclass(frozen=True)
class InstructionRow:
    """Instruction and the checks of its response."""

    id: str
    prompt: str
    checks: tuple[InstructionCheck, ...]
    """Checks that the response has to pass; at least one."""


def instruction_rows() -> list[InstructionRow]:
    """Return all instructions, in the order of `instructions.yaml`."""
    return [parse_instruction(mapping) for mapping in read_item_file("instructions.yaml")]


def parse_instruction(mapping: Mapping[str, object]) -> InstructionRow:
    """Parse an instruction from a YAML mapping; only tests read its `example`.

    Raises:
        ValueError: if a field is missing or has the wrong type, or a check is invalid.
    """
    name, prompt, checks = (mapping.get(key) for key in ("id", "prompt", "checks"))
    if not (isinstance(name, str) and isinstance(prompt, str) and name and prompt.strip()):
        raise ValueError(
            f"an instruction needs an id and a prompt (got {mapping!r}). Fix: add `id` and `prompt`"
        )
    if not isinstance(checks, list) or not checks:
        raise ValueError(
            f"instruction {name!r}: needs a list of checks (got {checks!r}). Fix: add `checks`"
        )
    try:
        parsed = tuple(InstructionCheck.parse(check) for check in checks)
        return InstructionRow(name, prompt, parsed)
    except ValueError as error:
        raise ValueError(f"instruction {name!r}: {error}") from error
