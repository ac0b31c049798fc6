"""The device that is computed on: how much memory it has, and when it is done."""

from __future__ import annotations

import os

import torch


def device_memory(device: torch.device) -> int:
    """Bytes of the device that is computed on."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def wait(device: torch.device) -> None:
    """Until all that was begun is done: a GPU computes on while the program goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
