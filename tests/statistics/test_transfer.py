import math

import numpy as np
import pytest

from lora_kit.statistics.transfer import transfer

SCORES = [
    [0.2, 0.3, 0.4],  # base
    [0.9, 0.35, 0.4],  # after the first task
    [0.7, 0.8, 0.5],
    [0.6, 0.9, 0.7],
]


def test_metrics_follow_the_papers() -> None:
    result = transfer(SCORES)
    assert result.backward == pytest.approx(((0.6 - 0.9) + (0.9 - 0.8)) / 2)
    assert result.forward == pytest.approx(((0.35 - 0.3) + (0.5 - 0.4)) / 2)
    assert result.forgetting_by_task == pytest.approx((0.9 - 0.6, 0.8 - 0.9))
    assert result.forgetting == pytest.approx((0.3 - 0.1) / 2)
    assert result.final == pytest.approx((0.6 + 0.9 + 0.7) / 3)


def test_constant_scores_transfer_nothing() -> None:
    result = transfer(np.full((4, 3), 0.5))
    assert (result.backward, result.forward, result.forgetting, result.final) == (0, 0, 0, 0.5)


@pytest.mark.parametrize(
    ("scores", "part"),
    [
        ([[0.1, 0.2], [0.3, 0.4]], r"T \+ 1 stages"),
        ([[0.1], [0.2]], "at least two tasks"),
        ([0.1, 0.2], r"shape \(2,\)"),
        ([[0.1, 0.2], [0.3], [0.4, 0.5]], "a stage lacks the score of a task"),
        ([[0.1, 0.2], [0.3, math.nan], [0.4, 0.5]], "stage 1 has no score for task 2"),
    ],
)
def test_invalid_score_matrices_are_refused(scores: object, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        transfer(scores)  # type: ignore[arg-type]
