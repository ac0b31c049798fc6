"""Memory that libraries hold without using it is given back."""

import os
import platform
import subprocess
import sys

import pytest

from lora_kit.runtime.heap import ONEDNN_CACHE, bound_programs

COUNT, BYTES = 50, 1 << 19
EVERY_OTHER = f"""
import ctypes, sys
from pathlib import Path
from lora_kit.runtime.heap import trim_heap
libc = ctypes.CDLL(None)

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024

def allocate(size):
    block = ctypes.c_void_p()
    assert libc.posix_memalign(ctypes.byref(block), 64, size) == 0
    ctypes.memset(block, 1, size)
    return block

# After a long block was freed, glibc takes all shorter ones from its heap.
libc.free(allocate(16 << 20))
blocks = [allocate({BYTES}) for _ in range({COUNT})]
before = held()
for block in blocks[::2]:
    libc.free(block)
if sys.argv[1] == "trimmed":
    trim_heap()
print(before - held())
"""


def bytes_given_back(how: str) -> int:
    command = [sys.executable, "-c", EVERY_OTHER, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_tensors_that_are_freed_between_others_are_given_back() -> None:
    freed = COUNT // 2 * BYTES
    assert bytes_given_back("trimmed") > 0.9 * freed
    # Otherwise the test shows nothing.
    assert bytes_given_back("as it is") < 0.1 * freed


def test_the_number_of_a_user_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ONEDNN_CACHE, "7")
    bound_programs()
    assert os.environ[ONEDNN_CACHE] == "7"
    monkeypatch.delenv(ONEDNN_CACHE)
    bound_programs()
    assert os.environ[ONEDNN_CACHE] == "128"
