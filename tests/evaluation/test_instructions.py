"""Instructions: each states its checks, can be followed, and does not pass its own checks."""

import dataclasses
from collections import Counter
from importlib import resources

import pytest
import yaml

from lora_kit.evaluation.items import instructions
from lora_kit.evaluation.items.instructions import InstructionRow
from lora_kit.metrics.instruction_checks import (
    CHECK_FUNCTIONS,
    InstructionCheck,
    follows_instructions,
)
from lora_kit.runtime.hashes import json_sha256

ROWS = instructions.instruction_rows()
EXAMPLES: dict[str, str] = {
    mapping["id"]: mapping["example"]
    for mapping in yaml.safe_load(
        resources.files("lora_kit.evaluation.items")
        .joinpath("instructions.yaml")
        .read_text("utf-8")
    )
}
# Kinds of other built-in sources.
ELSEWHERE = {"calls", "coherent", "contains_any", "json_schema", "no_echo", "refuses"}
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
SIGNS = {"?": "question mark", "!": "exclamation mark"}
SWITCH_WORDS = {
    "lowercase": "lowercase",
    "uppercase": "capital letters",
    "digits": "digit",
    "commas": "comma",
    "quoted": "double quotes",
    "bold": "bold",
}

each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)


def test_there_are_enough_instructions_of_every_kind() -> None:
    kinds = Counter(check.kind for row in ROWS for check in row.checks)
    assert len(ROWS) >= 200
    assert set(kinds) == set(CHECK_FUNCTIONS) - ELSEWHERE
    assert min(kinds.values()) >= 5
    assert max(kinds.values()) <= 0.2 * len(ROWS)


def test_ids_and_prompts_are_unique() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)
    assert len({row.prompt for row in ROWS}) == len(ROWS)


def test_the_checks_of_the_first_source_keep_their_digest() -> None:
    # Results are cached under it: a new kind of check must not change it.
    checks = [[row.id, [dataclasses.asdict(check) for check in row.checks]] for row in ROWS]
    assert json_sha256(checks) == "a15ef20d75ef87b51191ea3c4a0f2804f5e4149c0fa59bc8e14e710aab6994d0"


@each_row
def test_a_prompt_is_one_short_request_with_one_or_two_checks(row: InstructionRow) -> None:
    assert len(row.prompt.split()) <= 25
    assert "\n" not in row.prompt
    assert len({check.kind for check in row.checks}) == len(row.checks) <= 2


@each_row
def test_the_example_follows_and_is_short(row: InstructionRow) -> None:
    assert follows_instructions(EXAMPLES[row.id], row.checks)
    # 48 tokens are generated; English takes about 1.3 tokens a word.
    assert len(EXAMPLES[row.id].split()) <= 30


@each_row
def test_silence_and_the_echo_of_the_prompt_do_not_follow(row: InstructionRow) -> None:
    assert not follows_instructions("", row.checks)
    assert not follows_instructions(row.prompt, row.checks)


@each_row
def test_a_prompt_states_what_is_checked(row: InstructionRow) -> None:
    for check in row.checks:
        assert all(stated(row.prompt, part) for part in parts(check)), check


def parts(check: InstructionCheck) -> list[str]:
    """Return the texts that a prompt must contain to state the check."""
    match check.value:
        case bool():
            return [SWITCH_WORDS[check.kind]]
        case int():
            return [str(check.value)]
        case str():
            return [SIGNS.get(check.value, check.value)]
        case _:
            return list(check.value)


def stated(prompt: str, part: str) -> bool:
    spelled = NUMBERS.get(int(part), part) if part.isdigit() else part
    check = InstructionCheck("contains_words", (part,))
    return follows_instructions(prompt, [check]) or spelled in prompt


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"prompt": "Say hi.", "checks": []}, "needs an id and a prompt"),
        ({"id": "hi", "prompt": "", "checks": []}, "needs an id and a prompt"),
        ({"id": "hi", "prompt": "Say hi.", "checks": []}, "'hi': needs a list of checks"),
        ({"id": "hi", "prompt": "Say hi."}, "'hi': needs a list of checks"),
        (
            {"id": "hi", "prompt": "Say hi.", "checks": [{"kind": "max_wrds", "value": 1}]},
            "'hi': check: unknown kind .got 'max_wrds'",
        ),
    ],
)
def test_an_instruction_with_a_slip_is_refused(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        instructions.parse_instruction(mapping)
