"""Whatever a row holds is read, refused by name, or listed as not used: each format and family.

Each text of a random row is one of its own, which is looked for afterwards.
"""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_kit.data.formats import FORMATS, ON_REQUEST, parse_row
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.data.tokenization import tokenize_rows
from lora_kit.data.units import prepare_units
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.tasks import build_task
from lora_kit.recipe.data import DataSpec
from lora_kit.recipe.objective import FORMATS_OF
from lora_kit.runtime.errors import DataError
from tests.families import FAMILIES, family_tokenizer

ROWS = 25
# Fields of a turn, and columns, beside those of the formats.
TURN_FIELDS = ("name", "reasoning_content", "thinking", "citation", "tool_call_id")
COLUMNS = ("source", "context", "lang", "history_id", "explanation")


class Draw:
    """Random rows whose texts are all different."""

    def __init__(self, seed: str):
        """Start with no texts drawn."""
        self.random = random.Random(seed)
        self.texts: dict[str, str] = {}

    def text(self, field: str) -> str:
        """Return a text that no other field has."""
        text = f"w{len(self.texts)}x{self.random.randrange(10**6)}y"
        self.texts[text] = field
        return text

    def maybe(self, chance: float = 0.4) -> bool:
        """Return True with a chance."""
        return self.random.random() < chance

    def turns(self, role: str, content: str, names: dict[str, str]) -> list[dict[str, Any]]:
        """Return one to three exchanges, perhaps with other fields."""
        roles = ["user", "assistant"] * self.random.randrange(1, 4)
        if self.maybe():
            roles = ["system", *roles]
        turns = []
        for one in roles:
            turn: dict[str, Any] = {role: names.get(one, one), content: self.text(one)}
            for field in TURN_FIELDS:
                if self.maybe(0.03):
                    turn[field] = self.text(field)
            turns.append(turn)
        return turns


def messages(draw: Draw) -> dict[str, Any]:
    return {"messages": draw.turns("role", "content", {})}


def sharegpt(draw: Draw) -> dict[str, Any]:
    return {"conversations": draw.turns("from", "value", {"user": "human", "assistant": "gpt"})}


def prompt_completion(draw: Draw) -> dict[str, Any]:
    return {"prompt": draw.text("user"), "completion": draw.text("assistant")}


def alpaca(draw: Draw) -> dict[str, Any]:
    row: dict[str, Any] = {"instruction": draw.text("user"), "output": draw.text("assistant")}
    if draw.maybe():
        row["input"] = draw.text("user")
    if draw.maybe():
        row["history"] = [[draw.text("user"), draw.text("assistant")]]
    return row


def plain_text(draw: Draw) -> dict[str, Any]:
    return {"text": draw.text("assistant")}


CONVERSATIONS: dict[str, Callable[[Draw], dict[str, Any]]] = {
    "messages": messages,
    "sharegpt": sharegpt,
    "prompt-completion": prompt_completion,
    "alpaca": alpaca,
}
READ: dict[str, Callable[[Draw], dict[str, Any]]] = {**CONVERSATIONS, "text": plain_text}


def random_rows(form: str, family: str) -> Iterator[tuple[dict[str, Any], Draw]]:
    """Yield random rows of a format, with columns that it may not know."""
    for number in range(ROWS):
        draw = Draw(f"{form}/{family}/{number}")
        row = READ[form](draw)
        for column in (*COLUMNS, *(("system",) if form != "text" else ())):
            if draw.maybe(0.15):
                row[column] = draw.text(column)
        yield row, draw


def tokenized(row: dict[str, Any], tokenizer: Any) -> tuple[list[Example], tuple[str, ...]] | str:
    """Return the examples of a row and what is listed as not used, or the refusal."""
    try:
        parsed = parse_row(row, "rows.jsonl:1")
        (examples,) = tokenize_rows([parsed], tokenizer, 2048, "assistant")
    except DataError as error:
        return str(error)
    return examples, (*parsed.unused, *(name for one in examples for name in one.unwritten))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", READ)
def test_each_text_is_read_refused_or_listed(tokenizer: Any, form: str, family: str) -> None:
    changed = family_tokenizer(tokenizer, family)
    accepted = 0
    for row, draw in random_rows(form, family):
        found = tokenized(row, changed)
        if isinstance(found, str):
            assert "rows.jsonl:1" in found
            fields = set(draw.texts.values())
            is_named = any(f"`{field}`" in found or f"the {field}'s" in found for field in fields)
            assert is_named or "rejects" in found, found
            continue
        accepted += 1
        examples, listed = found
        read = " ".join(changed.decode(list(one.input_ids)) for one in examples)
        learned = " ".join(
            changed.decode([label for label in one.labels if label != IGNORE_INDEX])
            for one in examples
        )
        for text, field in draw.texts.items():
            assert text in read or field in listed or f"turns.{field}" in listed, (field, row)
            is_answer = field == "assistant" or (text in learned and field in TURN_FIELDS)
            # The first token of a plain text has nothing to be predicted from.
            assert (text in learned) == is_answer or form == "text", (field, row)
    assert accepted > ROWS // 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", READ)
def test_a_suite_reads_a_row_as_training_does(
    tokenizer: Any, form: str, family: str, tmp_path: Path
) -> None:
    changed = family_tokenizer(tokenizer, family)
    for number, (row, _) in enumerate(random_rows(form, family)):
        trained = tokenized(row, changed)
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(row))
        spec = TaskSpec(name="rows", kind="loss", source=str(path), max_length=2048)
        if isinstance(trained, str):
            with pytest.raises(DataError):
                build_task(spec, changed, 0)
        elif len(trained[0]) == 1:
            (item,) = build_task(spec, changed, 0).items
            request: Any = item.request
            assert request.example.input_ids == trained[0][0].input_ids
            assert request.example.labels == trained[0][0].labels


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_each_text_of_an_answer_to_compare_is_read_or_refused(
    tokenizer: Any, objective: Any, family: str
) -> None:
    changed = family_tokenizer(tokenizer, family)
    spec = DataSpec.model_validate({"train": [{"source": "sums"}], "max_length": 512})
    refusals: list[tuple[str, dict[str, Any]]] = []
    for number in range(ROWS):
        draw = Draw(f"{objective}/{family}/{number}")
        names = ("chosen", "rejected") if objective == "dpo" else ("completion",)
        row: dict[str, Any] = {name: draw.text("assistant") for name in ("prompt", *names)}
        if objective == "kto":
            row["label"] = draw.random.choice([True, False, 0, 1])
        if draw.maybe(0.3):
            row["system"] = draw.text("system")
        try:
            parsed = parse_row(row, "rows.jsonl:1", needed=FORMATS_OF.get(objective, ()))
            (unit,) = prepare_units([parsed], changed, spec, objective).units
        except DataError as error:
            refusals.append((str(error), row))
            continue
        read = [changed.decode(list(example.input_ids)) for example in unit.examples]
        for text in draw.texts:
            assert any(text in one for one in read), (text, row)
        for name, text in zip(names, read, strict=True):
            assert row[name] in text
            assert row["prompt"] in text
    assert all("rows.jsonl:1" in refusal and "system" in row for refusal, row in refusals)


def test_every_format_is_tried() -> None:
    assert {*READ, "preference", "text-label", *ON_REQUEST} == set(FORMATS)
