"""The libraries that take seconds to import: loaded when a command needs them, and kept quiet."""

from __future__ import annotations

import logging
import warnings

from lora_kit.cli.output import reserve_stdout
from lora_kit.runtime.console import is_debug_enabled, stderr
from lora_kit.runtime.launcher import is_main_process


def quiet_libraries() -> None:
    """Import the libraries and silence their messages, which a user cannot act on.

    Commands import the pipeline after this call, so that a recipe is refused before seconds are
    spent on imports. With `--debug` nothing is silenced, but no library writes to stdout either.
    """
    reserve_stdout()
    if is_main_process():
        # `say` would import torch first.
        stderr.print("loading torch and transformers", soft_wrap=True)
    if is_debug_enabled():
        return
    # Progress bars of the libraries overwrite ours; PEFT's notice repeats what it was asked for.
    warnings.filterwarnings("ignore", module=r"(peft|transformers|trl|torch)\b")
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    # Logged once a layer and text, about a cast that its int8 layers are asked to do.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # A server that is busy, which is asked again.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    # Unreadable data is reported by our own message.
    datasets.logging.set_verbosity(logging.CRITICAL)
