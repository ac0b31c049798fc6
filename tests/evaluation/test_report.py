"""Reports: their texts and figures, and the escaping of untrusted text."""

import io
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.reporting.answers import (
    summary_answers,
    summary_sentence,
    task_differences,
)
from lora_kit.evaluation.reporting.forest import Difference
from lora_kit.evaluation.reporting.notation import Notation, format_p_value
from lora_kit.evaluation.reporting.plane import build_plane
from lora_kit.evaluation.reporting.show import show_verdict
from lora_kit.evaluation.reporting.show_continual import show_matrix
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict import Verdict
from lora_kit.statistics.transfer import Transfer
from tests.evaluation.in_memory import find_flips, judge, write_flips
from tests.evaluation.reports import (
    BOTH,
    BROKE,
    EVIL,
    GAIN,
    HELPED,
    KEPT,
    KNOWLEDGE,
    UNSURE,
    Page,
    entries,
    everything,
    evil_rows,
    plot,
    row,
    shown,
    suite,
    write,
)


def test_untrusted_text_is_shown_and_does_nothing(tmp_path: Path) -> None:
    rows, of = evil_rows()
    page, markdown = write(tmp_path, rows, [of])
    parsed = Page(page)
    assert parsed.tags.count("script") == parsed.tags.count("style") == 1
    assert "<script>alert(1)</script> ]]> \"'&amp; [U+0000][U+001B][31m" in parsed.text
    assert "{{ 7 * 7 }}" in parsed.text
    assert "[U+D800]xxx" in parsed.text
    names = {name for name, _ in parsed.attributes}
    assert names.isdisjoint({"src", "href", "onload", "onerror", "onclick"})
    assert plot(page).find("title") is not None
    for text in (page, markdown):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
        assert "[U+202E]gnp.exe" in text.replace("\\", "")
    assert "&lt;script&gt;" in markdown
    assert "\\[e\\](" in markdown
    assert not any(live in markdown for live in ("<", "@user", "://"))


def test_every_table_of_the_markdown_has_rows_of_one_length(tmp_path: Path) -> None:
    rows, of = evil_rows()
    _, markdown = write(tmp_path, rows + HELPED, [of, GAIN])
    tables = re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE)
    assert len(tables) == 3
    _, markdown = write(tmp_path, *everything())
    tables += re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE)
    assert len(tables) == 7
    for table in tables:
        lines = table.splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        assert set(lines[1]) <= set("|:-")


def test_every_task_is_in_the_plots_the_tables_and_the_markdown(tmp_path: Path) -> None:
    kinds = [("loss", 0.1), ("instructions", 0.1), ("generation", 0.1)]
    of = suite("retention", *((f"t-{kind}", kind, margin) for kind, margin in kinds))
    rows = [e for t in of.tasks for e in entries(of, [0.0, 1.0] * 9, [1.0, 1.0] * 9, task=t.name)]
    page, markdown = write(tmp_path, rows + HELPED, [GAIN, of])
    for task in ("captions", "t-loss", "t-instructions", "t-generation"):
        assert plot(page).find(f".//text[.='{task}']") is not None
        assert f'<th scope="row" role="rowheader"><bdi>{task}</bdi>' in page
        assert f"| {task}, " in markdown
    assert "lower is better" in page
    assert "lower is better" in markdown


SENTENCES = {
    "PASS both": "Better on a-gain; no loss exceeds its margin.",
    "PASS gain": "Better on a-gain; retention was not measured.",
    "PASS retention": "No loss exceeds its margin; gain was not measured.",
    "FAIL": "knowledge lost more than its margin of 5 pp.",
    "INCONCLUSIVE": "knowledge may have lost more than its margin of 5 pp: a decision needs about "
    "{needed} items (now 100 items).",
}


@pytest.mark.parametrize(
    ("case", "rows", "suites"),
    [
        ("PASS both", HELPED + KEPT, BOTH),
        ("PASS gain", HELPED, [GAIN]),
        ("PASS retention", KEPT, [KNOWLEDGE]),
        ("FAIL", HELPED + BROKE, BOTH),
        ("INCONCLUSIVE", HELPED + UNSURE, BOTH),
    ],
)
def test_the_sentence(tmp_path: Path, case: str, rows: list[Entry], suites: list[Suite]) -> None:
    verdict = judge(rows, suites)
    said = SENTENCES[case].format(needed=f"{verdict.suites[-1].tasks[0].items_needed or 0:,}")
    decision = case.split()[0]
    assert (verdict.decision, summary_sentence(verdict)) == (decision, said)
    page, markdown = write(tmp_path, rows, suites)
    assert f"<p>{said}</p>" in page
    assert markdown.startswith(f"# quickstart: {decision}\n\n{said}\n")


def test_without_suites_nothing_was_evaluated(tmp_path: Path) -> None:
    page, _ = write(tmp_path, [], [])
    assert "Nothing was evaluated." in page


def test_the_answers() -> None:
    helped, broke, sure = summary_answers(judge(HELPED + BROKE, [GAIN, KNOWLEDGE]))
    assert (helped.word, helped.detail) == ("Yes", "Better on 1 of 1 task.")
    assert broke.word == "Yes, beyond its margin"
    assert "knowledge −30.0 pp, worst case −" in broke.detail
    assert sure.word == "95% confidence per task"
    assert [a.word for a in summary_answers(judge(HELPED, [GAIN]))][1] == "Not measured"


def test_tasks_of_the_same_name_are_told_apart() -> None:
    other = KNOWLEDGE.model_copy(update={"name": "more"})
    rows = BROKE + entries(other, [1.0] * 100, [0.0] * 30 + [1.0] * 70)
    assert summary_sentence(judge(rows, [KNOWLEDGE, other])).startswith(
        "a-retention/knowledge lost"
    )


def test_a_flip_is_listed_with_both_outputs_and_lost_comes_first(tmp_path: Path) -> None:
    rows = entries(KNOWLEDGE, [1.0, 0.0, 1.0], [0.0, 1.0, 1.0])
    page, markdown = write(tmp_path, rows, [KNOWLEDGE])
    for arm in ("base", "adapter"):
        assert f">{arm} output of 0<" in page
        assert f">{arm} output of 1<" in page
        assert f"{arm} output: {arm} output of 0" in markdown
    assert "prompt of 2" not in page
    assert page.index("prompt of 0") < page.index("prompt of 1")
    assert re.findall("<details data-show=(.*?)>", page) == ['"lost" open', '"won"']


def test_more_than_twelve_lost_items_are_folded_and_all_there(tmp_path: Path) -> None:
    page, markdown = write(tmp_path, BROKE, [KNOWLEDGE])
    assert re.findall("<details data-show=(.*?)>", page) == ['"lost"']
    assert len(re.findall(r">prompt of \d+<", page)) == 30
    assert markdown.count("  - lost item of") == 5


def test_of_other_scores_the_ten_largest_losses_are_listed(tmp_path: Path) -> None:
    of = suite("retention", ("prose", "loss", 0.05))
    rows = entries(of, [2.0] * 20, [2.0 + n / 10 for n in range(20)])
    page, _ = write(tmp_path, rows, [of])
    listed = re.findall(r"item of (\d+)</bdi> <span>base 2.000, adapter (\S+) nats/token", page)
    assert listed == [(str(n), f"{2 + n / 10:.3f}") for n in range(19, 9, -1)]
    assert "of 19 items that got worse" in page


def test_a_long_text_is_cut_and_its_length_told(tmp_path: Path) -> None:
    rows = entries(KNOWLEDGE, [1.0] * 3, [0.0] * 3, text=lambda what, n: f"{n}" + what[0] * 1800)
    page, _ = write(tmp_path, rows, [KNOWLEDGE])
    left_out = '<span class="cut" dir="ltr">… 1,101 characters omitted …</span>'
    assert ">0" + "p" * 499 + left_out + "p" * 200 + "<" in page


def test_missing_scores_are_counted_and_no_flips(tmp_path: Path) -> None:
    rows = entries(KNOWLEDGE, [1.0, 1.0, None, 1.0], [None, 0.0, 1.0, 1.0], extra_arms=["fewshot"])
    page, markdown = write(tmp_path, rows, [KNOWLEDGE])
    assert '<td role="cell" data-label="Missing">2</td>' in page
    assert "2 without a score" in markdown
    assert re.findall(r">prompt of (\d)<", page) == ["1"]


@pytest.mark.parametrize(
    ("rows", "of"), [(HELPED, GAIN), (UNSURE, KNOWLEDGE), (BROKE, KNOWLEDGE), (KEPT, KNOWLEDGE)]
)
def test_the_plot_draws_what_the_numbers_say(tmp_path: Path, rows: list[Entry], of: Suite) -> None:
    page, _ = write(tmp_path, rows, [of])
    task = judge(rows, [of]).suites[0].tasks[0]
    interval = task.interval
    drawn = row(page, task.task)
    lines = {line.get("class"): line for line in drawn.findall("line")}
    zero, low, high = (
        float(lines[name].get(end, "nan"))
        for name, end in (("zero", "x1"), ("interval", "x1"), ("interval", "x2"))
    )
    point = float(re.findall(r"translate\((\S+) ", drawn.findall("g")[0].get("transform", ""))[0])
    shade = drawn.findall("rect")[0]
    shaded_to = float(shade.get("x", "nan")) + float(shade.get("width", "nan"))
    scale = (high - low) / (interval.high - interval.low)
    assert scale > 0
    values = [interval.low, interval.delta, -(task.margin or 0.0)]
    assert [low, point, shaded_to] == pytest.approx([zero + v * scale for v in values], abs=0.04)
    assert ("margin" in lines) == (task.margin is not None)
    assert (low > shaded_to) == (task.decision == "PASS")
    assert (high < shaded_to) == (task.decision == "FAIL")
    texts = {text.get("class"): text.text or "" for text in drawn.iter("text")}
    assert texts["word"] == task.decision
    written = [float(v) for v in texts["limits"].replace("−", "-").split(" to ")]
    factor = 100 if task.unit == "accuracy" else 1
    assert written == pytest.approx([interval.low * factor, interval.high * factor], abs=0.051)


def test_zero_is_one_line_for_all_rows(tmp_path: Path) -> None:
    page, _ = write(tmp_path, HELPED + UNSURE, [GAIN, KNOWLEDGE])
    zeros = [line for line in plot(page).iter("line") if line.get("class") == "zero"]
    assert len(zeros) == 2
    assert len({(line.get("x1"), line.get("x2")) for line in zeros}) == 1


def test_an_interval_without_limits_ends_in_arrows(tmp_path: Path) -> None:
    rows = entries(KNOWLEDGE, [1.0] * 9, [1.0] * 8 + [0.0], cluster=lambda _: "one")
    page, markdown = write(tmp_path, rows, [KNOWLEDGE])
    drawn = row(page, "knowledge")
    assert [path.get("class") for path in drawn.findall("path")] == ["arrow", "arrow"]
    assert "−∞ to +∞" in markdown
    assert "a decision needs other clusters (now one cluster)" in markdown
    assert "nan" not in page


def test_a_limit_beside_the_margin_is_not_rounded_onto_it() -> None:
    task = judge(KEPT, [KNOWLEDGE]).suites[0].tasks[0]
    beside = replace(task, interval=replace(task.interval, low=-0.04997))
    assert Difference.of("t", beside).low == "−4.997"


@pytest.mark.parametrize(
    ("value", "percent", "places", "plain", "signed"),
    [
        (0.4567, True, 1, "45.7%", "+45.7"),
        (-0.0004, False, 3, "0.000", "0.000"),
        (-1.5, False, 2, "−1.50", "−1.50"),
        (float("nan"), True, 1, "not a number", "not a number"),
    ],
)
def test_numbers(value: float, percent: bool, places: int, plain: str, signed: str) -> None:
    notation = Notation(percent, places)
    assert (notation.plain(value), notation.signed(value)) == (plain, signed)


def rewritten(verdict: Verdict, **values: object) -> Verdict:
    """Return a verdict on its first task only, with some values replaced."""
    changed = replace(verdict.suites[0].tasks[0], **values)  # type: ignore[arg-type]
    suites = (replace(verdict.suites[0], decision=changed.decision, tasks=(changed,)),)
    return replace(verdict, decision=changed.decision, suites=suites)


def test_findings_and_the_merged_model_come_right_after_the_verdict(tmp_path: Path) -> None:
    rows, suites = everything()
    verdict = judge(rows, suites)
    page, markdown = write(tmp_path, rows, suites)
    assert {finding.kind for finding in verdict.findings} == {
        "no advantage over few-shot prompting shown",
        "alarm",
    }
    text = Page(page).text
    places = [text.index(f"{finding.text}.") for finding in verdict.findings]
    merged = re.search(r"merged model\s+PASS", text)
    assert merged is not None
    assert [merged.start(), *places, text.index("Did it help?")] == sorted(
        [merged.start(), *places, text.index("Did it help?")]
    )
    assert "Merged model: **PASS**." in markdown
    title = "- **No advantage over few-shot prompting shown** (topics-suite): "
    assert f"{title}The adapter is not shown to be better on " in markdown
    assert "- **Alarm** (a-retention): knowledge got significantly worse" in markdown


def test_a_verdict_without_other_arms_says_nothing_of_them(tmp_path: Path) -> None:
    page, markdown = write(tmp_path, HELPED + KEPT, BOTH)
    absences = ("merged model", "with baselines", "Negative", "No advantage")
    for absent in (*absences, "Calibration", "Drift", "Classes"):
        assert absent not in Page(page).text.partition("How to read this report")[0]
        assert absent not in markdown


def test_the_merged_model_has_its_decision_and_interval_below_each_task(tmp_path: Path) -> None:
    rows, suites = everything()
    page, _ = write(tmp_path, rows, suites)
    sub = re.findall(r'<tr role="row" class="sub">.*?</tr>', page, flags=re.DOTALL)
    assert len(sub) == 2
    assert "<b>+0.200</b>" in sub[0]
    assert "PASS" in sub[1]


def test_a_decision_that_is_not_the_intervals_says_why(tmp_path: Path) -> None:
    rows = entries(
        GAIN, [30.0 + n % 3 for n in range(40)], [None] + [35.0 + n % 4 for n in range(39)]
    )
    verdict = judge(rows, [GAIN])
    reason = verdict.suites[0].tasks[0].reason
    assert reason
    page, markdown = write(tmp_path, rows, [GAIN])
    said = f"captions would pass by its interval alone, but {reason}."
    assert f"<p>{said}</p>" in page
    assert f"Would pass by its interval alone, but {reason}.</small>" in page
    assert said in markdown
    assert "a decision needs" not in page
    assert "<small>needs" not in page


def test_the_adapter_is_compared_with_baselines(tmp_path: Path) -> None:
    rows, suites = everything()
    page, markdown = write(tmp_path, rows, suites)
    table = page[page.index("Comparison with baselines") :].partition("</table>")[0]
    assert re.findall(r"<bdi>topics</bdi>: (\w+)<small>", table) == [
        "fewshot",
        "retrieval",
        "scratch",
    ]
    better = re.findall(r"</svg>(undecided|adapter|baseline)</span>", table)
    assert sorted(better) == ["adapter", "adapter", "undecided"]
    assert "| topics | fewshot | 0.800 | 0.800 | 0.000 (" in markdown


def test_slices_calibration_classes_measures_and_drift_are_there(tmp_path: Path) -> None:
    rows, suites = everything()
    page, markdown = write(tmp_path, rows, suites)
    text = " ".join(Page(page).text.split())
    for part in ("Slices", "Calibration", "Classes", "Drift"):
        assert f"<h2>{part}</h2>" in page
    assert "Other metrics of topics on the same items" in text
    assert "loss, lower is better" in text
    assert "significant loss" in text.partition("How to read this report")[0]
    # Alarms come first, then the largest losses; more than eight slices are folded away.
    assert "2 more slices without a significant loss" in text
    assert re.findall(r"<bdi>(\d)</bdi><small><bdi>half", page) == ["0", "1"]
    assert page.count('<svg class="reliability"') == 1
    for said in (
        "topics, calibration: ECE 0.",
        "topics, 3 classes: lowest F1 change on ",
        "topics, drift: KL(base ‖ adapter) 0.045 nats per token (",
        "knowledge, **significant loss** on slice half 0: −50.0 pp (",
        "topics, loss, lower is better: 1.100 → 0.700, +0.400 (",
    ):
        assert f"- {said}" in markdown


def test_a_class_without_a_prediction_has_no_precision(tmp_path: Path) -> None:
    rows, suites = everything()
    rows = [
        replace(row, output="b") if (row.arm, row.task) == ("base", "topics") else row
        for row in rows
    ]
    page, _ = write(tmp_path, rows, suites)
    assert 'data-label="Precision">– → 0.' in page


def test_what_was_measured_names_items_unit_and_test(tmp_path: Path) -> None:
    page, markdown = write(tmp_path, HELPED + KEPT, BOTH)
    for _, task in judge(HELPED + KEPT, BOTH).tasks:
        assert f"<div>{task.method}<small>" in page
        items = f"{task.interval.items:,} items, {task.unit}, {task.method}"
        assert f"| {task.task} | {items} |" in markdown


def test_untrusted_names_of_every_facet_do_nothing(tmp_path: Path) -> None:
    rows, suites = everything()
    named = json.loads(json.dumps([suite.model_dump(mode="json") for suite in suites]))
    for number, of in enumerate(named):
        of["name"] = f"{EVIL}{number}"
        of["tasks"][0]["name"] = f"{EVIL}task{number}"
    evil = [Suite.model_validate(of) for of in named]
    names = {old.name: new for old, new in zip(suites, evil, strict=True)}
    rows = [
        replace(
            row,
            suite=names[row.suite].name,
            task=names[row.suite].tasks[0].name,
            output=EVIL + row.output,
            reference=EVIL + row.reference,
            slices={EVIL + field: EVIL + value for field, value in row.slices.items()},
            measures={EVIL + name: value for name, value in row.measures.items()},
        )
        for row in rows
    ]
    page, markdown = write(tmp_path, rows, evil)
    parsed = Page(page)
    assert parsed.tags.count("script") == parsed.tags.count("style") == 1
    assert {name for name, _ in parsed.attributes}.isdisjoint({"src", "href", "onload", "onerror"})
    ET.fromstring(
        page[page.index('<svg class="plane"') : page.index('<div>\n<p class="caption">Vertical')]
    )
    for text in (page, markdown):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert not any(live in markdown for live in ("<", "@user", "://"))


def test_flips_are_written_in_order_and_add_up_to_the_difference(tmp_path: Path) -> None:
    scores = [1.0, 0.0, 1.0, 0.0, 1.0, None, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0, 0.0, 1.0, None, 0.0]
    rows = entries(KNOWLEDGE, *scores, cluster=lambda n: f"file {n // 2}", extra_arms=["merged"])
    rows = [replace(row, slices={"kind": "odd"}) for row in rows]
    rows += entries(GAIN, [3.0, 5.0, 2.0, 2.0], [1.0, 5.0, 8.0, float("nan")])
    verdict = judge(rows, [GAIN, KNOWLEDGE])
    path = tmp_path / "new" / "flips.jsonl"
    assert write_flips(path, rows, verdict) == 6
    found = [json.loads(line) for line in path.read_text("ascii").splitlines()]
    assert [(f["task"], f["direction"], f["item"], f["difference"]) for f in found] == [
        ("captions", "lost", "item of 0", -2.0),
        ("captions", "won", "item of 2", 6.0),
        *(("knowledge", "lost", f"item of {n}", -1.0) for n in (0, 4, 7)),
        ("knowledge", "won", "item of 1", 1.0),
    ]
    assert found[2] == {
        "suite": "a-retention",
        "task": "knowledge",
        "item": "item of 0",
        "cluster": "file 0",
        "slices": {"kind": "odd"},
        "direction": "lost",
        "base_score": 1.0,
        "adapter_score": 0.0,
        "difference": -1.0,
        "base_output": "base output of 0",
        "adapter_output": "adapter output of 0",
        "prompt": "prompt of 0",
        "reference": "reference of 0",
    }
    task = verdict.suites[1].tasks[0]
    assert (task.won, task.lost) == (1, 3)
    assert task.won - task.lost == task.interval.delta * task.interval.items


@pytest.mark.parametrize("suites", [[KNOWLEDGE], BOTH])
def test_the_report_and_the_file_have_the_same_flips(tmp_path: Path, suites: list[Suite]) -> None:
    rows = BROKE + HELPED
    page, _ = write(tmp_path, rows, suites)
    verdict = judge(rows, suites)
    flips = find_flips(rows, verdict)
    assert [(len(f.won), len(f.lost)) for f in flips] == [
        (task.won, task.lost) for suite in verdict.suites for task in suite.tasks
    ]
    lines = (tmp_path / "flips.jsonl").read_text("ascii").splitlines()
    assert len(lines) == sum(len(f.won) + len(f.lost) for f in flips)
    listed = {json.loads(line)["item"] for line in lines if '"lost"' in line}
    lost = page.partition('data-show="lost"')[2].partition("</details>")[0]
    assert set(shown(lost)) == listed
    assert "0 won − 30 lost = −30 of 100 items, which is the difference of −30.0 pp." in page


def test_flips_of_loss_are_oriented_and_odd_texts_survive(tmp_path: Path) -> None:
    of = suite("retention", ("prose", "loss", 0.05))
    odd = "\u2028\x85\ud800\n\U0001f600"
    rows = entries(of, [2.0, 2.0, 2.0], [2.5, 1.0, 2.0], text=lambda what, n: f"{what} {n}{odd}")
    assert write_flips(tmp_path / "flips.jsonl", rows, judge(rows, [of])) == 2
    lost, won = map(json.loads, (tmp_path / "flips.jsonl").read_text("ascii").splitlines())
    assert (lost["direction"], lost["difference"], lost["prompt"]) == (
        "lost",
        -0.5,
        f"prompt 0{odd}",
    )
    assert (won["direction"], won["difference"]) == ("won", 1.0)


def test_macro_f1_makes_no_claim_that_flips_add_up(tmp_path: Path) -> None:
    rows, suites = everything()
    page, _ = write(tmp_path, rows, suites)
    assert len(re.findall(r"won − \d+ lost", page)) == 1


def test_the_plane_puts_gain_against_the_margin_that_is_used_up() -> None:
    gain, retention = (task_differences(judge(HELPED + rows, BOTH)) for rows in (UNSURE, UNSURE))
    found = build_plane(gain[:1], retention[1:])
    assert found is not None
    interval = found.worst.task.interval
    scale = found.x_ticks[1].at - found.x_ticks[0].at
    assert found.unit == "chrf"
    assert found.used[0] == "80%"
    drawn = [(x - found.margin) / (found.margin - found.x) for x in (found.x_low, found.x_high)]
    expected = [(-v / 0.05 - 1) / (1 - 0.8) for v in (interval.high, interval.low)]
    assert drawn == pytest.approx(expected, abs=0.01)
    (point,) = found.points
    assert point.high < point.y < point.low < found.zero
    assert scale > 0
    assert found.x_high > found.margin


def test_without_both_roles_there_is_no_plane(tmp_path: Path) -> None:
    for rows, suites in ((HELPED, [GAIN]), (KEPT, [KNOWLEDGE])):
        page, _ = write(tmp_path, rows, suites)
        assert "Gain against forgetting" not in page


def test_gains_of_different_units_are_in_halves_of_their_intervals() -> None:
    more = suite("gain", ("topics", "multiple_choice", None), name="more")
    rows = HELPED + KEPT + entries(more, [0.0] * 50, [0.0] * 30 + [1.0] * 20)
    of = task_differences(judge(rows, [GAIN, more, KNOWLEDGE]))
    found = build_plane(of[:2], of[2:])
    assert found is not None
    assert found.unit == ""
    lengths = [point.low - point.high for point in found.points]
    assert lengths[0] == pytest.approx(lengths[1], abs=0.05)
    endless = replace(of[0].task.interval, low=float("-inf"))
    found = build_plane([replace(of[0], task=replace(of[0].task, interval=endless)), of[1]], of[2:])
    assert found is not None
    assert found.left_out == ("captions",)
    assert len(found.points) == 1


def test_a_plane_without_limits_ends_at_its_edges(tmp_path: Path) -> None:
    one = entries(KNOWLEDGE, [1.0] * 9, [1.0] * 8 + [0.0], cluster=lambda _: "one")
    found = build_plane(*(lambda of: (of[:1], of[1:]))(task_differences(judge(HELPED + one, BOTH))))
    assert found is not None
    assert found.used[1:] == ("−∞", "+∞")
    page, _ = write(tmp_path, HELPED + one, BOTH)
    assert not re.search(r'="[^"]*\b(nan|inf)\b[^"]*"', page)


def test_the_terminal_shows_findings_reasons_and_the_merged_model() -> None:
    rows, suites = everything()
    console = Console(width=200, record=True, file=io.StringIO())
    show_verdict(judge(rows, suites), console)
    text = console.export_text()
    assert "No advantage over few-shot prompting shown: The adapter is not shown to be" in text
    assert "Alarm: knowledge got significantly worse (after Holm) on the whole task, half" in text
    assert "Merged model: PASS" in text
    undecided = rewritten(
        judge(KEPT, [KNOWLEDGE]),
        task="\x1b[2Jt [bold]",
        decision="INCONCLUSIVE",
        reason="so",
        items_needed=1234,
    )
    show_verdict(undecided, console)
    text = console.export_text()
    assert "[U+001B][2Jt [bold]: would pass by its interval alone, but so." in text
    assert "needs about 1,234 items, has 400" in text
    assert "Merged" not in text


def test_names_of_stages_and_tasks_are_escaped_for_the_terminal() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    transfer = Transfer(0.0, 0.0, 0.0, 0.0, (0.0,))
    show_matrix(("\x1b[2Jone",), ("[red]t",), ((0.5,),), {"\x9b[bold]": transfer}, console)
    text = console.export_text()
    assert all(name in text for name in ("[U+001B][2Jone", "[red]t", "[U+009B][bold]"))


@pytest.mark.parametrize(("p", "said"), [(0.0, "< 0.001"), (0.0004, "< 0.001"), (0.0496, "0.050")])
def test_p(p: float, said: str) -> None:
    assert format_p_value(p) == said
