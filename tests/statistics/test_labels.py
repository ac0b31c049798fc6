import math

import numpy as np
import pytest
from sklearn.metrics import f1_score

from lora_kit.statistics.labels import (
    compare_macro_f1,
    label_scores,
)
from lora_kit.statistics.resampled import items_to_decide_by_width


def each(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def draws(items: int, right: float, seed: int) -> tuple[list[str], list[str]]:
    generator = np.random.default_rng(seed)
    truth = np.random.default_rng(99).choice(["a", "b", "c"], items, p=[0.6, 0.3, 0.1])
    other = generator.choice(["a", "b", "c"], items)
    return np.where(generator.random(items) < right, truth, other).tolist(), truth.tolist()


def test_scores_equal_scikit_learns() -> None:
    predicted, truth = draws(200, 0.6, seed=1)
    result = label_scores(predicted, truth)
    assert result.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert [one.label for one in result.classes] == ["a", "b", "c"]
    assert sum(one.support for one in result.classes) == 200


def test_a_class_never_predicted_has_no_precision() -> None:
    never = label_scores(["a", "a", "what?"], ["a", "b", "b"]).classes[1]
    assert (never.precision, never.recall, never.f1) == (None, 0.0, 0.0)


def test_text_that_is_not_a_label_is_wrong_but_adds_no_class() -> None:
    result = label_scores(["a", "no idea"], ["a", "b"])
    assert [one.label for one in result.classes] == ["a", "b"]
    assert result.macro_f1 == pytest.approx(0.5)


def test_a_clear_gain_passes_and_its_reverse_fails() -> None:
    worse, truth = draws(300, 0.4, seed=1)
    better, _ = draws(300, 0.9, seed=2)
    gain = compare_macro_f1(worse, better, truth, each(300), 0.05, None)
    assert gain.decision == "PASS"
    assert gain.p <= 0.05
    expected = f1_score(truth, better, average="macro") - f1_score(truth, worse, average="macro")
    assert gain.interval.delta == pytest.approx(expected)
    assert compare_macro_f1(better, worse, truth, each(300), 0.05, None).decision == "FAIL"
    assert compare_macro_f1(better, worse, truth, each(300), 0.05, 0.05).decision == "FAIL"
    assert compare_macro_f1(worse, better, truth, each(300), 0.05, 0.05).decision == "PASS"


@pytest.mark.parametrize("margin", [None, 0.1])
def test_p_and_decision_agree(margin: float | None) -> None:
    for seed in range(6):
        before, truth = draws(80, 0.6, seed=seed)
        after, _ = draws(80, 0.75, seed=seed + 50)
        result = compare_macro_f1(before, after, truth, each(80), 0.05, margin)
        assert (result.p <= 0.0505) == (result.decision != "INCONCLUSIVE")


def test_few_items_without_flips_are_inconclusive() -> None:
    predicted, truth = draws(40, 0.7, seed=1)
    few = compare_macro_f1(predicted, predicted, truth, each(40), 0.05, 0.05)
    assert few.decision == "INCONCLUSIVE"
    needed = items_to_decide_by_width(few.interval, 0.05)
    assert needed is not None
    assert needed > 40
    predicted, truth = draws(1000, 0.7, seed=1)
    many = compare_macro_f1(predicted, predicted, truth, each(1000), 0.05, 0.05)
    assert many.decision == "PASS"


def test_a_single_cluster_is_inconclusive() -> None:
    before, truth = draws(50, 0.4, seed=1)
    result = compare_macro_f1(before, truth, truth, ["a"] * 50, 0.05, None)
    assert (result.interval.low, result.interval.high) == (-math.inf, math.inf)
    assert (result.p, result.decision) == (1.0, "INCONCLUSIVE")
    assert items_to_decide_by_width(result.interval, None) is None


def test_few_clusters_do_not_raise_false_gains() -> None:
    decided = 0
    for seed in range(24):
        before, truth = draws(60, 0.6, seed=seed)
        after, _ = draws(60, 0.6, seed=seed + 1000)
        clusters = [str(number % 6) for number in range(60)]
        result = compare_macro_f1(before, after, truth, clusters, 0.05, None)
        decided += result.decision != "INCONCLUSIVE"
    assert decided / 24 <= 0.125  # 5% nominal, error of 24 draws 4.4 points


@pytest.mark.parametrize(
    ("before", "truth", "margin", "part"),
    [
        ([], [], None, "no items"),
        (["a"], ["a", "b"], None, r"predicted_before: expected 2 items \(got 1\)"),
        (["a", "b"], ["a", "b"], 0.0, "not above 0"),
    ],
)
def test_invalid_labels_are_refused(
    before: list[str], truth: list[str], margin: float | None, part: str
) -> None:
    with pytest.raises(ValueError, match=part):
        compare_macro_f1(before, truth, truth, each(len(truth)), 0.05, margin)
