"""Bounds on main memory that libraries hold without using it."""

from __future__ import annotations

import ctypes
import os
import platform

# Parameter of glibc's mallopt (malloc.h).
M_MMAP_THRESHOLD = -3
# Blocks of this many bytes or more are mapped, and given back when they are freed.
MAPPED_BYTES = 1 << 20
# Settings of the user, which are left as they are.
GLIBC_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
# Programs for matrix products that oneDNN keeps. Each batch of another length needs a dozen of
# 0.7 MB, which take 0.7 ms each to make; all layers of a model share them.
ONEDNN_CACHE, ONEDNN_PRODUCTS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128"


def bound_heap() -> bool:
    """Let freed tensors go back to the system, and let oneDNN keep fewer programs.

    torch allocates tensors with posix_memalign. By default, glibc raises the size from which it
    maps blocks up to 32 MiB, so that tensors come from its heap. On CPUs with bfloat16
    instructions, oneDNN's kept programs lie between them, and a freed tensor leaves a gap that the
    next, slightly longer batch does not fit into: 2,500 products of growing length held 4.2 GB,
    0.7 GB of them in use. With a fixed size from which blocks are mapped, they held 0.9 GB.

    Returns:
        True if the C library took the bound; false if it is not glibc, or the user has set one.
    """
    os.environ.setdefault(ONEDNN_CACHE, ONEDNN_PRODUCTS)
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in GLIBC_VARIABLES):
        return False
    return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES))
