"""`stdlib-areas`: classification of standard library docstrings by area.

Available on every machine, with classes of different sizes: each one-line docstring belongs to one
of six areas of the Library Reference. Split by module, so that no file is in two splits.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

from lora_kit.data.builtin.docstrings import docstring_rows
from lora_kit.data.rows import Message, Row

# Modules and packages by area; those of other chapters are left out.
AREAS = {
    "concurrency": "asyncio concurrent multiprocessing queue sched selectors subprocess threading",
    "data types": "_collections_abc _pydatetime _pydecimal array bisect calendar collections copy "
    "dataclasses datetime decimal enum fractions functools graphlib heapq numbers pprint random "
    "reprlib statistics types weakref",
    "development": "ast bdb cProfile code codeop compileall dis distutils doctest ensurepip "
    "idlelib importlib inspect lib2to3 modulefinder pdb pickletools pkgutil profile pstats pyclbr "
    "pydoc symtable timeit tokenize trace traceback tracemalloc typing unittest venv warnings",
    "files": "_compression _pyio bz2 configparser csv filecmp fileinput fnmatch genericpath glob "
    "gzip lzma mailbox netrc ntpath os pathlib plistlib posixpath shutil stat tarfile tempfile "
    "zipfile zipimport",
    "graphics": "tkinter turtle turtledemo",
    "internet": "cgi email ftplib html http imaplib ipaddress mimetypes nntplib poplib smtplib "
    "socket socketserver ssl telnetlib urllib uuid webbrowser wsgiref xmlrpc",
}
AREA_OF = {module: area for area, modules in AREAS.items() for module in modules.split()}
# Consecutive words that two summaries do not share by chance.
NGRAM_WORDS = 7


@cache
def area_rows() -> tuple[Row, ...]:
    """Return the usable summaries of all modules with an area, by file and line.

    A summary that shares an n-gram with another one is left out, such as that of a C module's
    Python twin: it could be trained on in one split and tested in another.
    """
    summaries = []
    for row in docstring_rows():
        area = AREA_OF.get(row.cluster.split("/")[0].removesuffix(".py"))
        if area:
            words = tuple(re.findall(r"[^\W_]+", row.messages[-1].content.casefold()))
            summaries.append((words, row, area))
    counts: Counter[tuple[str, ...]] = Counter()
    for words, _, _ in summaries:
        counts.update(
            ngram for size in range(1, NGRAM_WORDS + 1) for ngram in set(_ngrams(words, size))
        )
    rows = []
    for words, row, area in summaries:
        if all(counts[ngram] == 1 for ngram in _ngrams(words, min(NGRAM_WORDS, len(words)))):
            messages = (Message("user", row.messages[-1].content), Message("assistant", area))
            rows.append(Row(row.origin, row.cluster, messages, completion_from=1, label=area))
    return tuple(rows)


def _ngrams(words: tuple[str, ...], size: int) -> list[tuple[str, ...]]:
    return [words[start : start + size] for start in range(len(words) - size + 1)]
