"""Geometry of a sweep's plots: axes, ticks and labels."""

import pytest

from lora_kit.selection.sweep.axes import number_text, value_axis
from lora_kit.selection.sweep.scatter import SCATTERS, build_scatter, shown_gains
from tests.selection.sweep.results import realistic


def test_numbers_are_linear_and_over_a_factor_of_twenty_logarithmic() -> None:
    linear = value_axis("rank", {0: "8", 1: "16", 2: "24"}).places
    assert linear[1] - linear[0] == pytest.approx(linear[2] - linear[1])
    log = value_axis("rate", {0: "1e-5", 1: "1.0e-04", 2: "0.001"}).places
    assert log[1] - log[0] == pytest.approx(log[2] - log[1])
    assert log[0] < log[1] < log[2]


def test_other_values_are_categories_below_the_numbers() -> None:
    axis = value_axis("weight", {0: "null", 1: "0.1", 2: "0.5", 3: "null", 4: ".inf"})
    assert axis.places[0] == axis.places[3]
    assert max(axis.places[0], axis.places[4]) < axis.places[1] < axis.places[2]
    assert [tick.text for tick in axis.ticks] == [".inf", "null", "0.1", "0.5"]
    words = value_axis("scheduler", {0: "cosine", 1: "linear"})
    assert words.is_category
    assert all(0 < place < 1 for place in words.places.values())


def test_equal_and_absent_values_have_places() -> None:
    assert 0 < value_axis("rank", {0: "8", 1: "8"}).places[0] < 1
    assert value_axis("rank", {}).places == {}


@pytest.mark.parametrize("factor", [1.5, 15, 25, 1e4, 1e12])
def test_many_numbers_have_few_ticks_within_the_axis(factor: float) -> None:
    texts = {n: repr(0.00013 * factor ** (n / 19)) for n in range(20)}
    axis = value_axis("rate", texts)
    assert 1 <= len(axis.ticks) <= 13
    assert all(0 <= tick.at <= 1 for tick in axis.ticks)


def test_numbers_are_short() -> None:
    found = [number_text(value) for value in (1e-5, 0.0002, 16.0, 3e7, -0.5)]
    assert found == ["1e−5", "0.0002", "16", "3e7", "−0.5"]


def test_one_large_loss_does_not_press_the_gains_together() -> None:
    gains = [(1.0, 0.5, 1.5)] * 7
    assert min(shown_gains([*gains, (-90.0, -95.0, -80.0)])) == -2.0
    assert min(shown_gains([(-90.0, -95.0, -80.0)] * 4)) == -95.0


@pytest.mark.parametrize("layout", SCATTERS, ids=lambda one: one.kind)
def test_labels_lie_within_the_axes_and_apart(layout: object) -> None:
    plot = build_scatter(realistic(), next(one for one in SCATTERS if one is layout))
    assert plot is not None
    boxes = []
    for point in plot.points:
        label, width = point.label, len(point.label.text) * 6.0
        left = label.x if label.anchor == "start" else label.x - width
        assert plot.layout.left <= left
        assert left + width <= plot.layout.right
        assert plot.layout.top <= label.y <= plot.layout.bottom
        boxes.append((left, left + width, label.y))
    for number, (left, right, y) in enumerate(boxes):
        for other_left, other_right, other_y in boxes[number + 1 :]:
            is_beside = right <= other_left or other_right <= left
            assert is_beside or abs(y - other_y) > 8
