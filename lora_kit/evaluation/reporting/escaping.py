"""Escaping of untrusted text: model outputs, prompts, and names from data and recipes."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.markup import escape

# Characters that can corrupt a file or reorder the text around them: control characters,
# bidirectional embeddings, overrides and isolates (https://trojansource.codes), line separators and
# lone surrogates.
_SPANS = (
    *((0, 0x20), (0x7F, 0xA0), (0x2028, 0x202F), (0x2066, 0x206A)),
    *((0xD800, 0xE000), (0xFFFE, 0x10000)),
)
_VISIBLE = {
    code: f"[U+{code:04X}]"
    for first, end in _SPANS
    for code in range(first, end)
    if chr(code) not in "\t\n"
}


def escape_invisible(text: str) -> str:
    """Return the text with invisible control characters written as code points, as [U+0000]."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)


def escape_terminal(text: str) -> str:
    """Return the text with the markup of rich and control characters escaped."""
    return escape(escape_invisible(text))


def escape_markdown(text: str) -> str:
    """Return one line of Markdown that renders as the text, without HTML, links or mentions."""
    text = html.escape(" ".join(text.split()), quote=False)
    text = re.sub(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    # A zero-width space prevents GitHub from turning text into mentions, references and links.
    return re.sub(r"@(?=\w)|#(?=\d)|:(?=//)|\bwww(?=\.)", "\\g<0>\u200b", text, flags=re.IGNORECASE)


def template_environment(folder: Path, escape: Callable[[str], str] | None) -> Environment:
    """Return an environment of a folder's templates that escapes all values but `Markup`.

    Args:
        folder: folder of the templates.
        escape: function that escapes a text; `None` for HTML.
    """

    def finalize(value: Any) -> Any:
        if not isinstance(value, str) or isinstance(value, Markup):
            return value
        return escape(escape_invisible(value)) if escape else escape_invisible(value)

    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=escape is None,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment
