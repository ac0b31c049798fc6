"""The report: a verdict and its evidence, as one HTML page and as Markdown.

What a model said, what it was asked and what things are called is untrusted: both templates escape
every value that they print, unless it is said otherwise. The page needs nothing but itself; of all
that stands in it, a browser obeys the one style and the one script that have the hashes it names.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.reporting.answers import answers, differences, sentence
from lora_kit.evaluation.reporting.escaping import markdown, visible
from lora_kit.evaluation.reporting.flips import find_flips, write_flips
from lora_kit.evaluation.reporting.forest import NARROW, WIDE, forest
from lora_kit.evaluation.reporting.notation import p_value
from lora_kit.evaluation.reporting.plane import plane
from lora_kit.evaluation.reporting.views import suite_views
from lora_kit.evaluation.source import Source, source_of
from lora_kit.evaluation.verdict import WAYS, Verdict
from lora_kit.runtime.files import write_text

TEMPLATES = Path(__file__).parent
FLIPS = "flips.jsonl"
REPORTS = ("report.html", "report.md")


@dataclass(frozen=True)
class ReportFacts:
    """What the report says of the run, besides the verdict."""

    title: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Inline:
    """A style or script that stands in the page.

    Attributes:
        hash: by which the page's policy lets it through.
    """

    text: Markup
    hash: str

    @classmethod
    def read(cls, path: Path) -> Inline:
        """Of a file of ours."""
        content = path.read_bytes()
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        return cls(Markup(content.decode()), f"sha256-{digest}")


def write_report(
    directory: Path, verdict: Verdict, results: Source | Sequence[Entry], facts: ReportFacts
) -> None:
    """Write `report.html`, `report.md` and `flips.jsonl`.

    Flips are of the arms `base` and `adapter`; other arms are in the verdict only.
    """
    source = source_of(results)
    suites = suite_views(verdict, find_flips(source, verdict))
    rows = [
        (f"{suite.verdict.suite} ({suite.verdict.role})", [task.numbers for task in suite.tasks])
        for suite in suites
    ]
    of = differences(verdict)
    values = {
        "facts": facts,
        "verdict": verdict,
        "sentence": sentence(verdict),
        "answers": answers(verdict),
        "suites": suites,
        "tasks": [task for suite in suites for task in suite.tasks],
        "forests": [forest(rows, layout) for layout in (WIDE, NARROW)],
        "plane": plane(
            [d for d in of if d.task.margin is None], [d for d in of if d.task.margin is not None]
        ),
        "ways": WAYS,
        "style": Inline.read(TEMPLATES / "page" / "style.css"),
        "script": Inline.read(TEMPLATES / "page" / "search.js"),
    }
    for name, escape in zip(REPORTS, (None, markdown), strict=True):
        write_text(directory / name, _environment(escape).get_template(f"{name}.j2").render(values))
    write_flips(directory / FLIPS, source, verdict)


def _environment(escape: Callable[[str], str] | None) -> Environment:
    """Templates whose values are made visible and escaped: as HTML, or by the given function."""

    def finalize(value: Any) -> Any:
        if not isinstance(value, str) or isinstance(value, Markup):
            return value
        return escape(visible(value)) if escape else visible(value)

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=escape is None,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["p_value"] = p_value
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment
