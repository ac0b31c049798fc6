"""Stand-ins as programs on a path."""

import sys
from pathlib import Path

LLAMA_SERVER = Path(__file__).with_name("llama_server.py")


def write_program(path: Path, script: str) -> Path:
    """Write a shell script that can be run."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def write_llama_server(folder: Path) -> Path:
    """Write the stand-in for llama.cpp's server into a folder, and return its path."""
    return write_program(folder / "llama-server", f'exec {sys.executable} {LLAMA_SERVER} "$@"')
