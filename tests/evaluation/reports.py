"""Results of made-up suites, and the reports that are written of them."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.reporting.report import ReportFacts
from lora_kit.evaluation.suite import Suite
from tests.evaluation.in_memory import judge, write_report

EVIL = (
    "<script>alert(1)</script> ]]> \"'&amp; \x00\x1b[31m\x9b \u202egnp.exe\u2066 "
    "a|b `c` *d* [e](http://evil.example) @user {{ 7 * 7 }} --> \r\n </svg></style>"
)


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


def shown(dom: str) -> list[str]:
    """Return ids of the items that are not hidden themselves."""
    found = re.findall(r'<li( hidden="")?>\s*<p class="item"><bdi>(.*?)</bdi>', dom)
    return [item for hidden, item in found if not hidden]
