"""Memory size and synchronization of the compute device."""

from __future__ import annotations

import os

import torch


def device_memory(device: torch.device) -> int:
    """Return the memory of a device in bytes; of a CPU, the machine's main memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def synchronize(device: torch.device) -> None:
    """Wait until all operations queued on a GPU have finished; return at once on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
