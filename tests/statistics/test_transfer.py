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


def test_the_figures_are_those_of_the_papers() -> None:
    found = transfer(SCORES)
    assert found.backward == pytest.approx(((0.6 - 0.9) + (0.9 - 0.8)) / 2)
    assert found.forward == pytest.approx(((0.35 - 0.3) + (0.5 - 0.4)) / 2)
    assert found.forgetting_by_task == pytest.approx((0.9 - 0.6, 0.8 - 0.9))
    assert found.forgetting == pytest.approx((0.3 - 0.1) / 2)
    assert found.final == pytest.approx((0.6 + 0.9 + 0.7) / 3)


def test_nothing_moved_is_nothing_transferred() -> None:
    found = transfer(np.full((4, 3), 0.5))
    assert (found.backward, found.forward, found.forgetting, found.final) == (0, 0, 0, 0.5)


@pytest.mark.parametrize(
    ("scores", "part"),
    [
        ([[0.1, 0.2], [0.3, 0.4]], r"T \+ 1 stages"),
        ([[0.1], [0.2]], "it takes two"),
        ([0.1, 0.2], r"shape \(2,\)"),
        ([[0.1, 0.2], [0.3], [0.4, 0.5]], "not every stage"),
        ([[0.1, 0.2], [0.3, math.nan], [0.4, 0.5]], "stage 1 has no score for task 2"),
    ],
)
def test_what_is_no_sequence_is_refused(scores: object, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        transfer(scores)  # type: ignore[arg-type]
