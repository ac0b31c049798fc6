"""Bounds on main memory that libraries hold without using it."""

from __future__ import annotations

import ctypes
import os
import platform

# Programs for matrix products that oneDNN keeps, 1,024 by default. Each batch of another length
# needs a dozen of 0.7 MB, which take 0.7 ms each to make; all layers of a model share them.
ONEDNN_CACHE, ONEDNN_PROGRAMS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128"


def bound_programs() -> None:
    """Let oneDNN keep fewer programs for matrix products, unless the user has set a number.

    On CPUs with bfloat16 instructions, its default holds 0.7 GB. oneDNN reads the number at the
    first product of a process.
    """
    os.environ.setdefault(ONEDNN_CACHE, ONEDNN_PROGRAMS)


def trim_heap() -> None:
    """Give the free pages between blocks of glibc's heap back to the system.

    By itself, glibc gives back the end of its heap only. A program that oneDNN keeps is enough to
    hold what lies before it: 3,000 products of growing length held 5.7 GB, 0.7 GB of them in use.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
