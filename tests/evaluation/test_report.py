"""Reports: their texts and figures, and the escaping of untrusted text."""

import base64
import hashlib
import html
import io
import json
import re
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
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
from lora_kit.evaluation.reporting.report import ReportFacts
from lora_kit.evaluation.reporting.show import show_verdict
from lora_kit.evaluation.reporting.show_continual import show_matrix
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict import Verdict
from lora_kit.statistics.transfer import Transfer
from tests.evaluation.in_memory import find_flips, judge, write_flips, write_report

EVIL = (
    "<script>alert(1)</script> ]]> \"'&amp; \x00\x1b[31m\x9b \u202egnp.exe\u2066 "
    "a|b `c` *d* [e](http://evil.example) @user {{ 7 * 7 }} --> \r\n </svg></style>"
)
CHROMIUM = Path("/usr/bin/chromium")
needs_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no chromium here")


def suite(role: str, *tasks: tuple[str, str, float | None], name: str = "") -> Suite:
    """Return a suite of tasks, given as (name, kind, margin)."""
    specs = [
        {
            "name": task,
            "kind": kind,
            "source": "items.jsonl",
            "margin": margin,
            "rationale": "Because.",
        }
        | ({"metric": "chrf"} if kind == "generation" else {})
        for task, kind, margin in tasks
    ]
    return Suite.model_validate({"name": name or f"a-{role}", "role": role, "tasks": specs})


def entries(
    of: Suite,
    base: Sequence[float | None],
    adapter: Sequence[float | None],
    task: str = "",
    cluster: Callable[[int], str] = str,
    text: Callable[[str, int], str] = lambda what, item: f"{what} of {item}",
    extra_arms: Sequence[str] = (),
) -> list[Entry]:
    """Return entries of both arms on one task of a suite, by default the first."""
    arms = {"base": base, "adapter": adapter} | dict.fromkeys(extra_arms, base)
    return [
        Entry(
            arm=arm,
            suite=of.name,
            task=task or of.tasks[0].name,
            item=text("item", number),
            cluster=cluster(number),
            score=score,
            output=text(f"{arm} output", number),
            prompt=text("prompt", number),
            reference=text("reference", number),
            tokens=1,
            seconds=0.1,
        )
        for arm, scores in arms.items()
        for number, score in enumerate(scores)
    ]


GAIN = suite("gain", ("captions", "generation", None))
KNOWLEDGE = suite("retention", ("knowledge", "multiple_choice", 0.05))
HELPED = entries(GAIN, [30.0 + n % 3 for n in range(40)], [34.0 + n % 4 for n in range(40)])
KEPT = entries(KNOWLEDGE, [1.0] * 400, [1.0] * 400)
UNSURE = entries(KNOWLEDGE, [1.0] * 100, [0.0] * 4 + [1.0] * 96)
BROKE = entries(KNOWLEDGE, [1.0] * 100, [0.0] * 30 + [1.0] * 70)
BOTH = [GAIN, KNOWLEDGE]


def write(tmp_path: Path, rows: Sequence[Entry], suites: Sequence[Suite]) -> tuple[str, str]:
    facts = ReportFacts("quickstart", {"backbone": "smollm2", EVIL: EVIL})
    write_report(tmp_path, judge(rows, suites), rows, facts)
    return tuple((tmp_path / f"report.{kind}").read_text("utf-8") for kind in ("html", "md"))  # type: ignore[return-value]


LABELS = ("a", "b", "c")


def everything() -> tuple[list[Entry], list[Suite]]:
    """Return a classification task with all arms and diagnostics, and a retention task."""
    topics = Suite.model_validate(
        {
            "name": "topics-suite",
            "role": "gain",
            "tasks": [
                {"name": "topics", "kind": "classification", "source": "x.jsonl"}
                | {"score": "macro_f1", "labels": LABELS}
            ],
        }
    )
    right = {"base": 2, "adapter": 4, "merged": 3, "fewshot": 4, "retrieval": 1, "scratch": 0}
    rows = [
        row
        for arm, of_five in right.items()
        for number in range(90)
        for row in [_chosen(topics, arm, number, number * 7 % 5 < of_five)]
    ]
    lost = [0.0] * 15 + [1.0] * 45
    sharp = entries(KNOWLEDGE, [1.0] * 60, lost, extra_arms=["merged"])
    rows += [replace(row, slices={"half": str(int(row.item.split()[-1]) // 30)}) for row in sharp]
    for of, task in ((topics, "topics"), (KNOWLEDGE, "knowledge")):
        first = rows[0]
        rows += [
            replace(first, arm="drift", suite=of.name, task=task, item=f"d{n}", score=n / 100)
            for n in range(1, 9)
        ]
    return rows, [topics, KNOWLEDGE]


def _chosen(of: Suite, arm: str, number: int, right: bool) -> Entry:
    answer = number % 3
    said = answer if right else (answer + 1) % 3
    row = entries(of, [float(right)], [0.0])[0]
    return replace(
        row,
        arm=arm,
        item=f"item of {number}",
        cluster=str(number),
        output=LABELS[said],
        reference=LABELS[answer],
        slices={"source": f"s{number % 10}"},
        measures={"accuracy": float(right), "loss": 0.5 if right else 1.5},
        log_likelihoods=tuple(-0.4 if n == said else -2.0 for n in range(3)),
        choices=LABELS,
        answer=answer,
    )


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def plot(page: str) -> ET.Element:
    start, end = page.index('<svg class="forest wide"'), page.index('<svg class="forest narrow"')
    return ET.fromstring(page[start:end])


def row(page: str, name: str) -> ET.Element:
    return next(g for g in plot(page).findall("g") if name in [t.text for t in g.iter("text")])


def evil_rows() -> tuple[list[Entry], Suite]:
    of = suite("retention", (EVIL, "multiple_choice", 0.05), name=EVIL)
    broken = "\ud800" + "x" * 2000
    rows = entries(
        of,
        [1.0] * 20,
        [0.0] * 5 + [1.0] * 15,
        text=lambda what, item: f"{EVIL}{what}{item}" + (broken if item % 2 else ""),
    )
    return rows, of


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
    for task in (task for suite in judge(HELPED + KEPT, BOTH).suites for task in suite.tasks):
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


def chromium(tmp_path: Path, page: Path, *options: str, fragment: str = "") -> str:
    quiet = ["gpu", "quic", "background-networking", "component-update", "sync"]
    return subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--no-first-run"),
            *(f"--disable-{what}" for what in quiet),
            *(f"--user-data-dir={tmp_path / 'profile'}", *options),
            f"{page.as_uri()}#{fragment}",
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout


@needs_chromium
def test_a_browser_shows_the_report_and_runs_nothing_of_it(tmp_path: Path) -> None:
    rows, of = evil_rows()
    write(tmp_path, rows + HELPED, [of, GAIN])
    page = tmp_path / "report.html"
    dom = Page(chromium(tmp_path, page, "--dump-dom"))
    assert dom.tags.count("script") == 1
    assert "<script>alert(1)</script>" in dom.text
    chromium(tmp_path, page, f"--screenshot={tmp_path / 'page.png'}", "--window-size=1200,900")
    with Image.open(tmp_path / "page.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 100


PWNING = (
    "<script>document.title='pwned'</script>",
    "<img src=x onerror=\"document.title='pwned'\">",
    "<svg onload=\"document.title='pwned'\"></svg>",
    "<details open ontoggle=\"document.title='pwned'\">x</details>",
    "<iframe srcdoc=\"<script>parent.document.title='pwned'</script>\"></iframe>",
    "<meta http-equiv='refresh' content=\"0;url=javascript:document.title='pwned'\">",
    "<a href=\"javascript:document.title='pwned'\">x</a>",
)


@needs_chromium
def test_an_output_that_contains_a_script_does_not_run(tmp_path: Path) -> None:
    attacks = (*PWNING, *(f"</dd></style></script>{attack}" for attack in PWNING))
    rows = entries(
        KNOWLEDGE,
        [1.0] * 40,
        [0.0] * 20 + [1.0] * 20,
        text=lambda what, item: f"{what}{item} {attacks[item % len(attacks)]}",
    )
    write(tmp_path, rows, [KNOWLEDGE])
    dom = chromium(tmp_path, tmp_path / "report.html", "--dump-dom")
    assert "<title>quickstart: FAIL</title>" in dom
    parsed = Page(dom)
    assert parsed.tags.count("script") == 1
    assert {"img", "iframe", "a"}.isdisjoint(parsed.tags)
    assert "<script>document.title='pwned'</script>" in parsed.text


@needs_chromium
def test_the_policy_stops_what_escaping_would_have_let_through(tmp_path: Path) -> None:
    page, _ = write(tmp_path, UNSURE, [KNOWLEDGE])
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content=".*?">', page)
    # Each attack adds its letter to the title; the remaining ones would replace the page.
    attacks = "".join(
        attack.replace("title='pwned'", f"title+='{letter}'")
        for letter, attack in zip("ABCDE", PWNING, strict=False)
    )
    titles = []
    for present in (policy, ""):
        injected = tmp_path / "injected.html"
        changed = page.replace(policy, present).replace("</main>", f"{attacks}</main>")
        injected.write_text(changed, encoding="utf-8")
        dom = chromium(tmp_path, injected, "--dump-dom", "--virtual-time-budget=2000")
        titles += re.findall("<title>(.*?)</title>", dom)[:1]
    guarded, open_to_all = titles
    assert guarded == "quickstart: INCONCLUSIVE"
    # Without the policy all attacks succeed, so it is the policy that stops them.
    assert sorted(open_to_all.removeprefix(guarded)) == [*"ABCDE"]


def test_the_policy_names_the_style_and_the_script_and_nothing_else(tmp_path: Path) -> None:
    page, _ = write(tmp_path, UNSURE, [KNOWLEDGE])
    hashes = []
    for tag in ("style", "script"):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        hashes.append(f"{tag}-src 'sha256-{digest}'")
    rest = "base-uri 'none'; form-action 'none'"
    assert f"content=\"default-src 'none'; {'; '.join(hashes)}; {rest}\"" in page


def shown(dom: str) -> list[str]:
    """Return ids of the items that are not hidden themselves."""
    found = re.findall(r'<li( hidden="")?>\s*<p class="item"><bdi>(.*?)</bdi>', dom)
    return [item for hidden, item in found if not hidden]


SEARCHES = {
    "": [0, 1, 2, 3, 4, 20, 21, 22],
    "q=PROMPT+of+3": [3],
    "q=item+of+4": [4],
    "q=expected%20of%202": [2, 20, 21, 22],
    "q=adapter+output+of+20": [20],
    "q=base+output+of+3": [3],
    "q=Straße": [0, 2, 4, 20, 22],
    "q=stra%C3%9Fe+21": [],
    "q=%3Cscript%3E": [1, 3, 21],
    "q=reference": [],  # a label of the page, in no item's texts
    "show=won": [20, 21, 22],
    "q=2&show=lost": [2],
    "task=2": [],
    "task=1&show=won&q=22": [22],
    "task=9&show=nonsense": [0, 1, 2, 3, 4, 20, 21, 22],
}


def searched(tmp_path: Path, script: str) -> list[str]:
    """Run a script in a page that embeds the report, and return the texts it passes to `done`.

    `inner` is the window of the report.

    `seen()` are the ids of the items that are not hidden, and the count that is shown.
    """
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"""<meta charset="utf-8"><iframe src="report.html"></iframe><script>
        const wait = (ms) => new Promise((resume) => setTimeout(resume, ms));
        const done = (texts) => {{ document.title = JSON.stringify(texts); }};
        onload = async () => {{
          const inner = frames[0], page = inner.document;
          const seen = () => [...page.querySelectorAll("details[data-show] li")]
            .filter((item) => !item.closest("[hidden]"))
            .map((item) => item.querySelector("bdi").textContent)
            .concat(page.getElementById("count").value).join(", ");
          {script} }}</script>""",
        encoding="utf-8",
    )
    options = ("--dump-dom", "--allow-file-access-from-files", "--virtual-time-budget=20000")
    dom = chromium(tmp_path, frame, *options)
    (title,) = re.findall("<title>(.*?)</title>", dom)
    return [str(text) for text in json.loads(html.unescape(title))]


@needs_chromium
def test_the_search_shows_what_has_all_words(tmp_path: Path) -> None:
    words = ("in der Straße", "<script>1</script>")
    rows = entries(
        KNOWLEDGE,
        [1.0] * 20 + [0.0] * 3,
        [0.0] * 5 + [1.0] * 18,
        text=lambda what, item: f"{what} of {item}".replace("reference", "expected"),
    )
    rows = [replace(row, slices={"place": words[int(row.item.split()[-1]) % 2]}) for row in rows]
    other = KNOWLEDGE.model_copy(update={"name": "other"})
    write(tmp_path, rows + entries(other, [1.0] * 9, [1.0] * 9), [KNOWLEDGE, other])
    found = searched(
        tmp_path,
        f"const found = []; for (const fragment of {json.dumps([*SEARCHES])})"
        "{ inner.location.hash = fragment; await wait(50); found.push(seen()); } done(found);",
    )
    expected = {
        fragment: [
            *(f"item of {n}" for n in items),
            f"{len(items)} of 8 items" if fragment and "nonsense" not in fragment else "8 items",
        ]
        for fragment, items in SEARCHES.items()
    }
    assert {f: line.split(", ") for f, line in zip(SEARCHES, found, strict=True)} == expected


@needs_chromium
def test_typing_searches_and_the_address_keeps_it(tmp_path: Path) -> None:
    write(tmp_path, BROKE, [KNOWLEDGE])
    found = searched(
        tmp_path,
        """const query = page.getElementById("query");
        const lost = page.querySelector("[data-show=lost]");
        const found = [page.getElementById("search").hidden, lost.open];
        for (const typed of ["item of 17", ""]) {
          query.value = typed;
          query.dispatchEvent(new inner.Event("input", { bubbles: true }));
          await wait(500);
          found.push(inner.location.hash, page.getElementById("count").value, lost.open);
        }
        done(found);""",
    )
    assert found == [
        *("False", "False"),
        *("#q=item+of+17", "1 of 30 items", "True"),
        *("", "30 items", "False"),
    ]


@needs_chromium
def test_a_shared_address_opens_with_its_search(tmp_path: Path) -> None:
    write(tmp_path, BROKE, [KNOWLEDGE])
    dom = chromium(tmp_path, tmp_path / "report.html", "--dump-dom", fragment="q=item+of+17")
    assert shown(dom) == ["item of 17"]
    assert ">1 of 30 items</output>" in dom
    assert '<form id="search" role="search">' in dom


def test_without_scripts_the_page_has_all_items_and_no_search(tmp_path: Path) -> None:
    page, _ = write(tmp_path, BROKE, [KNOWLEDGE])
    assert '<form id="search" role="search" hidden>' in page
    assert len(shown(page)) == 30


@needs_chromium
def test_two_thousand_flips_are_searched_in_a_page_that_stays_small(tmp_path: Path) -> None:
    rows = entries(KNOWLEDGE, [1.0] * 2000, [0.0] * 2000, text=lambda what, n: f"{what} {n} " * 60)
    page, _ = write(tmp_path, rows, [KNOWLEDGE])
    assert len(page) < 8_000_000
    dom = chromium(tmp_path, tmp_path / "report.html", "--dump-dom", fragment="q=1234")
    assert len(shown(dom)) == 1
    assert ">1 of 2000 items</output>" in dom


@needs_chromium
@pytest.mark.parametrize("width", [360, 800, 1200])
def test_the_page_does_not_scroll_sideways(tmp_path: Path, width: int) -> None:
    rows, of = evil_rows()
    more, suites = everything()
    page, _ = write(tmp_path, rows + more, [of, *suites])
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe style="width:{width}px;border:0" srcdoc="{html.escape(page)}" onload="'
        "const e = this.contentDocument.documentElement;"
        "document.title = e.clientWidth > 0 && e.scrollWidth <= e.clientWidth ? 'fits' : 'wide'"
        '"></iframe>',
        encoding="utf-8",
    )
    assert "<title>fits</title>" in chromium(tmp_path, frame, "--dump-dom")
