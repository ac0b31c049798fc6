"""Evaluation items in training rows: found if present, and not by common words alone."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest

from lora_kit.data.audit.audit import audit, refuse_problems
from lora_kit.data.audit.findings import Leakage
from lora_kit.data.audit.item import AuditedItem
from lora_kit.data.audit.leakage import LeakSearch
from lora_kit.data.audit.words import hash_words, row_texts
from lora_kit.data.dataset import prepare, validation_rows
from lora_kit.data.rows import Row
from lora_kit.data.sources import open_source
from lora_kit.evaluation.audited import audited_item
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.tasks import build_task
from lora_kit.recipe.data import AuditSpec, SourceSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import DataError
from tests.data.auditing import chat, prose
from tests.training_rows import training_rows

LONG = (
    "A farmer has seventeen sheep and all but nine of them run away in the night. "
    "How many sheep does the farmer have left in the morning?"
)
FRANCE = "What is the capital of France?"


def item(prompt: str, *answers: str, name: str = "item") -> AuditedItem:
    return AuditedItem("suite", "task", name, prompt, answers)


def leakage(rows: Sequence[Row], *items: AuditedItem) -> Leakage:
    search = LeakSearch(items)
    for number, row in enumerate(rows):
        search.update([hash_words(row_texts(row))], number)
    (found,) = search.result(rows)
    return found


def kind(row: Row, one: AuditedItem) -> str | None:
    """Return the kind of the item's match in the row."""
    found = leakage([prose("Something else altogether stands here."), row], one)
    assert all(leak.origin == row.origin for leak in found.examples)
    return found.examples[0].kind if found.examples else None


@pytest.mark.parametrize(
    ("row", "one", "expected"),
    [
        (chat(LONG, "Nine."), item(LONG, "nine"), "exact"),
        (chat(f"Think!\n{LONG.upper()}", "The answer is: nine"), item(LONG, "nine"), "exact"),
        (prose(f"Riddle 3. {LONG} Answer: nine."), item(LONG, "nine"), "exact"),
        (chat(LONG.replace("farmer has", "woman has"), "Nine"), item(LONG, "nine"), "near"),
        (chat(LONG, "I do not know."), item(LONG, "nine"), "prompt"),
        (chat("How many sheep are left?", "nine"), item(LONG, "nine"), None),
        (chat("How many sheep does the farmer have?", "nine"), item(LONG, "nine"), None),
        # Without an answer to look for, the prompt is all.
        (chat(LONG, "Whatever."), item(LONG), "exact"),
        # A text alone.
        (prose(f"Before. {LONG} Behind."), item("", LONG), "exact"),
        (prose("A farmer has seventeen sheep, and a dog."), item("", LONG), None),
        # The right one of the choices that the prompt lists is not the answer.
        (
            chat(f"{LONG} (a) nine (b) eight", "b"),
            item(f"{LONG} (a) nine (b) eight", "nine"),
            "prompt",
        ),
        # A script without spaces has words of one character.
        (
            chat("请回答法国的首都是哪一座城市以及它有多少人口?", "首都是巴黎"),
            item("法国的首都是哪一座城市以及它有多少人口", "巴黎"),
            "exact",
        ),
        # Any of several answers.
        (chat(LONG, "9"), item(LONG, "nine", "9"), "exact"),
        # A long answer, a word of it changed.
        (chat(FRANCE, LONG.replace("seventeen", "17")), item(FRANCE, LONG), "near"),
    ],
)
def test_kind_of_a_match_of_an_item_in_a_row(
    row: Row, one: AuditedItem, expected: str | None
) -> None:
    assert kind(row, one) == expected


@pytest.mark.parametrize(
    ("row", "one", "expected"),
    [
        (chat(FRANCE, "Paris"), item(FRANCE, "Paris"), "exact"),
        (chat(FRANCE, "The capital of France is Paris."), item(FRANCE, "Paris"), "exact"),
        (prose(f"Question: {FRANCE}\nAnswer: Paris"), item(FRANCE, "Paris"), "exact"),
        (chat(FRANCE, "Lyon"), item(FRANCE, "Paris"), "prompt"),
        (prose("Paris is the capital of France. What is it like?"), item(FRANCE, "Paris"), None),
        (prose("2+2=4"), item("2+2=", "4"), "exact"),
        (chat("2 + 2 =", "4"), item("2+2=", "4"), "exact"),
        (chat("2 - 2 =", "4"), item("2+2=", "4"), None),
        (prose("We had 2 + 2 = 4 wins, 2 losses and 4 draws."), item("2+2=", "4"), None),
        (prose("2, 2, 4, 8, 16"), item("2+2=", "4"), None),
        (chat("Hello", "Hi there"), item("Hello", "Hi"), "exact"),
        (prose("He said hello and she said hi."), item("Hello", "Hi"), None),
        # An instruction, whose answer is checked and not known.
        (chat("Write a haiku.", "An old silent pond"), item("Write a haiku."), "exact"),
        (prose("They asked me to write a haiku. I did not."), item("Write a haiku."), None),
        # A script without spaces.
        (chat("法国的首都是哪里?", "巴黎"), item("法国的首都是哪里?", "巴黎"), "exact"),
        (prose("法国的首都有很多河流,巴黎在哪里?"), item("法国的首都是哪里?", "巴黎"), None),
    ],
)
def test_short_items_match_only_as_a_complete_turn_or_line(
    row: Row, one: AuditedItem, expected: str | None
) -> None:
    assert kind(row, one) == expected


def test_prompt_and_answer_in_two_rows_are_no_leak() -> None:
    rows = [chat(LONG, "I do not know."), chat("How many lives has a cat?", "nine")]
    assert leakage(rows, item(LONG, "nine")).leaked == 0


def test_a_prefix_shared_by_all_items_is_no_leak() -> None:
    system = "You are a careful assistant who answers in one word and never explains why. "
    items = [
        item(f"{system}What colour has {what}?", colour, name=what)
        for what, colour in {"snow": "white", "grass": "green", "coal": "black"}.items()
    ]
    found = leakage([chat(f"{system}What colour has the sky?", "green or white or black")], *items)
    assert (found.exact, found.near, found.prompts) == (0, 0, 0)
    found = leakage([chat(f"{system}What colour has grass?", "green")], *items)
    assert [leak.item for leak in found.examples] == ["grass"]
    assert found.exact == 1


def test_items_with_the_same_question_are_distinguished_by_answer() -> None:
    asked = "Which of these sentences is good English?"
    items = [item(asked, f"She {verb} home.", name=verb) for verb in ("goes", "walks", "drives")]
    found = leakage([chat(asked, "She walks home.")], *items)
    assert [leak.item for leak in found.examples] == ["walks"]
    assert found.exact == 1


def test_items_without_words_are_counted_as_unchecked() -> None:
    found = leakage([prose("+ + +")], item("+", "-"), item(LONG, "nine"))
    assert (found.unchecked, found.leaked) == (1, 0)


def test_a_leak_past_the_limit_is_refused_with_its_origin(tokenizer: Any) -> None:
    rows = [chat(LONG, "Nine.", "chats.jsonl:7")]
    items = [item(LONG, "nine", name="sheep"), item("Who wrote the novel Emma?", "Austen")]
    found = audit(rows, [], items, [], tokenizer, AuditSpec())
    expected = (
        r"data\.audit\.leakage: 1 of 2 items \(50\.0%\) of suite/task .*sheep in chats.jsonl:7"
    )
    with pytest.raises(DataError, match=expected):
        refuse_problems(found)
    allowed = audit(rows, [], items, [], tokenizer, AuditSpec(leakage=0.5))
    refuse_problems(allowed)
    assert any("sheep in chats.jsonl:7" in warning for warning in allowed.warnings)


def test_validation_rows_that_are_trained_on_are_a_warning(tokenizer: Any) -> None:
    rows = [chat(LONG, "Nine.", "train:1")]
    held_out = [chat(LONG, "nine", "held:1"), chat("Who wrote Emma?", "Austen", "held:2")]
    found = audit(rows, [], [], held_out, tokenizer, AuditSpec())
    assert found.validation is not None
    assert (found.validation.items, found.validation.exact) == (2, 1)
    assert found.problems == ()
    assert any("held:1 in train:1" in warning for warning in found.warnings)
    assert found.leakage == ()


def suite_items(tokenizer: Any, *suites: str) -> list[AuditedItem]:
    return [
        audited_item(suite, spec, one)
        for suite in map(Suite.load, suites)
        for spec in suite.tasks
        for one in build_task(spec, tokenizer, suite.seed).items
    ]


@pytest.fixture(scope="module")
def items(tokenizer: Any) -> list[AuditedItem]:
    return suite_items(tokenizer, "docstrings", "core-retention", "bias")


def as_row(one: AuditedItem, number: int) -> Row:
    origin = f"leaked:{number}"
    if not one.prompt:
        return prose(one.answers[0], origin)
    return chat(one.prompt, one.answers[0] if one.answers else "Something.", origin)


def test_every_item_of_the_bundled_suites_is_found_when_it_is_trained_on(
    items: list[AuditedItem],
) -> None:
    rows = [as_row(one, number) for number, one in enumerate(items)]
    search = LeakSearch(items)
    search.update([hash_words(row_texts(row)) for row in rows], 0)
    for found in search.result(rows):
        assert found.exact == found.items, f"{found.suite}/{found.task}"


def test_a_row_that_leaks_one_item_leaks_few_others(items: list[AuditedItem]) -> None:
    empty = LeakSearch(items)
    for number, one in enumerate(items[:: max(len(items) // 20, 1)]):
        row = as_row(one, number)
        search = copy.deepcopy(empty)
        search.update([hash_words(row_texts(row))], 0)
        leaked = sum(found.leaked for found in search.result([row]))
        assert 1 <= leaked <= 6, one.id


def test_prompts_of_items_exclude_the_task_template(items: list[AuditedItem]) -> None:
    asked = [one for one in items if one.task == "general-knowledge"]
    assert asked
    assert not any("Question:" in one.prompt or "Answer:" in one.prompt for one in asked)
    followed = [one for one in items if one.task == "instructions"]
    assert followed
    assert not any(one.answers for one in followed)
    texts = [one for one in items if one.task == "python-reference"]
    assert all(not one.prompt and len(one.answers) == 1 for one in texts)
    assert {one.suite for one in items if one.gain} == {"docstrings"}


@pytest.fixture(scope="module")
def quickstart() -> Recipe:
    return Recipe.load("quickstart")


def test_the_quickstart_passes_its_audit(
    quickstart: Recipe, tokenizer: Any, items: list[AuditedItem]
) -> None:
    spec = quickstart.data
    rows, replay = training_rows(spec, quickstart.seed)
    examples = prepare(rows, tokenizer, spec, replay).examples
    held_out = validation_rows(spec, quickstart.seed)
    found = audit(rows, examples, items, held_out, tokenizer, spec.audit)
    refuse_problems(found)
    assert found.duplicates.exact == 0
    assert found.tokens.pieces.share < 0.01


@pytest.mark.parametrize("source", ["stdlib-docstrings", "python-reference"])
def test_built_in_sources_leak_no_bundled_items(source: str, items: list[AuditedItem]) -> None:
    rows = open_source(SourceSpec(source=source, split="train"), 0, "data.train.0.source")
    search = LeakSearch(items)
    search.update([hash_words(row_texts(row)) for row in rows], 0)
    assert {f"{one.suite}/{one.task}": one.leaked for one in search.result(rows)} == dict.fromkeys(
        (f"{one.suite}/{one.task}" for one in items), 0
    )
