"""The libraries that take seconds to import: loaded when a command needs them, and quiet."""

from __future__ import annotations

import logging
import warnings
from types import ModuleType

from lora_kit.runtime.console import debugging


def load_pipeline() -> ModuleType:
    """The stages. Their libraries take seconds to import, so what is refused is refused before."""
    quiet_libraries()
    from lora_kit import pipeline

    return pipeline


def quiet_libraries() -> None:
    """Leave stderr to our own progress and errors: these say nothing that a user could act on."""
    if debugging():
        return
    # Their bars are drawn over ours; PEFT's notice repeats what its own call was told to do.
    warnings.filterwarnings("ignore", module=r"(peft|transformers|trl|torch)\b")
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    # Said once a layer and text, of a cast that its int8 layers are made to do.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # On a CPU with AVX512-BF16, of a kernel that it would fetch from the hub and does without.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # What it cannot read is told by our own message.
    datasets.logging.set_verbosity(logging.CRITICAL)
