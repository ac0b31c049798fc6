"""Messages of libraries that say nothing about a run."""

from __future__ import annotations

import logging

# When imported on a CPU with AVX512-BF16, bitsandbytes looks for a kernel of the hub, and logs an
# error that it does without, in right runs as well.
KERNEL_LOGGER = "bitsandbytes.backends.cpu.ops"
KERNEL_MESSAGE = "from kernels-community"


def hide_missing_kernels() -> None:
    """Leave out bitsandbytes' message of a missing kernel, also in scripts; `--debug` shows it."""
    logger = logging.getLogger(KERNEL_LOGGER)
    if _tells_more not in logger.filters:
        logger.addFilter(_tells_more)


def _tells_more(record: logging.LogRecord) -> bool:
    from lora_kit.runtime.console import is_debug_enabled

    return is_debug_enabled() or KERNEL_MESSAGE not in record.getMessage()
