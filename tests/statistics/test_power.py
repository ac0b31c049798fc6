import pytest
from scipy import stats

from lora_kit.statistics.power import (
    Deviation,
    FlipRate,
    design_effect,
    items_to_retain,
    items_to_show_gain,
    smallest_gain,
    smallest_margin,
)


def test_the_design_effect_follows_kish() -> None:
    assert design_effect(10, 0.5) == pytest.approx(5.5)
    assert design_effect(1, 0.9) == 1
    assert design_effect(7, 1) == pytest.approx(7)
    with pytest.raises(ValueError, match="correlation of 2"):
        design_effect(10, 2)


def test_items_for_means_equal_the_textbook() -> None:
    """Cohen's d of 0.5 with a paired t test, 34 (two-sided) and 27 (one-sided) at power 0.8."""
    assert items_to_show_gain(0.5, 0.05, Deviation(1.0)) == 34
    assert items_to_retain(0.5, 0.05, Deviation(1.0)) == 27
    assert items_to_show_gain(0.01, 0.05, Deviation(1.0)) == pytest.approx(78_489, abs=2)


def test_items_without_flips_exclude_losses_only() -> None:
    """The smallest n with 0.95^n <= 0.05."""
    assert items_to_retain(0.05, 0.05, FlipRate(0.0)) == 59


def test_more_flips_need_more_items_and_a_gain_fewer() -> None:
    quiet = items_to_retain(0.08, 0.05, FlipRate(0.05))
    loud = items_to_retain(0.08, 0.05, FlipRate(0.2))
    better = items_to_retain(0.08, 0.05, FlipRate(0.2), delta=0.05)
    assert quiet < loud
    assert better < loud


@pytest.mark.parametrize("items", [60, 200, 1000])
def test_the_smallest_gain_needs_that_many_items(items: int) -> None:
    for spread in (FlipRate(0.2), Deviation(0.4)):
        gain = smallest_gain(items, 0.05, spread)
        assert gain is not None
        assert items_to_show_gain(gain, 0.05, spread) == pytest.approx(items, rel=0.05)


@pytest.mark.parametrize("items", [80, 1000])
def test_the_smallest_margin_needs_that_many_items(items: int) -> None:
    for spread in (FlipRate(0.1), Deviation(0.4)):
        margin = smallest_margin(items, 0.05, spread)
        assert margin is not None
        assert items_to_retain(margin, 0.05, spread) == pytest.approx(items, rel=0.1)


def test_too_few_items_show_nothing() -> None:
    # With 5 flips all won, the two-sided p is 1/16.
    assert smallest_gain(5, 0.05, FlipRate(1.0)) is None
    assert smallest_gain(1, 0.05, Deviation(0.4)) is None
    assert smallest_margin(1, 0.05, Deviation(0.4)) is None
    assert stats.binomtest(5, 5).pvalue > 0.05


def test_equal_differences_need_two_items() -> None:
    assert items_to_retain(0.1, 0.05, Deviation(0.0)) == 2
    assert smallest_margin(10, 0.05, Deviation(0.0)) == 0


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(ValueError, match="a gain of 0"):
        items_to_show_gain(0.0, 0.05, Deviation(1.0))
    with pytest.raises(ValueError, match=r"delta: not above -margin \(got -0\.05"):
        items_to_retain(0.05, 0.05, FlipRate(0.2), delta=-0.05)
    with pytest.raises(ValueError, match=r"not between 0\.3 and 1"):
        items_to_show_gain(0.3, 0.05, FlipRate(0.2))
    with pytest.raises(TypeError, match="spread"):
        items_to_show_gain(0.3, 0.05)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="deviation: negative"):
        Deviation(-1.0)
    with pytest.raises(ValueError, match="flip_rate: not between 0"):
        FlipRate(1.2)
