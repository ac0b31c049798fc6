"""Detection of out-of-memory errors, and freeing of memory."""

from __future__ import annotations

import gc

import torch
from accelerate.utils.memory import should_reduce_batch_size

from lora_kit.runtime.heap import trim_heap


def is_out_of_memory_error(error: Exception) -> bool:
    """Return true if the error is out of memory, so that a smaller batch may succeed."""
    # Accelerate recognizes the message texts of the devices.
    by_class = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return by_class or should_reduce_batch_size(error)


def free_memory() -> None:
    """Free models without references, which are cycles, and memory that allocators keep."""
    gc.collect()
    trim_heap()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
