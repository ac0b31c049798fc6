"""Stand-ins as programs on a path."""

import sys
from pathlib import Path

from tests.standins.models import serve_models

ROOT = Path(__file__).parents[2]
LLAMA_SERVER, COMPLETIONS_SERVER = (
    "tests.standins.llama_server",
    "tests.standins.completions_server",
)


def write_program(path: Path, script: str) -> Path:
    """Write a shell script that can be run."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def write_llama_server(folder: Path) -> Path:
    """Write the stand-in for llama.cpp's server into a folder, and return its path."""
    return write_program(folder / "llama-server", f'{_command(LLAMA_SERVER)} "$@"')


def write_vllm(folder: Path) -> Path:
    """Write an environment whose Python has the stand-in for vLLM; return its folder."""
    folder.mkdir(exist_ok=True)
    script = f"""case "$1" in
    -c) echo "vllm 0.0" ;;
    *) shift 2; {_command(COMPLETIONS_SERVER)} "$@" ;;
esac"""
    write_program(folder / "bin" / "python", script)
    return folder


def _command(module: str) -> str:
    """Return the command of a shell script that runs a module of these tests in its place."""
    path = f"{ROOT}${{PYTHONPATH:+:$PYTHONPATH}}"
    settings = f'export PYTHONPATH="{path}" MODELS="{serve_models()}"'
    return f"{settings}; exec {sys.executable} -m {module}"
