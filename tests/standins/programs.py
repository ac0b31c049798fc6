"""Stand-ins as programs on a path."""

import sys
from pathlib import Path

LLAMA_SERVER = Path(__file__).with_name("llama_server.py")
COMPLETIONS_SERVER = Path(__file__).with_name("completions_server.py")


def write_program(path: Path, script: str) -> Path:
    """Write a shell script that can be run."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def write_llama_server(folder: Path) -> Path:
    """Write the stand-in for llama.cpp's server into a folder, and return its path."""
    return write_program(folder / "llama-server", f'exec {sys.executable} {LLAMA_SERVER} "$@"')


def write_vllm(folder: Path) -> Path:
    """Write an environment whose Python has the stand-in for vLLM; return its folder."""
    folder.mkdir(exist_ok=True)
    script = f"""case "$1" in
    -c) echo "vllm 0.0" ;;
    *) shift 2; exec {sys.executable} {COMPLETIONS_SERVER} "$@" ;;
esac"""
    write_program(folder / "bin" / "python", script)
    return folder
