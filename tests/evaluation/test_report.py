"""The report: what it says, where it draws it, and that nothing untrusted gets through."""

import html
import re
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from lora_kit.evaluation.forest import Difference, Notation
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.report import ReportFacts, answers, sentence, write_report
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict import judge

EVIL = (
    "<script>alert(1)</script> ]]> \"'&amp; \x00\x1b[31m\x9b \u202egnp.exe\u2066 "
    "a|b `c` *d* [e](http://evil.example) @user {{ 7 * 7 }} --> \r\n </svg></style>"
)
CHROMIUM = Path("/usr/bin/chromium")
needs_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no chromium here")


def suite(role: str, *tasks: tuple[str, str, float | None], name: str = "") -> Suite:
    """Tasks as (name, kind, margin)."""
    specs = [
        {"name": task, "kind": kind, "source": "items.jsonl", "margin": margin, "why": "Because."}
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
    """Both arms of one task of a suite, the first unless it is named."""
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


class Page(HTMLParser):
    """A page's tags, attributes and text."""

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
    assert "script" not in parsed.tags
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
    for table in tables:
        lines = table.splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        assert set(lines[1]) <= set("|:-")


def test_every_task_is_in_the_plots_the_tables_and_the_markdown(tmp_path: Path) -> None:
    kinds = [("loss", 0.1), ("instructions", 0.1), ("generation", 1.0)]
    of = suite("retention", *((f"t-{kind}", kind, margin) for kind, margin in kinds))
    rows = [e for t in of.tasks for e in entries(of, [0.0, 1.0] * 9, [1.0, 1.0] * 9, task=t.name)]
    page, markdown = write(tmp_path, rows + HELPED, [GAIN, of])
    for task in ("captions", "t-loss", "t-instructions", "t-generation"):
        assert page.count(f">{task}</text>") == 2
        assert f'<th scope="row" role="rowheader"><bdi>{task}</bdi>' in page
        assert f"| {task}, " in markdown
    assert "lower is better" in page
    assert "lower is better" in markdown


SENTENCES = {
    "PASS both": "Better on a-gain; nothing lost beyond its margin.",
    "PASS gain": "Better on a-gain; what it may have broken was not measured.",
    "PASS retention": "Nothing lost beyond its margin; whether it helped was not measured.",
    "FAIL": "knowledge lost more than its margin of 5 pp.",
    "INCONCLUSIVE": "knowledge may have lost more than its margin of 5 pp: about {needed} items "
    "would decide (100 now).",
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
    assert (verdict.decision, sentence(verdict)) == (decision, said)
    page, markdown = write(tmp_path, rows, suites)
    assert f"<p>{said}</p>" in page
    assert markdown.startswith(f"# quickstart: {decision}\n\n{said}\n")


def test_without_suites_nothing_was_evaluated(tmp_path: Path) -> None:
    page, _ = write(tmp_path, [], [])
    assert "Nothing was evaluated." in page


def test_the_answers() -> None:
    helped, broke, sure = answers(judge(HELPED + BROKE, [GAIN, KNOWLEDGE]))
    assert (helped.word, helped.detail) == ("Yes", "Better on 1 of 1 task.")
    assert broke.word == "More than its margin"
    assert "knowledge −30.0 pp, at worst −" in broke.detail
    assert sure.word == "95% confidence for each task"
    assert [a.word for a in answers(judge(HELPED, [GAIN]))][1] == "Not measured"


def test_tasks_of_the_same_name_are_told_apart() -> None:
    other = KNOWLEDGE.model_copy(update={"name": "more"})
    rows = BROKE + entries(other, [1.0] * 100, [0.0] * 30 + [1.0] * 70)
    assert sentence(judge(rows, [KNOWLEDGE, other])).startswith("a-retention/knowledge lost")


def test_a_flip_is_listed_with_both_outputs_and_lost_comes_first(tmp_path: Path) -> None:
    rows = entries(KNOWLEDGE, [1.0, 0.0, 1.0], [0.0, 1.0, 1.0])
    page, markdown = write(tmp_path, rows, [KNOWLEDGE])
    for arm in ("base", "adapter"):
        assert f">{arm} output of 0<" in page
        assert f">{arm} output of 1<" in page
        assert f"{arm} said: {arm} output of 0" in markdown
    assert "prompt of 2" not in page
    assert page.index("prompt of 0") < page.index("prompt of 1")
    assert re.findall("<details( open)?>", page) == [" open", ""]


def test_more_than_twelve_lost_items_are_folded_and_all_there(tmp_path: Path) -> None:
    page, markdown = write(tmp_path, BROKE, [KNOWLEDGE])
    assert "<details open>" not in page
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
    assert ">0" + "p" * 599 + '<span class="cut" dir="ltr">… 1,201 characters left out<' in page


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
    assert [low, point, shaded_to] == pytest.approx([zero + v * scale for v in values], abs=0.02)
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
    assert "other clusters would decide" in markdown
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


def chromium(tmp_path: Path, page: Path, *options: str) -> str:
    quiet = ["gpu", "quic", "background-networking", "component-update", "sync"]
    return subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--no-first-run"),
            *(f"--disable-{what}" for what in quiet),
            *(f"--user-data-dir={tmp_path / 'profile'}", *options, page.as_uri()),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout


@needs_chromium
def test_a_browser_shows_the_report_and_runs_nothing(tmp_path: Path) -> None:
    rows, of = evil_rows()
    write(tmp_path, rows + HELPED, [of, GAIN])
    page = tmp_path / "report.html"
    dom = Page(chromium(tmp_path, page, "--dump-dom"))
    assert "script" not in dom.tags
    assert "<script>alert(1)</script>" in dom.text
    assert dom.tags.count("table") == 3
    chromium(tmp_path, page, f"--screenshot={tmp_path / 'page.png'}", "--window-size=1200,900")
    with Image.open(tmp_path / "page.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 100


@needs_chromium
@pytest.mark.parametrize("width", [360, 800])
def test_the_page_does_not_scroll_sideways(tmp_path: Path, width: int) -> None:
    rows, of = evil_rows()
    page, _ = write(tmp_path, rows + HELPED, [of, GAIN])
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe style="width:{width}px;border:0" srcdoc="{html.escape(page)}" onload="'
        "const e = this.contentDocument.documentElement;"
        "document.title = e.clientWidth > 0 && e.scrollWidth <= e.clientWidth ? 'fits' : 'wide'"
        '"></iframe>',
        encoding="utf-8",
    )
    assert "<title>fits</title>" in chromium(tmp_path, frame, "--dump-dom")
