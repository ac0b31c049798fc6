"""llama.cpp's programs, and its converter of models, on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from lora_kit.runtime.errors import LoraKitError

CONVERTERS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")


def find_llama_cpp(folder: Path | None, program: str, error: type[LoraKitError]) -> Path:
    """Return the path of one of llama.cpp's programs: in the folder, or on the PATH.

    Args:
        folder: folder of the programs, of an installation, or of a checkout with a build; `None` to
            look on the PATH.
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
        places = (folder, folder / "bin", folder / "build" / "bin")
        found = [place / program for place in places if (place / program).is_file()]
        if not found:
            raise error(f"--llama-cpp: no program {program} in this folder (got {folder}). {fix}")
        return found[0]
    on_path = shutil.which(program)
    if on_path is None:
        raise error(f"{program}: not found on this machine (got no such program). {fix}")
    return Path(on_path)


def find_converter(folder: Path | None) -> Path | None:
    """Return the path of llama.cpp's converter of models; `None` if it is not there.

    Args:
        folder: checkout of llama.cpp, or folder of its programs inside one; `None` to look on the
            PATH.
    """
    if folder is None:
        on_path = (shutil.which(name) for name in CONVERTERS)
        return next((Path(found) for found in on_path if found), None)
    folder = folder.absolute()
    # A build lies inside its source, or beside it.
    places = (folder, folder.parent, folder.parent.parent)
    sources = [place / inner for inner in ("", "source/llama.cpp") for place in places]
    files = (place / name for place in (*sources, folder / "bin") for name in CONVERTERS)
    return next((path for path in files if path.is_file()), None)
