"""llama.cpp's programs on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from lora_kit.runtime.errors import LoraKitError


def find_llama_cpp(folder: Path | None, program: str, error: type[LoraKitError]) -> Path:
    """Return the path of one of llama.cpp's programs: in the folder, or on the PATH.

    Args:
        folder: folder of the programs, or of an installation; `None` to look on the PATH.
        program: name of the program, such as `llama-server`.
        error: error to raise.

    Raises:
        error: if it is not there.
    """
    fix = (
        f"Fix: install llama.cpp so that `{program}` is on the PATH, or name its folder with "
        "--llama-cpp"
    )
    if folder is not None:
        found = [path for path in (folder / program, folder / "bin" / program) if path.is_file()]
        if not found:
            raise error(f"--llama-cpp: no program {program} in this folder (got {folder}). {fix}")
        return found[0]
    on_path = shutil.which(program)
    if on_path is None:
        raise error(f"{program}: not found on this machine (got no such program). {fix}")
    return Path(on_path)
