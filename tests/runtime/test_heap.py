"""Tensors that are freed are given back to the system, wherever they lie between others."""

import os
import subprocess
import sys

import pytest

from lora_kit.runtime.heap import GLIBC_VARIABLES, ONEDNN_CACHE, bound_heap

COUNT, BYTES = 50, 3 << 19
EVERY_OTHER = f"""
import ctypes, sys
from pathlib import Path
if sys.argv[1] == "bounded":
    import lora_kit
libc = ctypes.CDLL(None)

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024

def allocate(size):
    block = ctypes.c_void_p()
    assert libc.posix_memalign(ctypes.byref(block), 64, size) == 0
    ctypes.memset(block, 1, size)
    return block

# After a long block was freed, glibc by default takes all shorter ones from its heap.
libc.free(allocate(16 << 20))
blocks = [allocate({BYTES}) for _ in range({COUNT})]
before = held()
for block in blocks[::2]:
    libc.free(block)
print(before - held())
"""


def bytes_given_back(how: str) -> int:
    environment = {n: v for n, v in os.environ.items() if n not in GLIBC_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", EVERY_OTHER, how],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(not bound_heap(), reason="not glibc, or set by the user")
def test_a_tensor_that_is_freed_between_others_is_given_back() -> None:
    freed = COUNT // 2 * BYTES
    assert bytes_given_back("bounded") > 0.9 * freed
    # Otherwise the test shows nothing.
    assert bytes_given_back("as it is") < 0.1 * freed


def test_the_settings_of_a_user_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GLIBC_VARIABLES[0], "65536")
    monkeypatch.setenv(ONEDNN_CACHE, "7")
    assert not bound_heap()
    assert os.environ[ONEDNN_CACHE] == "7"
