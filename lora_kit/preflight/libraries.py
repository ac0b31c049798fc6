"""Says how many bytes a process holds that has imported what a training imports, and no more."""

import subprocess
import sys
from functools import lru_cache

from lora_kit.runs.directory import peak_memory


@lru_cache(maxsize=1)
def libraries_memory() -> int:
    """Bytes that a process on this machine holds for Python and the libraries of a training.

    Measured in a process of its own, which takes as long as importing them does.
    """
    done = subprocess.run(
        [sys.executable, "-m", "lora_kit.preflight.libraries"],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return int(done.stdout.split()[-1])


def main() -> None:
    """Import and print."""
    import bitsandbytes
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lora_kit.training import trainer

    del bitsandbytes, peft, AutoModelForCausalLM, AutoTokenizer, trainer
    print(peak_memory())


if __name__ == "__main__":
    main()
