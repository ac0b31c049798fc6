"""Rows for tests of the audit, and the audit of some rows."""

from collections.abc import Sequence
from typing import Any

from lora_kit.data.audit.audit import audit
from lora_kit.data.audit.findings import Audit
from lora_kit.data.rows import Message, Row
from lora_kit.data.tokenization import tokenize
from lora_kit.recipe.data import AuditSpec

VOCABULARY = [f"word{number}" for number in range(5000)]


def chat(prompt: str, answer: str, origin: str = "chats.jsonl:1") -> Row:
    return Row(origin, origin, (Message("user", prompt), Message("assistant", answer)))


def prose(text: str, origin: str = "prose.txt:1") -> Row:
    return Row(origin, origin, text=text)


def sums(start: int, count: int) -> list[Row]:
    return [
        chat(f"What is {n} plus {n + 3}?", f"{n} plus {n + 3} is {2 * n + 3}.", f"sums:{n}")
        for n in range(start, start + count)
    ]


def look(
    rows: Sequence[Row],
    tokenizer: Any,
    *,
    held_out: Sequence[Row] = (),
    max_length: int = 128,
    **limits: float,
) -> Audit:
    examples = [tokenize(row, tokenizer, max_length) for row in rows]
    return audit(rows, examples, [], held_out, tokenizer, AuditSpec.model_validate(limits))
