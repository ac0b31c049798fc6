"""llama.cpp's K-quants, written by its own program."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from lora_kit.runtime.errors import MergeError

QUANTIZE = "llama-quantize"


def quantize_gguf(program: Path, whole: Path, kind: str, output: Path) -> None:
    """Quantize a GGUF file in float32, which is deleted.

    Args:
        program: `llama-quantize`.
        whole: file to read.
        kind: mixture of types, such as `q4_k_m`.
        output: file to write.

    Raises:
        MergeError: with the end of what the program says, if it fails.
    """
    command = [str(program), str(whole), str(output), kind.upper(), str(os.cpu_count() or 1)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    whole.unlink()
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise MergeError(
            f"{QUANTIZE}: ended with status {done.returncode} (got {'; '.join(lines[-3:])}). Fix: "
            "use another --type, or a newer llama.cpp"
        )
