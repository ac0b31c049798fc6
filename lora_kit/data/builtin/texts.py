"""`stdlib-texts`: functions of the installed Python standard library, docstring and code, as texts.

Split by module, so that no file is in two splits.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache

from lora_kit.data.builtin.docstrings import CodeFunction, library_functions
from lora_kit.data.rows import Row

# Consecutive words that two functions do not share by chance, and the share of a text's that may be
# those of another module.
NGRAM_WORDS, SHARED = 10, 0.2


@cache
def library_texts() -> tuple[Row, ...]:
    """Return the functions with a docstring, by file and line.

    Functions that one module copied from another are left out: they could be trained on in one
    split and tested in another.
    """
    functions = [one for one in library_functions() if one.docstring.strip()]
    modules: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for one in functions:
        for ngram in _ngrams(one):
            modules[ngram].add(one.module)
    rows: dict[tuple[str, str], Row] = {}
    for one in functions:
        ngrams = _ngrams(one)
        shared = sum(len(modules[ngram]) > 1 for ngram in ngrams)
        if shared <= SHARED * len(ngrams):
            text = _text(one)
            # Of equal texts in a module, the first.
            rows.setdefault((one.module, text), Row(one.origin, one.module, text=text))
    return tuple(rows.values())


def _text(one: CodeFunction) -> str:
    return f"{one.docstring.strip()}\n\n{one.code}"


def _ngrams(one: CodeFunction) -> set[tuple[str, ...]]:
    words = re.findall(r"[^\W_]+", _text(one).casefold())
    last = max(len(words) - NGRAM_WORDS, 0)
    return {tuple(words[start : start + NGRAM_WORDS]) for start in range(last + 1)}
