"""Memory and synchronization of the compute device."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_kit.preflight.memory import CUDA_BASE
from lora_kit.runtime.available_memory import main_memory_left
from lora_kit.runtime.machine import main_memory

# Processes named in a plan, and the bytes from which one is named.
MAX_NAMED, NAMED_BYTES = 3, 500_000_000


@dataclass(frozen=True)
class MemoryUser:
    """Another process that holds memory of the device.

    Attributes:
        process: process id.
        name: name of its program.
        bytes: memory that it holds.
    """

    process: int
    name: str
    bytes: int


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of a device as this process finds it.

    Attributes:
        total: bytes of the device; of a CPU, main memory or the limit of this process's group.
        available: bytes that this process can have, with those that it holds already.
        users: other processes that hold the most; empty if the system does not tell.
    """

    total: int
    available: int
    users: tuple[MemoryUser, ...] = ()


def device_memory(device: torch.device) -> int:
    """Return the memory of a device in bytes; of a CPU, the machine's main memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return main_memory()


def find_memory(device: torch.device) -> DeviceMemory:
    """Return the memory of a device that is free now, and the processes that hold the most."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # The context of the GPU is open by now, and estimates count it.
        own = torch.cuda.memory_reserved(device) + CUDA_BASE
        return DeviceMemory(total, min(free + own, total), tuple(_gpu_users(device)))
    import psutil

    held = psutil.Process().memory_info()
    # Files that this process has mapped count as available.
    own = held.rss - getattr(held, "shared", 0)
    total, left = main_memory_left()
    return DeviceMemory(total, min(left + own, total), tuple(_main_memory_users()))


def _main_memory_users() -> list[MemoryUser]:
    import psutil

    found = [
        MemoryUser(one.pid, one.info["name"] or "?", one.info["memory_info"].rss)
        for one in psutil.process_iter(["name", "memory_info"])
        if one.pid != os.getpid() and one.info["memory_info"]
    ]
    return _largest(found)


def _gpu_users(device: torch.device) -> list[MemoryUser]:
    """Return the processes that nvidia-smi shows; in a container it may show none."""
    properties: Any = torch.cuda.get_device_properties(device)
    query = ["--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--id=GPU-{properties.uuid}", *query],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in done.stdout.splitlines():
        process, _, rest = line.partition(", ")
        name, _, mebibytes = rest.rpartition(", ")
        if process.isdecimal() and mebibytes.isdecimal() and int(process) != os.getpid():
            found.append(MemoryUser(int(process), Path(name).name, int(mebibytes) << 20))
    return _largest(found)


def _largest(users: list[MemoryUser]) -> list[MemoryUser]:
    named = [one for one in users if one.bytes >= NAMED_BYTES]
    return sorted(named, key=lambda one: -one.bytes)[:MAX_NAMED]
