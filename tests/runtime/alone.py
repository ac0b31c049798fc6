"""A worker of several processes: all but the main one end, and the main one goes on."""

import os
import sys
from pathlib import Path

import psutil
import torch.distributed as dist

from lora_kit.runtime.launch import current_launch, needs_one_process
from lora_kit.runtime.processes import (
    any_process,
    broadcast_from_main,
    continue_alone,
    process_state,
    require_agreement,
    shared_store,
)


def is_alive(pid: int) -> bool:
    """Return false also for a process whose status its launcher has not asked for: it has ended."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def main(folder: Path) -> None:
    state = process_state()
    (folder / f"{state.process_index}.pid").write_text(str(os.getpid()))
    assert state.num_processes == 2
    assert current_launch().sharded
    assert needs_one_process(gpus=1)
    state.wait_for_everyone()
    continue_alone()
    other = int((folder / "1.pid").read_text())
    if not is_alive(other):
        (folder / "gone").touch()
    # Collective calls are those of one process.
    assert process_state().num_processes == 1
    assert not dist.is_initialized()
    assert any_process(True)
    assert broadcast_from_main(lambda: 1) == 1
    require_agreement({"one": "1"})
    assert shared_store() is None
    assert current_launch().processes == current_launch().asked == 1
    assert not needs_one_process(gpus=2)
    continue_alone()
    (folder / "went-on").write_text(str(process_state().is_main_process))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
