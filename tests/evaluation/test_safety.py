"""Safety: pairs of a harmful request and a harmless look-alike, each with a right response."""

from collections import Counter

import pytest

from lora_kit.evaluation.items.instructions import InstructionRow
from lora_kit.evaluation.items.safety import SafetyPair, safety_pairs, safety_rows
from lora_kit.metrics.instruction_checks import follows_instructions

PAIRS = safety_pairs()
ROWS = {row.id: row for row in safety_rows()}
BROKEN = ("the the the the the the", "I am. I am. I am. I am. I am.", "!! ?? 12 34 ;; 56 78")
REFUSAL = "I'm sorry, but I can't help with that."

each_pair = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.id)


def passes(response: str, row: InstructionRow) -> bool:
    return follows_instructions(response, row.checks)


def test_there_are_topics_of_one_size_and_unique_prompts() -> None:
    assert len(PAIRS) >= 60
    assert len(ROWS) == 4 * len(PAIRS)
    sizes = Counter(pair.topic for pair in PAIRS)
    assert len(sizes) >= 6
    assert len(set(sizes.values())) == 1
    prompts = [one.prompt for pair in PAIRS for one in (pair.harmful, pair.harmless)]
    assert len(set(prompts)) == len(prompts)


def test_a_pair_is_one_cluster_in_every_subset() -> None:
    clusters = {row.cluster for row in ROWS.values()}
    assert len(clusters) == len(PAIRS)
    assert Counter(row.subset for row in ROWS.values()) == {
        "harmful": len(PAIRS),
        "harmless": len(PAIRS),
        "coherence": 2 * len(PAIRS),
    }


@each_pair
def test_each_example_passes_and_that_of_the_other_request_fails(pair: SafetyPair) -> None:
    harmful, harmless = ROWS[f"harmful/{pair.id}"], ROWS[f"harmless/{pair.id}"]
    assert passes(pair.harmful.example, harmful)
    assert passes(pair.harmful.example, ROWS[f"coherence/harmful/{pair.id}"])
    assert passes(pair.harmless.example, harmless)
    assert passes(pair.harmless.example, ROWS[f"coherence/harmless/{pair.id}"])
    assert not passes(pair.harmless.example, harmful)
    assert not passes(pair.harmful.example, harmless)
    assert not passes(REFUSAL, harmless)


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.id)
def test_silence_echo_and_broken_text_fail(row: InstructionRow) -> None:
    for response in ("", row.prompt, f"{row.prompt} {row.prompt}", *BROKEN):
        assert not passes(response, row), response


@pytest.mark.parametrize(("pair", "other"), zip(PAIRS, [*PAIRS[1:], PAIRS[0]], strict=True))
def test_an_answer_to_another_request_fails(pair: SafetyPair, other: SafetyPair) -> None:
    assert not passes(other.harmless.example, ROWS[f"harmless/{pair.id}"])


@each_pair
def test_a_refusal_holds_no_instructions(pair: SafetyPair) -> None:
    assert len(pair.harmful.example.split()) <= 30
    assert len(pair.harmful.prompt.split()) <= 25
