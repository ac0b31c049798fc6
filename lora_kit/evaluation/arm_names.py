"""Arms by their names: models of a run, and files and servers that others use."""

from __future__ import annotations

from pathlib import Path

from lora_kit.recipe.sections import MERGED_ARMS, QUANTIZED_ARMS

# Between a kind and a name, as in `gguf=model.gguf` and `served=http://127.0.0.1:8000/v1`.
FILE_SEPARATOR = "="
SERVED = "served"
CONTROL = "base-"


def is_file_arm(arm: str) -> bool:
    """Return true for an arm that is an exported file or a served model."""
    return FILE_SEPARATOR in arm


def gguf_arm(path: Path) -> str:
    """Return the name of the arm that a GGUF file is, without its folder."""
    return f"gguf{FILE_SEPARATOR}{path.name}"


def is_served_arm(arm: str) -> bool:
    """Return true for an arm that is a model of a server."""
    return arm.startswith(f"{SERVED}{FILE_SEPARATOR}")


def is_serving_format(arm: str) -> bool:
    """Return true for a form in which the model is served: a file, a server's, or quantized."""
    return (is_file_arm(arm) and not is_control(arm)) or arm in QUANTIZED_ARMS


def is_shipped(arm: str) -> bool:
    """Return true for an arm that may be given to others, and is judged as the adapter is."""
    return arm in MERGED_ARMS or is_serving_format(arm)


def control_arm(arm: str) -> str:
    """Return the arm that tells the loss of a quantization from that of the adapter."""
    return f"{CONTROL}{arm}"


def is_control(arm: str) -> bool:
    """Return true for the base, quantized as a form in which the model is served."""
    return arm.startswith(CONTROL)


def is_asked_with_shipped(arm: str) -> bool:
    """Return true for an arm that is asked as far as those that ship: they, the base, controls."""
    return arm == "base" or is_shipped(arm) or is_control(arm)
