"""A sweep in the terminal."""

import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from lora_kit.selection.sweep.result import SweepResult
from lora_kit.selection.sweep.show import show_sweep
from tests.evaluation.reports import EVIL
from tests.selection.sweep.results import RATE, lead, realistic, sweep_result, trial, verdict


def shown(result: SweepResult, width: int = 250) -> str:
    output = io.StringIO()
    show_sweep(result, Console(file=output, width=width))
    return output.getvalue()


def test_trials_choice_proof_lead_and_next_command_are_shown() -> None:
    output = shown(realistic())
    lines = [line.split() for line in output.splitlines()]
    table = [line[0] for line in lines[2:14]]
    assert table == ["7", "11", "3", "0", "2", "9", "1", "4", "6", "5", "10", "8"]
    assert output.count("winner\n") + output.count("winner ") >= 1
    assert "gain, chrf" in output
    assert "gains most." in output
    assert "Verdict: PASS" in output
    assert "+0.75 to +1.75" in output
    assert "better" in output
    assert "lora-kit merge 'sweeps/quick start/trials/0007/seed-1'\n" in output
    assert "lora-kit run 'sweeps/quick start/winner.yaml'\n" in output


def test_commands_are_not_wrapped() -> None:
    output = shown(replace(realistic(), directory=Path("long") / ("x" * 120)), width=60)
    assert f"lora-kit run long/{'x' * 120}/winner.yaml\n" in output


def test_a_winner_that_is_not_proved_is_not_merged() -> None:
    trials = [trial(0, {}, verdict(1.0, 0)), trial(1, {RATE: "0.001"}, verdict(2.0, 0))]
    output = shown(sweep_result(trials, verdict(2.0, 60), (lead(),)))
    assert "Verdict: FAIL" in output
    assert "The winner is not proved." in output
    assert "lora-kit merge" not in output


def test_without_a_winner_nothing_is_proved() -> None:
    output = shown(sweep_result([trial(0, {}, verdict(3.0, 30)), trial(1, {RATE: "1"}, None)]))
    assert "no trial is shown to keep all retention tasks" in output.lower()
    assert "No trial qualifies" in output
    assert "lora-kit" not in output
    assert "pruned" in output


def test_a_default_that_wins_is_said() -> None:
    output = shown(sweep_result([trial(0, {}, verdict(3.0, 0))]))
    assert "The default recipe has won" in output


def test_a_default_that_nothing_was_compared_with_is_said() -> None:
    refused = replace(trial(1, {RATE: "9"}, None), status="refused", reason="too large")
    output = shown(sweep_result([trial(0, {}, verdict(3.0, 0)), refused]))
    assert "compared with nothing: all 1 other trials were refused (too large)" in output


def test_untrusted_text_is_no_markup() -> None:
    evil = replace(trial(1, {"training.[red]x": "[/]" + EVIL}, None), reason=EVIL)
    output = shown(sweep_result([trial(0, {}, verdict(3.0, 0)), evil]), width=2000)
    assert "[red]x" in output
    assert "\x1b" not in output
    assert "[U+001B]" in output
