"""Page of a stream: self-contained, without scripts, every text escaped."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader

from lora_kit.evaluation.reporting.escaping import template_environment
from lora_kit.evaluation.reporting.notation import format_p_value, format_percent
from lora_kit.evaluation.reporting.report import TEMPLATES, InlineAsset
from lora_kit.monitoring.curves import signal_curves
from lora_kit.monitoring.result import Monitoring
from lora_kit.runtime.files import write_text

OWN_TEMPLATES = Path(__file__).parent


def write_page(path: Path, found: Monitoring) -> None:
    """Write the page of a stream."""
    values = {
        "found": found,
        "curves": signal_curves(found),
        "p_values": [format_p_value(found.p_value(one)) for one in found.signals],
        "alpha": format_percent(found.alpha),
        "style": InlineAsset.read(TEMPLATES / "page" / "style.css"),
        "own_style": InlineAsset.read(OWN_TEMPLATES / "monitor.css"),
    }
    write_text(path, _environment().get_template("monitor.html.j2").render(values))


@cache
def _environment() -> Environment:
    environment = template_environment(OWN_TEMPLATES, None)
    folders = [FileSystemLoader(folder) for folder in (OWN_TEMPLATES, TEMPLATES)]
    environment.loader = ChoiceLoader(folders)
    environment.filters["value"] = lambda number: f"{number:.3g}".replace("-", "−")
    return environment
