"""Memory of a process that has only imported the libraries of a training."""

import subprocess
import sys
from functools import lru_cache

from lora_kit.runtime.machine import peak_memory


@lru_cache(maxsize=1)
def libraries_memory() -> int:
    """Return the bytes that Python and the libraries of a training hold on this machine.

    Measured in a separate process, which takes as long as importing the libraries.

    Raises:
        RuntimeError: if the libraries cannot be imported.
    """
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
