"""llama.cpp's own converter, for models that are not written here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lora_kit.merging.exporting.formats import GgufType
from lora_kit.runtime.errors import MergeError

LAST_LINES = 3


def convert_model(
    converter: Path, directory: Path, type_: GgufType, name: str, output: Path
) -> None:
    """Write a GGUF file with llama.cpp's converter, offline.

    Args:
        converter: `convert_hf_to_gguf.py`; it takes the `gguf` package beside it, if there is one.
        directory: directory of the model, in safetensors.
        type_: type of the matrices.
        name: name of the model in the file's metadata.
        output: file to write.

    Raises:
        MergeError: with the last lines of the converter's output if it fails, or writes no file.
    """
    done = subprocess.run(
        [
            *(*_interpreter(converter), str(converter), str(directory.absolute())),
            *("--outfile", str(output), "--outtype", type_, "--model-name", name),
        ],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    said = "; ".join(lines[-LAST_LINES:]) or "no output"
    if done.returncode != 0:
        raise MergeError(
            f"{converter}: ended with status {done.returncode} (got {said}). Fix: install the "
            "packages that it needs, use a newer llama.cpp, or export with --to nf4 or int8"
        )
    if not output.is_file():
        raise MergeError(
            f"{converter}: wrote no file (got {said}). Fix: use a newer llama.cpp, or export with "
            "--to nf4 or int8"
        )


def _interpreter(converter: Path) -> tuple[str, ...]:
    """Return this Python for a script in Python; nothing for another program."""
    with converter.open("rb") as file:
        is_python = converter.suffix == ".py" or b"python" in file.readline()
    return (sys.executable,) if is_python else ()
