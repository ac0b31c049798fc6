"""Comparison in words: the most important result, and what the reader has to know of it."""

from __future__ import annotations

from lora_kit.evaluation.reporting.notation import FormattedComparison
from lora_kit.selection.comparison.differences import RunDifference
from lora_kit.selection.comparison.result import RunComparison


def headline(found: RunComparison) -> str:
    """Return one sentence on the most important difference.

    Gain comes before retention, then the best run, then its lead over the first one, then p.
    """
    count = len(found.differences)
    if not count:
        return "Nothing can be compared: the runs share no item with a score."
    over = f"after Holm over {count:,} comparison{'' if count == 1 else 's'}"
    shown = [one for one in found.shown if one.better is not None]
    if not shown:
        tasks = len({(one.suite, one.digest, one.task) for one in found.differences})
        on = (
            "the task that they share"
            if tasks == 1
            else f"any of the {tasks} tasks that they share"
        )
        return f"No run is shown to be better than another on {on}, {over}."
    # Of equal rank, the one of the smallest p comes first, as in the list.
    first = min(
        shown, key=lambda one: (one.role != "gain", found.best != one.better, 0 not in one.pair)
    )
    assert first.better is not None
    values = formatted(first)
    other = first.first if first.better == first.second else first.second
    size = values.delta.lstrip("+−")
    rest = len(shown) - 1
    more = (
        f"; {rest:,} other difference{' is' if rest == 1 else 's are'} significant" if rest else ""
    )
    decision = found.decision(first.better)
    but = "" if decision == "PASS" else f"; its verdict is {decision}"
    return (
        f"{found.runs[first.better].name} is better than {found.runs[other].name} on "
        f"{found.task_of(first).name} by {size} {values.unit}, {over}{but}{more}."
    )


def chosen_sentences(found: RunComparison) -> list[str]:
    """Return what the choice of a run on half A means for its differences."""
    sentences = []
    for number, run in enumerate(found.runs):
        if not run.chosen:
            continue
        own = [one for one in found.differences if number in one.pair]
        if not own:
            continue
        proved = [one for one in own if one.items == "half B"]
        text = f"{run.name} is the {run.chosen}, chosen for its results on half A of the items"
        if len(proved) == len(own):
            text += ": it is compared on half B alone, which the choice did not use"
        elif proved:
            others = len({one.pair for one in own} - {one.pair for one in proved})
            runs = "one run has" if others == 1 else f"{others} runs have"
            text += (
                f": it is compared on half B, which the choice did not use; {runs} no results "
                "there, so that on half A its lead over them is too large, and not called better"
            )
        else:
            text += ": its lead on these items is too large, and not called better"
        sentences.append(f"{text}.")
    return sentences


def formatted(difference: RunDifference) -> FormattedComparison:
    """Format the scores of both runs and their difference."""
    return FormattedComparison.of(difference.unit, *difference.scores, difference.interval)
