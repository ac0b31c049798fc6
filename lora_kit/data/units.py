"""What the objectives besides sft learn from: a row, and the examples that it is made into.

A pair of preference gives two examples, its chosen and its rejected answer behind the same prompt;
an answer with a label one, and so does a prompt with its reference. They are tokenized as those of
sft are, the end of the turn with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from lora_kit.data.answered import encode_answered
from lora_kit.data.files.tables import BLOCK
from lora_kit.data.prepared import SCHEMA, PreparedData, Tally
from lora_kit.data.row_sets import Rows
from lora_kit.data.rows import Row
from lora_kit.data.tokenization import Example, tokenize_rows
from lora_kit.recipe.data import DataSpec
from lora_kit.recipe.objective import PAIRED, Objective
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Unit:
    """What `batch_size` counts one of.

    Attributes:
        row: that it is of.
        examples: of a pair the chosen and the rejected one, else one.
    """

    row: Row
    examples: tuple[Example, ...]

    @property
    def length(self) -> int:
        """Tokens of its longest example."""
        return max(len(example.input_ids) for example in self.examples)


@dataclass(frozen=True, eq=False)
class PreparedUnits(PreparedData):
    """Units in the order in which they were read; `examples` are all of theirs, in that order."""

    units: tuple[Unit, ...] = ()

    @property
    def size(self) -> int:
        """What `batch_size` and `epochs` count: the units."""
        return len(self.units)

    def origin(self, number: int) -> str:
        """Where one of what `size` counts came from."""
        return self.units[number].row.origin


def prepare_units(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, spec: DataSpec, objective: Objective
) -> PreparedUnits:
    """Tokenize rows; those of which an answer has no token within `max_length` are dropped whole.

    Args:
        rows: in memory afterwards, with their tokens.
        tokenizer: of the backbone.
        spec: how they are read.
        objective: of the training.

    Raises:
        DataError: if a row is wrong, or not what the objective learns from.
    """
    tally = Tally([one.name for one in rows.sources] if isinstance(rows, Rows) else ["rows"])
    units: list[Unit] = []
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        for block, parts in _blocks(rows):
            made = _tokenized(block, tokenizer, spec, objective)
            used: list[Example] = []
            sources: list[int] = []
            for unit, part in zip(made, parts, strict=True):
                if tally.add_whole(unit.row, part, unit.examples):
                    units.append(unit)
                    used += unit.examples
                    sources += [part] * len(unit.examples)
            if used:
                writer.write_batch(tally.record(used, sources))
    table = pa.ipc.open_stream(sink.getvalue()).read_all()
    return PreparedUnits(
        table, tally.counts(), tally.digest(), tuple(tally.dropped), units=tuple(units)
    )


def _tokenized(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, spec: DataSpec, objective: Objective
) -> list[Unit]:
    several = [_conversations(row, objective) for row in rows]
    flat = [row for conversations in several for row in conversations]
    # The last turn is what was chosen, rejected, judged or is the reference.
    if objective == "reward":
        examples = iter(encode_answered(flat, tokenizer, spec.max_length))
    else:
        examples = (one for (one,) in tokenize_rows(flat, tokenizer, spec.max_length, "last"))
    return [
        Unit(row, tuple(next(examples) for _ in conversations))
        for row, conversations in zip(rows, several, strict=True)
    ]


def _conversations(row: Row, objective: Objective) -> list[Row]:
    """What is tokenized of a row.

    Raises:
        DataError: if it is not what the objective learns from.
    """
    if objective in PAIRED:
        prompt = row.messages[: row.completion_from]
        return [row, dataclasses.replace(row, messages=prompt + row.rejected)]
    if not row.answered:
        raise DataError(
            f"{row.origin}: the objective {objective} learns from a prompt and a completion, which "
            f"is the assistant's last turn; found {_found(row)}"
        )
    if objective == "kto" and row.desirable is None:
        raise DataError(
            f"{row.origin}: the objective kto wants to know whether the completion is a good one: "
            '{"prompt": "...", "completion": "...", "label": true}'
        )
    if objective == "grpo" and (row.tools or any(m.tool_calls or m.extra for m in row.messages)):
        raise DataError(
            f"{row.origin}: the objective grpo asks with plain turns; tools, tool_calls and other "
            "fields of a turn would be left out"
        )
    return [row]


def _found(row: Row) -> str:
    if row.text is not None:
        return "a text"
    return "the turns " + ", ".join(message.role for message in row.messages)


def _blocks(rows: Sequence[Row]) -> Iterator[tuple[list[Row], list[int]]]:
    """Some rows at a time, and the number of each one's source."""
    parts = rows.parts if isinstance(rows, Rows) else np.zeros(len(rows), np.int32)
    remaining, start = iter(rows), 0
    while block := list(islice(remaining, BLOCK)):
        yield block, parts[start : start + len(block)].tolist()
        start += len(block)
