"""Memory that was not enough."""

from __future__ import annotations

import torch
from accelerate.utils.memory import should_reduce_batch_size


def lacks_memory(error: Exception) -> bool:
    """Whether a smaller batch may go through."""
    # Accelerate goes by what the messages of the devices say.
    by_class = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return by_class or should_reduce_batch_size(error)
