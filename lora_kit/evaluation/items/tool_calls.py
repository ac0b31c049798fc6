"""Tool calls: the right function of several with arguments from the text, or an answer in words.

Functions and requests are of this project's own. Each request is given a few of the functions of
`functions.yaml`. The comparison of parsed calls follows BFCL (Patil et al. 2025, "The Berkeley
Function Calling Leaderboard"), where functions are not run either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from lora_kit.evaluation.items.instructions import InstructionRow, refuse_unknown_calls
from lora_kit.evaluation.items.parse import Text, read_entries
from lora_kit.metrics.instruction_checks import InstructionCheck
from lora_kit.recipe.section import Section

# A question, or a request, for something that the user has left out.
ASKING = ("?", "please", "tell me", "let me know", "provide", "specify")


class Function(Section):
    """Function that a model may call."""

    name: Text
    domain: Text
    description: Text
    properties: dict[Text, dict[str, Any]]
    """JSON Schemas of the arguments."""
    required: list[Text] = Field(default_factory=list)

    @property
    def tool(self) -> dict[str, Any]:
        """Description of the function in OpenAI's form."""
        parameters = {
            "type": "object",
            "properties": self.properties,
            "required": self.required,
        }
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": parameters,
        }
        return {"type": "function", "function": function}


class ToolRequest(Section):
    """Request with the functions at hand, and the calls or the words of a right response."""

    id: Text
    case: Text
    """Part of the result that the request belongs to, such as `several` for two calls."""
    functions: list[Text] = Field(min_length=1)
    prompt: Text
    calls: list[dict[str, Any]] = Field(default_factory=list)
    """Calls of a right response; empty if it calls nothing."""
    about: list[Text] = Field(default_factory=list)
    """Words of which an answer without a call has at least one."""
    asks: bool = False
    """True if a right response asks for a missing argument."""
    example: Text


def functions() -> dict[str, Function]:
    """Return all functions by name, in the order of `functions.yaml`."""
    return {one.name: one for one in read_entries("functions.yaml", Function)}


def tool_requests() -> list[ToolRequest]:
    """Return all requests, in the order of `tool_calls.yaml`."""
    return read_entries("tool_calls.yaml", ToolRequest)


def tool_call_rows() -> list[InstructionRow]:
    """Return all rows, in the order of `tool_calls.yaml`."""
    known = functions()
    return [request_row(request, known) for request in tool_requests()]


def request_row(request: ToolRequest, known: Mapping[str, Function]) -> InstructionRow:
    """Return the row of a request.

    Raises:
        ValueError: if an expected call is invalid, or of a function that is not at hand.
    """
    tools = tuple(known[name].tool for name in request.functions)
    calls = InstructionCheck.parse({"kind": "calls", "value": request.calls or "none"})
    refuse_unknown_calls((calls,), tools)
    checks = [calls]
    if request.about:
        checks.append(InstructionCheck("contains_any", tuple(request.about)))
        # A question can be two words long; an answer is asked for as a sentence.
        asks = InstructionCheck("contains_any", ASKING)
        checks.append(asks if request.asks else InstructionCheck("coherent", True))
    return InstructionRow(
        id=f"{request.case}/{request.id}",
        prompt=request.prompt,
        checks=tuple(checks),
        tools=tools,
        subset="calls" if request.calls else "no-call",
        slices={"case": request.case},
    )
