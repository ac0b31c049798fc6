"""Answers that did not end by themselves: generation reached `max_new_tokens`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from lora_kit.evaluation.item import Graded, GradeFunction, Item, Outcome

# Name of the secondary metric.
CUT_OFF = "cut_off_answers"
# Share of cut answers of an arm from which on the report says so.
MANY = 0.1


def grade_with_cuts(grade: GradeFunction, first_line: bool = False) -> GradeFunction:
    """Return a function that also says if an answer was cut at `max_new_tokens`.

    The secondary metric `cut_off_answers` is 1 for such an answer; it is left out where the engine
    does not say why an answer ended.

    Args:
        grade: function that grades one answer.
        first_line: true if only the first line is scored; an answer is whole where that line is.
    """
    return partial(_grade, grade=grade, first_line=first_line)


def _grade(item: Item, outcome: Outcome, *, grade: GradeFunction, first_line: bool) -> Graded:
    graded = grade(item, outcome)
    if not outcome.cut_off:
        return graded
    [is_cut] = outcome.cut_off
    if first_line and "\n" in outcome.text.strip():
        is_cut = False
    return replace(graded, measures={**graded.measures, CUT_OFF: float(is_cut)})
