"""Thoughts before an answer: how many tokens they may take, and the answer behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from lora_kit.data.templates import REASONING_END, REASONING_TAG
from lora_kit.evaluation.item import Graded, GradeFunction, Item, Outcome
from lora_kit.recipe.sections import EvaluationSpec

# Name of the secondary metric.
UNENDED = "unended_thoughts"


@dataclass(frozen=True)
class Thinking:
    """Thinking in an evaluation.

    Attributes:
        tokens: largest number of tokens of a thought, on top of those of the answer; 0 if the
            model is not to think.
    """

    tokens: int = 0

    @classmethod
    def of(cls, spec: EvaluationSpec) -> Thinking:
        """Return the thinking of an evaluation section."""
        return cls(spec.thinking_tokens if spec.thinking else 0)

    @property
    def facts(self) -> Mapping[str, str]:
        """Fact of the report; none without thinking."""
        if not self.tokens:
            return {}
        return {
            "Thinking": f"up to {self.tokens:,} tokens before a generated answer; a thought that "
            "does not end counts as a wrong answer. Choices and losses are without thoughts"
        }


NO_THINKING = Thinking()


def opens_thought(prompt: str) -> bool:
    """Return true if a prompt ends inside of a thought, as templates of some models do."""
    return (
        prompt.rpartition(REASONING_TAG)[1] != ""
        and REASONING_END not in (prompt.rpartition(REASONING_TAG)[2])
    )


def answer_behind_thought(text: str, is_open: bool) -> str | None:
    """Return the answer behind a thought; `None` if the thought does not end.

    Args:
        text: generated text.
        is_open: true if the thought began in the prompt.
    """
    thought, end, answer = text.partition(REASONING_END)
    if end:
        return answer.strip()
    return None if is_open or REASONING_TAG in thought else text


def grade_behind_thoughts(grade: GradeFunction) -> GradeFunction:
    """Return a function that grades the answer behind a thought.

    The answer of a thought that does not end is empty, which counts as wrong, and the secondary
    metric `unended_thoughts` is 1. The output holds the thought as well.
    """
    return partial(_grade, grade=grade)


def _grade(item: Item, outcome: Outcome, *, grade: GradeFunction) -> Graded:
    answer = answer_behind_thought(outcome.text, item.opens_thought)
    graded = grade(item, replace(outcome, text=answer or ""))
    measures = {**graded.measures, UNENDED: float(answer is None)}
    return replace(graded, output=outcome.text.strip(), measures=measures)
