"""Verdict on a recipe: what the items cannot show is not shown by several seeds either."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.suite import Suite
from lora_kit.runtime.errors import EvaluationError
from lora_kit.selection.seeds import RecipeVerdict, SeedEntries, SeedTask, judge_task
from lora_kit.selection.show_seeds import show_recipe_verdict
from tests.selection.comparison.made_up import rows, scores, suite

KEEP = suite("retention", kind="multiple_choice")
ANSWERS = [float(n % 2) for n in range(200)]


def seed(answers: list[float | None], base: list[float], choices: int = 0) -> SeedEntries:
    """Return the results of one seed, with questions of so many choices."""
    texts = ("",) * choices

    def asked(arm: str, values: list[float | None]) -> dict[str, Entry]:
        found = rows(KEEP, arm, scores(values))
        return {one.item: replace(one, choices=texts) for one in found}

    return {"base": asked("base", [*base]), "adapter": asked("adapter", answers)}


def judged(*seeds: SeedEntries, of: Suite = KEEP) -> SeedTask:
    return judge_task(of, of.tasks[0], seeds)


def test_a_base_that_guesses_shows_no_loss() -> None:
    found = judged(*[seed([*ANSWERS], ANSWERS, choices=4)] * 2)
    assert (found.decision, found.reason, found.missing) == ("PASS", "", 0)
    guessed = [float(n % 4 == 0) for n in range(200)]
    found = judged(*[seed([*guessed], guessed, choices=4)] * 2)
    assert found.effect.decision == "PASS"
    assert found.decision == "INCONCLUSIVE"
    assert "above guessing" in found.reason


def test_scores_that_one_seed_lost_are_counted_and_keep_it_from_a_pass() -> None:
    lost: list[float | None] = [None, None, *ANSWERS[2:]]
    found = judged(seed([*ANSWERS], ANSWERS), seed(lost, ANSWERS))
    assert found.effect.decision == "PASS"
    assert found.decision == "INCONCLUSIVE"
    assert found.missing == 2
    console = Console(record=True, width=200)
    verdict = RecipeVerdict((0, 1), (found,), 0, Path("x"))
    show_recipe_verdict(verdict, console)
    said = console.export_text()
    assert "no score on items on which the base has one; 2 items without a score" in said
    assert "Recipe: INCONCLUSIVE" in said


def test_too_few_questions_pass_nothing_although_no_answer_changed() -> None:
    few = ANSWERS[:20]
    found = judged(*[seed([*few], few)] * 3)
    assert found.decision == "INCONCLUSIVE"
    assert found.effect.interval.low < -0.05
    assert np.isfinite(found.effect.interval.low)


def test_seeds_without_a_common_item_are_refused() -> None:
    first: list[float | None] = [1.0, None]
    second: list[float | None] = [None, 1.0]
    seeds = [seed(first, [1.0, 1.0]), seed(second, [1.0, 1.0])]
    with pytest.raises(EvaluationError, match=r"no item has a score with all seeds \(got 2 items"):
        judged(*seeds)
