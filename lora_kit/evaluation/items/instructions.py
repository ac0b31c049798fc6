"""Instructions with checks that a program can verify, and their rows in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_kit.evaluation.items.parse import read_item_file
from lora_kit.metrics.instruction_checks import InstructionCheck
from lora_kit.metrics.json_schemas import check_schema
from lora_kit.metrics.json_values import STRICT_JSON


@dataclass(frozen=True)
class InstructionRow:
    """Instruction and the checks of its response."""

    id: str
    prompt: str
    checks: tuple[InstructionCheck, ...]
    """Checks that the response has to pass; at least one."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Functions that the model may call, as JSON Schema in OpenAI's form."""
    subset: str = ""
    """Part of a built-in source, which `subset` of a task selects."""
    cluster: str = ""
    """Label shared by rows of a built-in source that are not independent; empty: the id."""
    slices: Mapping[str, str] = field(default_factory=dict)
    """Values by which the result of a built-in source is broken down."""


def instruction_rows() -> list[InstructionRow]:
    """Return all instructions, in the order of `instructions.yaml`."""
    rows = [parse_instruction(mapping) for mapping in read_item_file("instructions.yaml")]
    return [
        InstructionRow(row.id, row.prompt, row.checks, slices={"check": row.checks[0].kind})
        for row in rows
    ]


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
        tools = parse_tools(mapping.get("tools"))
        if tools:
            refuse_unknown_calls(parsed, tools)
        return InstructionRow(name, prompt, parsed, tools)
    except ValueError as error:
        raise ValueError(f"instruction {name!r}: {error}") from error


def parse_tools(value: object) -> tuple[Mapping[str, Any], ...]:
    """Parse the functions that a model may call, given as objects or as JSON text.

    Raises:
        ValueError: if the value is no list of functions with names and parameters.
    """
    if value is None:
        return ()
    if isinstance(value, str):  # a table without nested columns, such as CSV
        try:
            value = STRICT_JSON.decode(value)
        except ValueError as error:
            raise ValueError(
                f"tools: not valid JSON (got {value!r:.60}). Fix: correct it ({error})"
            ) from error
    if not isinstance(value, list):
        raise ValueError(
            f"tools: expected a list of functions (got {value!r:.60}). Fix: write "
            '[{"type": "function", "function": {"name": ..., "parameters": ...}}]'
        )
    for number, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(
                f"tools[{number}]: expected a function with a name (got {tool!r:.60}). Fix: write "
                '{"type": "function", "function": {"name": ..., "parameters": ...}}'
            )
        try:
            check_schema(function.get("parameters", {}))
        except ValueError as error:
            raise ValueError(f"tools[{number}].function.parameters: {error}") from error
    return tuple(value)


def refuse_unknown_calls(
    checks: tuple[InstructionCheck, ...], tools: tuple[Mapping[str, Any], ...]
) -> None:
    """Refuse an expected call of a function that the model is not given.

    Raises:
        ValueError: if a function is not among the tools.
    """
    names = [tool["function"]["name"] for tool in tools]
    for check in checks:
        if check.kind != "calls" or not isinstance(check.value, tuple):
            continue
        for call in check.value:
            assert isinstance(call, Mapping)  # the check is parsed
            if call["name"] not in names:
                raise ValueError(
                    f"calls: no function of `tools` (got {call['name']!r}). Fix: use one of "
                    f"{', '.join(names)}"
                )
