"""This machine and this installation: hardware, package versions, memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lora_kit.runtime.version import __version__

LIBRARIES = (
    "torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    # Not from the metadata: a checkout need not be installed.
    found = {"python": platform.python_version(), "lora-kit": __version__}
    for name in LIBRARIES:
        found[name] = installed_version(name)
    return found


@cache
def installed_version(name: str) -> str:
    """Return the version of an installed package; reading its metadata takes milliseconds.

    Raises:
        importlib.metadata.PackageNotFoundError: if it is not installed.
    """
    return importlib.metadata.version(name)


def machine() -> dict[str, Any]:
    """Return the hardware, without host or user names."""
    import torch

    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "accelerators": accelerators,
    }


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main_memory() -> int:
    """Return the main memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory() -> int:
    """Return the largest resident main memory of this process so far, in bytes.

    On Linux `ru_maxrss` survives exec, so that a child process starts with its parent's value;
    /proc starts anew.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class GpuPeak:
    """Most memory that torch's allocator held on one GPU of this process so far.

    Attributes:
        allocated: bytes of tensors.
        reserved: bytes that the allocator took from the GPU, unused parts of blocks included.
    """

    allocated: int
    reserved: int


def gpu_peak() -> GpuPeak | None:
    """Return the peak of the GPU that held the most; `None` if this process uses no GPU."""
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    peaks = [
        GpuPeak(torch.cuda.max_memory_allocated(gpu), torch.cuda.max_memory_reserved(gpu))
        for gpu in range(torch.cuda.device_count())
    ]
    return max(peaks, key=lambda one: one.reserved)


def checkout() -> dict[str, Any] | None:
    """Return commit and state of the package's git checkout; `None` for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
