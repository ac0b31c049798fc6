"""Page of a sweep: its texts and figures, and the escaping of untrusted text."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from lora_kit.selection.sweep.page import write_page
from lora_kit.selection.sweep.record import Trial
from lora_kit.selection.sweep.result import SweepResult
from tests.evaluation.reports import EVIL, KNOWLEDGE, Page, suite
from tests.selection.sweep.results import (
    RANK,
    RATE,
    lead,
    sweep_result,
    trial,
    unbounded,
    verdict,
)

DEFAULT = trial(0, {}, verdict(1.0, 2))
BETTER = trial(1, {RATE: "1.0e-03", RANK: "32"}, verdict(3.0, 2))
FORGETFUL = trial(2, {RATE: "2.0e-03", RANK: "8"}, verdict(5.0, 8))
WORSE = trial(3, {RATE: "1.0e-05", RANK: "32"}, verdict(0.5, 0))
PRUNED = trial(4, {RATE: "5.0e-03", RANK: "64"}, None)
REFUSED = replace(
    trial(5, {RATE: "4.0e-03", RANK: "0"}, None), status="refused", reason="rank is 0", runs=()
)
ALL = [DEFAULT, BETTER, FORGETFUL, WORSE, PRUNED, REFUSED]


def written(tmp_path: Path, result: SweepResult) -> str:
    write_page(tmp_path / "sweep.html", result)
    return (tmp_path / "sweep.html").read_text("utf-8")


def plots(page: str, kind: str) -> list[ET.Element]:
    """Return the plots of a class, parsed as XML, whose coordinates are all numbers."""
    found = re.findall(rf'<svg class="plane {kind} .*?</svg>', page, flags=re.DOTALL)
    assert not any(word in plot for plot in found for word in ('"nan', '"inf', " nan", " inf"))
    return [ET.fromstring(plot) for plot in found]


def texts(plot: ET.Element) -> list[str]:
    return ["".join(text.itertext()) for text in plot.iter("text")]


def first_cells(page: str) -> list[str]:
    """Return the trial numbers of the table of all trials."""
    table = page[page.index('<table class="numbers trials"') :]
    return re.findall(r'role="rowheader">(\d+)', table)


def test_the_page_says_who_won_and_why_and_by_how_much(tmp_path: Path) -> None:
    result = sweep_result(ALL, leads=(lead(),))
    page = written(tmp_path, result)
    text = " ".join(Page(page).text.split())
    assert "<title>quickstart, sweep: PASS</title>" in page
    assert "3 of 4 judged trials are shown to keep retention on half A" in text
    assert "trial 1 (learning_rate 1.0e-03, rank 32) gains most." in text
    assert "On half B, which no trial has seen: Better on a-gain; no loss exceeds" in text
    assert (
        "Lead over the default recipe on half B: a-gain/captions +1.25 chrF "
        "(+0.75 to +1.75), better." in text
    )
    assert "<code>winner.yaml</code>" in page
    assert "<code>trials/0001/seed-1</code>" in page
    assert '<td role="cell" data-label="Half A − half B">+0.43</td>' in page
    assert "partly lucky" in text
    assert '<td role="cell" data-label="p">0.004</td>' in page
    assert "1,234" in text
    assert "Sampler" in text


def test_trials_are_ordered_and_those_given_up_have_their_reason(tmp_path: Path) -> None:
    page = written(tmp_path, sweep_result(ALL))
    assert first_cells(page) == ["1", "0", "3", "2", "4", "5"]
    for reason in (PRUNED.reason, REFUSED.reason):
        assert f"<bdi>{reason}</bdi>" in page
    assert ">2.500 → 2.240<" in page
    assert ">1.5<" in page
    assert "<bdi>learning_rate</bdi> <bdi>0.0003</bdi>" in page


def test_complete_trials_are_in_the_plot_and_the_margin_is_where_the_ticks_say(
    tmp_path: Path,
) -> None:
    wide, narrow = plots(written(tmp_path, sweep_result(ALL)), "scatter")
    for plot in (wide, narrow):
        assert plot.find("title") is not None
        description = plot.find("desc")
        assert description is not None
        assert description.text is not None
        assert description.text.strip().startswith("winner 1: gain +3.00 chrf")
        labels = [t.text for t in plot.iter("text") if t.get("class") in ("name", "number")]
        assert sorted(map(str, labels)) == ["2", "3", "default", "winner 1"]
        ticks = {text.text: text.get("x") for text in plot.iter("text")}
        margin = next(path for path in plot.iter("path") if path.get("class") == "margin")
        assert str(margin.get("d")).startswith(f"M{ticks['100%']} ")


def test_kept_unkept_and_given_up_trials_have_lines_of_their_own(tmp_path: Path) -> None:
    for plot in plots(written(tmp_path, sweep_result(ALL)), "parallel"):
        groups = [g for g in plot.iter("g") if str(g.get("class")).startswith("line ")]
        kinds = sorted(str(group.get("class")).strip() for group in groups)
        assert kinds == [
            "line given-up",
            "line given-up",
            "line kept",
            "line kept default",
            "line kept winner",
            "line unkept",
        ]
        assert groups[-1].get("class") == "line kept winner"
        points = {
            str(group.findtext("title")).split(":")[0].strip(): str(group[1].get("d")).count("L")
            for group in groups
        }
        # Two fields and two outcomes; a trial that was given up ends at the last field.
        assert points["trial 1 (winner)"] == points["trial 0 (default)"] == 3
        assert points["trial 4"] == 1
        assert {"learning_rate", "rank", "0.001"} <= set(texts(plot))


def test_untrusted_text_is_shown_and_does_nothing(tmp_path: Path) -> None:
    evil = trial(1, {f"training.{EVIL}": EVIL, "adapter.x": "null"}, verdict(3.0, 2))
    evil = replace(evil, runs=(EVIL,))
    given_up = replace(PRUNED, reason=EVIL, values={f"training.{EVIL}": f"{EVIL}2"})
    result = sweep_result([DEFAULT, evil, given_up], leads=(replace(lead(EVIL), unit=EVIL),))
    result = replace(result, name=EVIL, facts={EVIL: EVIL}, items={EVIL: (1, 2)}, defaults={})
    page = written(tmp_path, result)
    parsed = Page(page)
    assert parsed.tags.count("script") == 0
    assert parsed.tags.count("style") == 2
    assert {name for name, _ in parsed.attributes}.isdisjoint(
        {"src", "href", "style", "onload", "onerror", "onclick", "srcset", "xlink:href"}
    )
    assert {"img", "iframe", "link", "object", "embed", "form", "base"}.isdisjoint(parsed.tags)
    assert "<script>alert(1)</script> ]]> \"'&amp; [U+0000][U+001B][31m" in parsed.text
    assert "{{ 7 * 7 }}" in parsed.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    assert len(plots(page, "scatter")) == len(plots(page, "parallel")) == 2


def test_nothing_outside_of_the_page_is_loaded(tmp_path: Path) -> None:
    page = written(tmp_path, sweep_result(ALL))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; style-src 'sha256-")
    assert policy[1].count("sha256-") == 2
    assert "url(" not in page
    assert "@import" not in page
    assert "://" not in page


def test_infinite_limits_reach_the_edges_of_the_plot(tmp_path: Path) -> None:
    endless = replace(FORGETFUL, half_a=unbounded(verdict(2.0, 3)))
    result = sweep_result([DEFAULT, endless], unbounded(verdict(2.0, 1)))
    page = written(tmp_path, result)
    wide, _ = plots(page, "scatter")
    bars = [str(path.get("d")) for path in wide.iter("path") if "bars" in str(path.get("class"))]
    assert any(re.match(r"M50\.0 \S+H950\.0M\S+ 394\.0V12\.0$", bar) for bar in bars)
    assert "−∞ to +∞" in page
    plots(page, "parallel")


def test_values_that_are_no_numbers_are_not_drawn(tmp_path: Path) -> None:
    half_a = verdict(2.0, 3)
    (gain, *others) = half_a.suites
    task = gain.tasks[0]
    interval = replace(task.interval, delta=float("nan"))
    gain = replace(gain, tasks=(replace(task, interval=interval),))
    broken = replace(FORGETFUL, half_a=replace(half_a, suites=(gain, *others)))
    result = replace(sweep_result([DEFAULT, BETTER]), trials=(DEFAULT, BETTER, broken))
    choice = replace(result.choice, gains={**result.choice.gains, 2: result.choice.gains[1]})
    page = written(tmp_path, replace(result, choice=choice))
    assert "Not drawn, since a value is not finite: trial 2." in page
    assert len(plots(page, "scatter")) == 2


def test_a_trial_that_diverged_is_drawn_at_the_edge(tmp_path: Path) -> None:
    diverged = trial(6, {RATE: "0.1", RANK: "8"}, verdict(-30.0, 150))
    page = written(tmp_path, sweep_result([*ALL, diverged]))
    assert "beyond the axis: trial 6." in page
    wide, _ = plots(page, "scatter")
    assert "300%" not in texts(wide)


def test_without_a_winner_there_is_no_proof(tmp_path: Path) -> None:
    result = sweep_result([FORGETFUL, PRUNED])
    assert result.winner is None
    page = written(tmp_path, result)
    assert "<title>quickstart, sweep: FAIL</title>" in page
    assert "No trial qualifies, so half B was not used and no recipe is written." in page
    assert "Proof on half B" not in page
    assert "winner.yaml" not in page
    assert len(plots(page, "scatter")) == 2


def test_a_default_that_wins_has_no_lead(tmp_path: Path) -> None:
    page = written(tmp_path, sweep_result([DEFAULT, WORSE]))
    assert "The default recipe has won: no other trial that keeps retention gains more." in page
    assert {"default, winner", "3"} <= set(texts(plots(page, "scatter")[0]))
    assert '<table class="numbers slim" role="table">' not in page


def test_a_default_that_was_given_up_has_no_lead(tmp_path: Path) -> None:
    given_up = replace(DEFAULT, status="pruned", half_a=None)
    page = written(tmp_path, sweep_result([given_up, BETTER]))
    assert "The default recipe was not judged on half A, so no lead over it is known." in page


def test_of_several_gain_tasks_the_gain_is_in_half_widths(tmp_path: Path) -> None:
    two = [suite("gain", ("first", "generation", None), ("second", "generation", None)), KNOWLEDGE]
    trials = [
        trial(0, {}, verdict(1.0, 2, two)),
        trial(1, {RATE: "0.001", RANK: "8"}, verdict(3.0, 2, two)),
    ]
    result = sweep_result(trials, verdict(2.0, 1, two))
    page = written(tmp_path, result)
    gain = result.choice.gains[1]
    assert f"<b>+{gain.value:.2f}</b> interval half-widths" in page
    assert "<bdi>a-gain/first +3.00 chrf, a-gain/second +4.00 chrf</bdi>" in page
    assert "↑ gain, interval half-widths" in texts(plots(page, "scatter")[0])


@pytest.mark.parametrize(
    "trials",
    [
        [DEFAULT],
        [PRUNED],
        [],
        [replace(BETTER, number=n) for n in range(8)],
    ],
    ids=["single", "pruned", "none", "equal"],
)
def test_few_or_equal_trials_are_drawn(tmp_path: Path, trials: list[Trial]) -> None:
    page = written(tmp_path, sweep_result(trials))
    drawn = any(one.half_a for one in trials)
    assert len(plots(page, "scatter")) == (2 if drawn else 0)
    for plot in plots(page, "parallel"):
        lines = [g for g in plot.iter("g") if str(g.get("class")).startswith("line ")]
        assert len(lines) == len(trials)
    assert len(first_cells(page)) == len(trials)


def test_several_seeds_are_said(tmp_path: Path) -> None:
    seeds = replace(BETTER, runs=("trials/0001/seed-1", "trials/0001/seed-2"), best_seed=1)
    page = written(tmp_path, sweep_result([DEFAULT, seeds]))
    assert "means over 2 seeds" in page
    assert "adapter: <code>trials/0001/seed-2</code>" in page
