"""Untrusted text made harmless: what a model said, what it was asked, what things are called."""

from __future__ import annotations

import html
import re

# What would break a file or reorder what stands around it: controls, bidirectional embeddings,
# overrides and isolates (https://trojansource.codes), line separators, halves of surrogate pairs.
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


def visible(text: str) -> str:
    """The text with characters that cannot be seen, but do something, written out."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)


def markdown(text: str) -> str:
    """One line of Markdown that shows the text and does nothing else: no HTML, link or mention."""
    text = html.escape(" ".join(text.split()), quote=False)
    text = re.sub(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    # GitHub notifies people and links addresses; a space of no width keeps it from that.
    return re.sub(r"@(?=\w)|#(?=\d)|:(?=//)|\bwww(?=\.)", "\\g<0>\u200b", text, flags=re.IGNORECASE)
