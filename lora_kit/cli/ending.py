"""The end of one of several processes: in order, or with an error that the first one reports."""

from __future__ import annotations

import os
import select
import sys
from datetime import timedelta
from pathlib import Path

from lora_kit.runtime.launcher import RANKS, launcher_numbers, number_of_processes

# Seconds to wait for the store of a launcher that may be gone.
SECONDS = 5
# Messages of gloo and NCCL.
GONE = ("connection closed", "connection reset", "remote process exited", "broken pipe")
KEY = "lora_kit/failed"


def is_first_to_fail() -> bool:
    """Return whether this process is the first to fail, which then reports the error.

    The others only see that a process is gone. They agree through the launcher's store, since their
    process group may not exist yet, or not any more; without a store, each reports for itself.
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
    """Destroy the process group, if there is one; a process that just exits may abort."""
    if number_of_processes() == 1 or "torch" not in sys.modules:
        return
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_reader_gone(was_null: bool) -> bool:
    """Return true if nobody reads stdout or stderr any more, as after `| head -1`.

    Args:
        was_null: true if stdout was the null device when the command began.
    """
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    ended = any(event & select.POLLERR for _, event in poll.poll(0))
    # rich replaces a pipe without a reader by the null device.
    return ended or (is_null() and not was_null)


def is_null() -> bool:
    """Return true if stdout is the null device."""
    try:
        return os.path.samestat(os.fstat(1), Path(os.devnull).stat())
    except OSError:
        return False


def named() -> str:
    """Return the beginning of this process's error messages."""
    if number_of_processes() == 1:
        return "lora-kit"
    rank = next(launcher_numbers(os.environ, RANKS), "?")
    return f"lora-kit, process {rank} of {number_of_processes()}"


def lost_another(error: Exception) -> bool:
    """Return whether an error only says that another process is gone."""
    import torch.distributed

    text = str(error).lower()
    gone = any(part in text for part in GONE)
    return isinstance(error, torch.distributed.DistNetworkError) or (
        isinstance(error, RuntimeError) and gone
    )
