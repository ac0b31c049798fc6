"""Memory that this process can still have: of a device, or of the group it runs in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")
# Files with limit and use of a group's memory: cgroup v2, then v1.
LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def available_bytes(device: torch.device) -> int:
    """Return the memory in bytes that this process can have beside what it holds."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Reserved by torch's allocator and not used: free for this process alone.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    return main_memory_left()[1]


def main_memory_left() -> tuple[int, int]:
    """Return the main memory in bytes that this process may have at all, and can still have."""
    import psutil

    memory = psutil.virtual_memory()
    total, left = int(memory.total), int(memory.available)
    for limit, used in group_limits(CGROUPS):
        total, left = min(total, limit), min(left, limit - used)
    return total, max(left, 0)


def group_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use, in bytes, of this process's group and those above it, as in containers.

    Pages of files that the kernel would give up first do not count as used.

    Args:
        root: mount of the control groups.
    """
    own = Path("/proc/self/cgroup")
    lines = own.read_text().splitlines() if own.is_file() else []
    # hierarchy:controllers:path; version 2 has no controllers.
    groups = {path for _, kinds, path in (line.split(":", 2) for line in lines)
              if kinds in ("", "memory")}  # fmt: skip
    for mount in (root, root / "memory"):
        folders = {mount}
        for group in groups:
            inside = mount / group.lstrip("/")
            folders |= {one for one in (inside, *inside.parents) if one.is_relative_to(mount)}
        for folder in folders:
            for limit, used in LIMITS:
                yield from _limit(folder / limit, folder / used)


def _limit(limit: Path, used: Path) -> Iterator[tuple[int, int]]:
    try:
        found = limit.read_text().strip()
        if not found.isdecimal():
            return  # "max"
        statistics = dict(
            line.split() for line in (used.parent / "memory.stat").read_text().splitlines()
        )
        reclaimed = statistics.get("total_inactive_file", statistics.get("inactive_file", "0"))
        yield int(found), int(used.read_text()) - int(reclaimed)
    except (OSError, ValueError):
        return
