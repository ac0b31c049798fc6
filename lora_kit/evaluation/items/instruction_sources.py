"""Built-in sources of instructions, by their names in suites."""

from __future__ import annotations

from collections.abc import Callable

from lora_kit.evaluation.items import instructions, safety, structured_output, tool_calls
from lora_kit.evaluation.items.instructions import InstructionRow

INSTRUCTION_SOURCES: dict[str, Callable[[], list[InstructionRow]]] = {
    "instructions": instructions.instruction_rows,
    "safety": safety.safety_rows,
    "tool-calls": tool_calls.tool_call_rows,
    "structured-output": structured_output.structured_output_rows,
}
