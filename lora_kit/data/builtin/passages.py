"""`stdlib-docstring-code`: first sentences of docstrings, each with the function it describes.

The functions are those of the installed Python standard library. The anchor is the first sentence
of the docstring, the positive the code without the docstring, as in CodeSearchNet (Husain et al.
2019, arXiv:1909.09436). Split by module, so that no file is in two splits.
"""

from __future__ import annotations

import re
from functools import cache

from lora_kit.data.builtin.docstrings import SUMMARY_CHARACTERS, library_functions
from lora_kit.data.rows import Message, Row

# A sentence ends with a mark before white space, or with its paragraph.
SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n\s*\n")


@cache
def docstring_code_rows() -> tuple[Row, ...]:
    """Return the pairs by file and line; of equal sentences, or equal code, the first."""
    seen: set[str] = set()
    rows = []
    for one in library_functions():
        sentence = first_sentence(one.docstring)
        code = " ".join(one.code.split())
        if len(sentence) not in SUMMARY_CHARACTERS or sentence in code:
            continue
        if not seen.isdisjoint((sentence.casefold(), code)):
            continue
        seen.update((sentence.casefold(), code))
        messages = (Message("user", sentence), Message("assistant", one.code))
        rows.append(Row(one.origin, one.module, messages, completion_from=1, format="pair"))
    return tuple(rows)


def first_sentence(docstring: str) -> str:
    """Return the first sentence of a docstring, with each run of white space as one space."""
    return " ".join(SENTENCE_END.split(docstring.strip(), maxsplit=1)[0].split())
