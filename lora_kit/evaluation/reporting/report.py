"""Reports: a verdict and its evidence as one HTML page and as Markdown.

Model outputs, prompts and names are untrusted, so the templates escape every value unless it is
marked as safe. The page is self-contained. Its content security policy allows one style and one
script, identified by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from lora_kit.evaluation.agreement import Agreement, agreement_sentences
from lora_kit.evaluation.ledger_view import LedgerView
from lora_kit.evaluation.reporting.answers import (
    summary_answers,
    summary_sentence,
    task_differences,
)
from lora_kit.evaluation.reporting.escaping import escape_markdown, template_environment
from lora_kit.evaluation.reporting.flips import find_flips, write_flips
from lora_kit.evaluation.reporting.forest import NARROW, WIDE, build_forest
from lora_kit.evaluation.reporting.notation import format_p_value
from lora_kit.evaluation.reporting.plane import build_plane
from lora_kit.evaluation.reporting.views import suite_reports
from lora_kit.evaluation.reporting.wrong_items import find_wrong
from lora_kit.evaluation.task_verdict import BASELINES
from lora_kit.evaluation.verdict import Verdict
from lora_kit.runtime.files import write_text

TEMPLATES = Path(__file__).parent
FLIPS = "flips.jsonl"
REPORTS = ("report.html", "report.md")


@dataclass(frozen=True)
class ReportFacts:
    """Title of a report, and the facts about the run in its table.

    Attributes:
        title: title of the report.
        facts: value of each fact by name, such as the backbone.
    """

    title: str
    facts: Mapping[str, str]

    @classmethod
    def dated(cls, title: str, facts: Mapping[str, str]) -> ReportFacts:
        """Return the facts with today's date, in UTC, as the last one."""
        return cls(title, {**facts, "Date": datetime.now(UTC).date().isoformat()})


@dataclass(frozen=True)
class InlineAsset:
    """Style or script that is embedded in the page.

    Attributes:
        text: content of the file.
        hash: digest of the content, as the content security policy writes it.
    """

    text: Markup
    hash: str

    @classmethod
    def read(cls, path: Path) -> InlineAsset:
        """Read a file of this package."""
        content = path.read_bytes()
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        return cls(Markup(content.decode()), f"sha256-{digest}")


def write_report(
    directory: Path,
    verdict: Verdict,
    view: LedgerView,
    facts: ReportFacts,
    agreement: Sequence[Agreement] = (),
) -> None:
    """Write `report.html`, `report.md` and `flips.jsonl`.

    Flips compare the arms `base` and `adapter`; other arms appear in the verdict only.

    Args:
        directory: directory of the three files.
        verdict: verdict on the results.
        view: results that the verdict is on.
        facts: title of the report and facts about the run.
        agreement: agreement of the engines that answered the same items.
    """
    suites = suite_reports(verdict, find_flips(view, verdict), find_wrong(view, verdict))
    rows = [
        (f"{suite.verdict.suite} ({suite.verdict.role})", [task.difference for task in suite.tasks])
        for suite in suites
    ]
    differences = task_differences(verdict)
    values = {
        "facts": facts,
        "verdict": verdict,
        "sentence": summary_sentence(verdict),
        "answers": summary_answers(verdict),
        "agreement": agreement,
        "agreement_sentences": agreement_sentences(agreement),
        "suites": suites,
        "tasks": [task for suite in suites for task in (*suite.tasks, *suite.beside)],
        "forests": [build_forest(rows, layout) for layout in (WIDE, NARROW)],
        "plane": build_plane(
            [d for d in differences if d.task.margin is None],
            [d for d in differences if d.task.margin is not None],
        ),
        "baselines": {arm: text for arm, (_, text) in BASELINES.items()},
        "style": InlineAsset.read(TEMPLATES / "page" / "style.css"),
        "script": InlineAsset.read(TEMPLATES / "page" / "search.js"),
    }
    for name, escape in zip(REPORTS, (None, escape_markdown), strict=True):
        template = _environment(escape).get_template(f"{name}.j2")
        write_text(directory / name, template.render(values))
    write_flips(directory / FLIPS, view, verdict)


@cache
def _environment(escape: Callable[[str], str] | None) -> Environment:
    environment = template_environment(TEMPLATES, escape)
    environment.filters["p_value"] = format_p_value
    return environment
