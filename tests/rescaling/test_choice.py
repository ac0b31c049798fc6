"""The choice of a scale: the largest gain among those shown to keep retention."""

from collections.abc import Sequence

import pytest

from lora_kit.evaluation.gain_choice import most_forgotten_task, standardized_gains
from lora_kit.evaluation.task_verdict import TaskLooks, TaskVerdict
from lora_kit.evaluation.verdict import SuiteVerdict, Verdict
from lora_kit.rescaling.choice import Candidate, choose_scale
from lora_kit.rescaling.scale import AdapterScale
from lora_kit.statistics.decisions import Decision, Interval

MARGIN = 0.1


def task(
    name: str, delta: float, half: float, margin: float | None = None, decision: Decision = "PASS"
) -> TaskVerdict:
    interval = Interval(delta, delta - half, delta + half, 0.9, 20, 20)
    return TaskVerdict(
        name, "accuracy", True, decision, "", 0.5, 0.5 + delta, interval, 0.01, "", margin, "",
        0, 1, 1, None, 1.0, 1.0, False, None, None, (), (), (), (), None, None, None,
        TaskLooks(1, 1, 0.05, 20, 20, "last look", None),
    )  # fmt: skip


def candidate(
    scale: float | AdapterScale,
    gain: float | Sequence[TaskVerdict],
    keeps: Decision = "PASS",
    loss: float = 0.0,
) -> Candidate:
    gained = [task("loss", gain, 0.2)] if isinstance(gain, float) else gain
    kept = [task("quiz", -loss, 0.05, MARGIN, keeps), task("prose", 0.0, 0.01, MARGIN)]
    return Candidate(
        scale if isinstance(scale, AdapterScale) else AdapterScale.uniform(scale),
        Verdict(
            "PASS", None, None, (),
            (
                SuiteVerdict("aim", "gain", "", "PASS", tuple(gained)),
                SuiteVerdict("keep", "retention", "", keeps, tuple(kept)),
            ),
        ),
    )  # fmt: skip


def test_the_largest_gain_of_what_retention_allows_is_chosen() -> None:
    found = choose_scale(
        [
            candidate(0.25, 0.1),
            candidate(0.5, 0.3),
            candidate(0.75, 0.2),
            candidate(1.0, 0.9, "INCONCLUSIVE", 0.08),
            candidate(1.25, 1.2, "FAIL", 0.3),
        ]
    )
    assert found.chosen == 1
    assert found.reason.endswith(
        "3 of 5 scales are shown to keep retention on half A; of these, 0.5 gains most"
    )


def test_not_shown_to_be_kept_is_not_kept() -> None:
    """An observed loss within the margin is no proof: the pessimistic limit has to clear it."""
    undecided = candidate(1.0, 0.9, "INCONCLUSIVE", 0.01)
    assert undecided.failed_retention == ("keep/quiz",)
    assert choose_scale([candidate(0.5, 0.1), undecided]).chosen == 0


def test_where_no_scale_keeps_retention_none_is_chosen_and_each_names_its_failures() -> None:
    found = choose_scale([candidate(0.5, 0.1, "INCONCLUSIVE"), candidate(1.0, 0.9, "FAIL")])
    assert found.chosen is None
    assert "0.5: keep/quiz; 1: keep/quiz" in found.reason
    assert len(found.gains) == 2


def test_the_base_is_better_than_what_does_not_gain() -> None:
    found = choose_scale([candidate(0.5, -0.1), candidate(1.0, 0.0)])
    assert found.chosen is None
    assert "none of the scales that keep retention (0.5, 1) gains" in found.reason
    assert choose_scale([candidate(0.5, -0.1), candidate(1.0, 0.001)]).chosen == 1


@pytest.mark.parametrize("turned", [False, True])
def test_of_equal_gains_the_weaker_adapter_is_chosen(turned: bool) -> None:
    tied = [candidate(0.25, 0.1), candidate(0.5, 0.3), candidate(1.0, 0.3 + 1e-15)]
    chosen = choose_scale(tied[::-1] if turned else tied).chosen
    assert chosen is not None
    assert (tied[::-1] if turned else tied)[chosen].scale == AdapterScale.uniform(0.5)


def test_of_equal_gains_and_strengths_the_uniform_scale_is_chosen() -> None:
    third = candidate(AdapterScale(0.25, 1.0, 1.0), 0.3)
    whole = candidate(0.75, 0.3)
    assert [choose_scale(order).chosen for order in ([third, whole], [whole, third])] == [1, 0]


def test_of_equal_gains_and_scales_the_adapter_closest_to_the_trained_one_is_chosen() -> None:
    tied = [candidate(AdapterScale.uniform(0.5, factor), 0.3) for factor in (0.0, 0.75)]
    found = choose_scale(tied)
    assert found.chosen == 1
    assert found.reason.endswith("of these, 0.5, intruders 0.75 gains most")
    assert choose_scale([*tied, candidate(0.5, 0.3)]).chosen == 2
    assert choose_scale([candidate(0.75, 0.3), *tied]).chosen == 2  # the smaller scale comes first


def test_one_task_ranks_by_its_difference_whatever_the_intervals() -> None:
    """The weaker scale's interval is narrow; its difference is not worth more for that."""
    weak = candidate(0.25, [task("loss", 0.2, 0.05)])
    strong = candidate(1.0, [task("loss", 0.5, 0.6)])
    assert choose_scale([weak, strong]).chosen == 1
    assert [g.value for g in standardized_gains([weak.verdict, strong.verdict])] == pytest.approx(
        [0.2 / 0.325, 0.5 / 0.325]
    )


def test_neither_the_unit_nor_the_noise_of_a_task_decides_between_several() -> None:
    """In chrF points alone the second would win; its task is 40 times as wide."""
    sharp = candidate(0.5, [task("loss", 1.0, 0.1), task("chrf", 4.0, 8.0)])
    noisy = candidate(1.0, [task("loss", 0.8, 0.1), task("chrf", 6.0, 8.0)])
    assert choose_scale([sharp, noisy]).chosen == 0
    first, _ = standardized_gains([sharp.verdict, noisy.verdict])
    assert first.value == pytest.approx((1.0 / 0.1 + 4.0 / 8.0) / 2)
    assert first.low == pytest.approx((0.9 / 0.1 + -4.0 / 8.0) / 2)
    assert first.high == pytest.approx((1.1 / 0.1 + 12.0 / 8.0) / 2)


def test_a_task_without_any_spread_adds_nothing() -> None:
    flat = [candidate(s, [task("loss", g, 0.1), task("flat", 0.0, 0.0)]) for s, g in ((1, 1.0),)]
    assert standardized_gains([one.verdict for one in flat])[0].value == pytest.approx(5.0)
    endless = [candidate(1.0, [task("loss", 1.0, float("inf"))])]
    assert choose_scale(endless).chosen is None


def test_the_task_nearest_to_its_margin_is_the_one_whose_limit_is() -> None:
    assert most_forgotten_task(candidate(1.0, 0.1, loss=0.02).verdict)[0] == "keep/quiz"
    assert most_forgotten_task(candidate(1.0, 0.1, loss=-0.5).verdict)[0] == "keep/prose"
