"""The time that an evaluation says is left."""

import pytest

from lora_kit.evaluation.engine.progress import Forecast, Progress
from lora_kit.runtime import console
from lora_kit.runtime.console import Meter, meter


class Shown(Meter):
    """Meter that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__("evaluating", 10, console.Progress(disable=True))
        self.left: list[float | None] = []

    def advance(
        self, steps: float = 1, note: str = "", tokens: int = 0, left: float | None = None
    ) -> None:
        self.left.append(left)


def test_time_left_is_that_of_the_cost_and_not_of_the_number_of_items() -> None:
    shown = Shown()
    progress = Progress(shown, None, forecast=Forecast(left=1000.0))
    # Eight short items of ten, then two long ones; a second for each unit of cost.
    for cost in (10.0,) * 8 + (460.0,) * 2:
        progress.advance(1, "", 0, cost, seconds=cost)
    assert shown.left == pytest.approx([990, 980, 970, 960, 950, 940, 930, 920, 460, 0])


def test_cached_outcomes_take_no_time_and_promise_none() -> None:
    shown = Shown()
    progress = Progress(shown, None, forecast=Forecast(left=100.0))
    progress.advance(1, "", 0, 40.0)
    assert shown.left == [None]  # nothing was computed: nobody knows
    progress.advance(1, "", 0, 20.0, seconds=10.0)
    progress.advance(1, "", 0, 30.0)
    assert shown.left[1:] == [20.0, 5.0]


def test_more_cost_than_was_planned_is_not_less_than_no_time() -> None:
    forecast = Forecast(left=10.0)
    forecast.remove(15.0, 3.0)
    assert forecast.seconds_left() == 0.0


def test_a_meter_is_seen_before_its_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    with meter("reading", 3):
        assert "reading: 0/3" in capsys.readouterr().err


def test_a_line_shows_the_time_left_that_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    with meter("reading", 1) as progress:
        progress.advance(1, "rows", left=77.0)
    assert "reading: 1/1 rows (0 s, 77 s left)" in capsys.readouterr().err


def test_items_that_are_not_asked_any_more_are_taken_off(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with meter("evaluating", 10) as shown:
        progress = Progress(shown, None, forecast=Forecast(left=100.0))
        progress.advance(4, "", 0, 40.0, seconds=20.0)
        progress.leave_out(5, 50.0)
        assert progress.forecast.seconds_left() == 5.0
        progress.advance(1, "", 0, 10.0, seconds=5.0)
    assert "evaluating: 5/5" in capsys.readouterr().err
