"""`stdlib-areas`: one-line docstrings of the standard library, and the area that each is of.

A classification on every machine, whose classes are of unlike size: which of six areas of the
Library Reference a summary was written in. Split by module, so that no file is in two splits.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

from lora_kit.data.builtin.docstrings import docstring_rows
from lora_kit.data.rows import Message, Row

# Modules and packages by area; those whose chapter is none of these are left out.
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


Words = tuple[str, ...]
# Words in a row that two summaries do not share by chance.
RUN = 7


@cache
def area_rows() -> tuple[Row, ...]:
    """Every usable summary of a module that is of an area, in the order of files and lines.

    One that says the same as another is left out, such as that of a twin in C's stead: it would be
    learned in one split and asked in another.
    """
    found = [(_words(row), row, area) for row in docstring_rows() if (area := _area(row))]
    known: Counter[Words] = Counter()
    for words, _, _ in found:
        known.update(run for size in range(1, RUN + 1) for run in set(_runs(words, size)))
    rows = []
    for words, row, area in found:
        if all(known[run] == 1 for run in _runs(words, min(RUN, len(words)))):
            messages = (Message("user", row.messages[-1].content), Message("assistant", area))
            rows.append(Row(row.origin, row.cluster, messages, completion_from=1, label=area))
    return tuple(rows)


def _area(row: Row) -> str | None:
    return AREA_OF.get(row.cluster.split("/")[0].removesuffix(".py"))


def _words(row: Row) -> Words:
    return tuple(re.findall(r"[^\W_]+", row.messages[-1].content.casefold()))


def _runs(words: Words, size: int) -> list[Words]:
    return [words[start : start + size] for start in range(len(words) - size + 1)]
