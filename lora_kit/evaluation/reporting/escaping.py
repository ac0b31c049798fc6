"""Escaping of untrusted text: model outputs, prompts, and names from data and recipes."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.markup import escape

from lora_kit.runtime.console import visible


def escape_terminal(text: str) -> str:
    """Return the text with the markup of rich and control characters escaped."""
    return escape(visible(text))


def escape_markdown(text: str) -> str:
    """Return one line of Markdown that renders as the text, without HTML, links or mentions."""
    text = html.escape(" ".join(text.split()), quote=False)
    text = re.sub(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    # A zero-width space prevents GitHub from turning text into mentions, references and links.
    return re.sub(r"@(?=\w)|#(?=\d)|:(?=//)|\bwww(?=\.)", "\\g<0>\u200b", text, flags=re.IGNORECASE)


def template_environment(
    folders: Path | Sequence[Path], escape: Callable[[str], str] | None
) -> Environment:
    """Return an environment of templates that escapes all values but `Markup`.

    Args:
        folders: folder of the templates, or several, of which the first that has one counts.
        escape: function that escapes a text; `None` for HTML.
    """

    def finalize(value: Any) -> Any:
        if not isinstance(value, str) or isinstance(value, Markup):
            return value
        return escape(visible(value)) if escape else visible(value)

    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=escape is None,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment
