"""Training data of preferences, rewards, embeddings, GRPO and SDFT: rows with their examples.

A preference pair gives two examples, the chosen and the rejected answer after the same prompt; a
pair of texts gives two and a triplet three, without prompts; a labelled answer (kto) or a prompt
with a reference (grpo) or demonstration (sdft) gives one. Except for embeddings, examples are
tokenized as for sft, including the end-of-turn token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_kit.data.paired_texts import encode_paired_rows
from lora_kit.data.prepared import PreparedData
from lora_kit.data.reward_inputs import encode_reward_inputs
from lora_kit.data.rows import Row
from lora_kit.data.store import tokenize_in_memory
from lora_kit.data.supervision import Example
from lora_kit.data.tokenization import tokenize_rows
from lora_kit.recipe.data import DataSpec
from lora_kit.recipe.objective import ON_POLICY, PAIRED, Objective
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Unit:
    """Row with its examples, the unit of `batch_size`.

    Attributes:
        row: the row.
        examples: chosen and rejected example of a preference pair; anchor, positive and, for a
            triplet, negative of an embedding; otherwise one example.
    """

    row: Row
    examples: tuple[Example, ...]

    @property
    def length(self) -> int:
        """Return the tokens of the longest example."""
        return max(len(example.input_ids) for example in self.examples)


@dataclass(frozen=True, eq=False)
class PreparedUnits(PreparedData):
    """Units in reading order; `examples` are those of all units, in the same order."""

    units: tuple[Unit, ...] = ()

    @property
    def size(self) -> int:
        """Return the number of units, the unit of `batch_size` and `epochs`."""
        return len(self.units)

    def origin(self, number: int) -> str:
        """Return the origin of a unit's row."""
        return self.units[number].row.origin


def prepare_units(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, spec: DataSpec, objective: Objective
) -> PreparedUnits:
    """Tokenize rows into units, and drop a row if any of its answers has no token left.

    Rows and tokens are held in memory.

    Args:
        rows: rows to tokenize.
        tokenizer: tokenizer of the backbone.
        spec: the recipe's `data` section.
        objective: the training objective.

    Raises:
        DataError: if a row is malformed, or of a kind that the objective does not support.
    """
    units: list[Unit] = []

    def encode(block: Sequence[Row]) -> list[tuple[Example, ...]]:
        tokenized = _tokenize(block, tokenizer, spec, objective)
        units.extend(unit for unit in tokenized if all(one.supervised for one in unit.examples))
        return [unit.examples for unit in tokenized]

    data = tokenize_in_memory(rows, encode, together=True)
    return PreparedUnits(data.table, data.counts, data.digest, data.dropped, units=tuple(units))


def _tokenize(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, spec: DataSpec, objective: Objective
) -> list[Unit]:
    if objective == "embedding":
        encoded = encode_paired_rows(rows, tokenizer, spec.max_length)
        return [Unit(row, texts) for row, texts in zip(rows, encoded, strict=True)]
    conversations_of_rows = [_conversations(row, objective) for row in rows]
    flat = [row for conversations in conversations_of_rows for row in conversations]
    # The last turn is the chosen, rejected or labelled answer, or the reference.
    if objective == "reward":
        examples = iter(encode_reward_inputs(flat, tokenizer, spec.max_length))
    else:
        examples = (one for (one,) in tokenize_rows(flat, tokenizer, spec.max_length, "last"))
    return [
        Unit(row, tuple(next(examples) for _ in conversations))
        for row, conversations in zip(rows, conversations_of_rows, strict=True)
    ]


def _conversations(row: Row, objective: Objective) -> list[Row]:
    """Return the conversations to tokenize for a row: two for a preference pair, otherwise one.

    Raises:
        DataError: if the row is of a kind that the objective does not support.
    """
    if any(message.trained is False for message in (*row.messages[-1:], *row.rejected)):
        raise DataError(
            f"{row.origin}: the answer is not to be trained on, but objective {objective} is about "
            "it (got a switch of the turn). Fix: remove the switch, or the row"
        )
    if objective in PAIRED:
        prompt = row.messages[: row.completion_from]
        return [row, dataclasses.replace(row, messages=prompt + row.rejected)]
    if not row.has_answer:
        roles = ", ".join(message.role for message in row.messages)
        raise DataError(
            f"{row.origin}: the objective {objective} needs a prompt and a completion as the last "
            f"turn (got {'a text' if row.text is not None else f'the turns {roles}'}). Fix: add "
            "the completion"
        )
    if objective == "kto" and row.desirable is None:
        raise DataError(
            f"{row.origin}: the objective kto needs a true or false label (got none, or another "
            'value). Fix: write {"prompt": "...", "completion": "...", "label": true}; 1 and 0 are '
            "read as true and false"
        )
    if objective in ON_POLICY and (row.tools or any(m.tool_calls or m.extra for m in row.messages)):
        raise DataError(
            f"{row.origin}: the objective {objective} supports only `role` and `content` in a turn "
            "(got tools, tool_calls or other fields). Fix: remove them"
        )
    if objective == "sdft":
        _require_demonstration(row)
        # The label of kto is not used; rows with a bad answer are refused, as in sft.
        return [row]
    # The label of kto is read; where only the prompt counts (grpo), it is a column without use.
    is_unused = objective != "kto" and row.desirable is not None
    return [dataclasses.replace(row, desirable=True if is_unused else None)]


def _require_demonstration(row: Row) -> None:
    """Refuse with DataError a row of sdft whose completion cannot be shown to the teacher."""
    *prompt, completion = row.messages
    if prompt[-1].role != "user":
        raise DataError(
            f"{row.origin}: the objective sdft shows the completion in the user's last turn, and "
            f"the prompt does not end with one (got the role {prompt[-1].role}). Fix: end the "
            "prompt with a turn of the user"
        )
    if not completion.content.strip():
        raise DataError(
            f"{row.origin}: the objective sdft shows the completion to the teacher (got an empty "
            "one). Fix: write a completion, or remove the row"
        )
