"""Memory of a process that has only imported the libraries of a training."""

import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from lora_kit.runtime.cache import cache_directory
from lora_kit.runtime.errors import LoraKitError
from lora_kit.runtime.files import read_json, write_json
from lora_kit.runtime.hashes import json_sha256
from lora_kit.runtime.machine import machine, peak_memory, versions


@lru_cache(maxsize=1)
def libraries_memory() -> int:
    """Return the bytes that Python and the libraries of a training hold on this machine.

    Measured in a separate process, which takes as long as importing the libraries, and kept in the
    cache folder for these versions.

    Raises:
        RuntimeError: if the libraries cannot be imported.
        LoraKitError: if a file stands where the cache folder should be.
    """
    entry = _entry()
    known = _recall(entry)
    if known is None:
        known = _measure()
        # Without a cache that can be written, it is measured again the next time.
        with suppress(OSError):
            write_json(entry, {"bytes": known})
    return known


def _entry() -> Path:
    """Return the file of these libraries; another environment may hold other builds of them."""
    identity = json_sha256([sys.prefix, versions(), machine()])
    return cache_directory() / "libraries" / f"{identity}.json"


def _recall(entry: Path) -> int | None:
    try:
        size = read_json(entry, LoraKitError).get("bytes")
    except LoraKitError:
        return None
    return size if type(size) is int and size > 0 else None


def _measure() -> int:
    # Captured: what libraries print as they are imported is not for the user.
    completed = subprocess.run(
        [sys.executable, "-m", "lora_kit.preflight.libraries"],
        capture_output=True,
        check=False,
        text=True,
    )
    if completed.returncode:
        raise RuntimeError(f"the libraries of a training cannot be imported: {completed.stderr}")
    return int(completed.stdout.split()[-1])


def _print_peak_memory_after_imports() -> None:
    import bitsandbytes
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lora_kit.training import trainer

    del bitsandbytes, peft, AutoModelForCausalLM, AutoTokenizer, trainer
    print(peak_memory())


if __name__ == "__main__":
    _print_peak_memory_after_imports()
