"""How one of several processes ends: in order, or failing, of which only the first tells why."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import timedelta

# How long to look for the others; a launcher that is gone cannot be asked.
SECONDS = 5
# As gloo and NCCL say it.
GONE = ("connection closed", "connection reset", "remote process exited", "broken pipe")
KEY = "lora_kit/failed"


def number_of_processes(environment: Mapping[str, str] = os.environ) -> int:
    """As the launcher set it."""
    size = environment.get("WORLD_SIZE", "1")
    return int(size) if size.isdigit() else 1


def is_first_to_fail() -> bool:
    """Whether no other process has failed before this one, which then is for it to tell.

    What the others see is that the first is gone. They agree by the launcher's store, since they
    may not have met yet, or cannot any more; without such a store, each tells for itself.
    """
    if number_of_processes() == 1:
        return True
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=SECONDS),
        )
        return bool(store.add(f"{KEY}/{attempt}", 1) == 1)
    except (RuntimeError, KeyError, ValueError):
        return True


def leave() -> None:
    """Part from the other processes in order, if they have met; one that just ends may abort."""
    if number_of_processes() == 1 or "torch" not in sys.modules:
        return
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def named() -> str:
    """How a process that is one of several begins its message."""
    if number_of_processes() == 1:
        return "lora-kit"
    return f"lora-kit, process {os.environ.get('RANK', '?')} of {number_of_processes()}"


def lost_another(error: Exception) -> bool:
    """Whether an error only says that another process is gone, as one that was killed is."""
    import torch.distributed

    text = str(error).lower()
    gone = any(part in text for part in GONE)
    return isinstance(error, torch.distributed.DistNetworkError) or (
        isinstance(error, RuntimeError) and gone
    )
