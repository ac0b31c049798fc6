"""The backbone of a plan: with its weights, or by its shapes where they are not or do not fit."""

from __future__ import annotations

from lora_kit.backbone.files import BackboneFiles
from lora_kit.backbone.fingerprint import weight_files
from lora_kit.backbone.heads import HeadOutputs
from lora_kit.backbone.load import Backbone, compute_dtype, load
from lora_kit.backbone.open_files import open_config
from lora_kit.backbone.shapes import has_weight_files, open_shapes
from lora_kit.preflight.device import find_memory
from lora_kit.preflight.fake_model import stored_bytes
from lora_kit.preflight.memory import CUDA_BASE
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.processes import process_state

GB = 1e9


def open_for_plan(
    files: BackboneFiles, spec: BackboneSpec, outputs: HeadOutputs | None, is_elsewhere: bool
) -> tuple[Backbone, str | None]:
    """Open a backbone for planning, by its shapes if its weights cannot be loaded here.

    Models with a head are always loaded.

    Args:
        files: local files.
        spec: backbone section of the recipe.
        outputs: outputs of a head; `None` for a language model.
        is_elsewhere: true if the training is launched on other machines, so that the weights need
            not be on this one.

    Returns:
        The backbone, and the reason why it has no weights; `None` if it has them.

    Raises:
        BackboneError: as in `load` and `open_shapes`.
    """
    reason = None if outputs else _reason_for_shapes(files, spec, is_elsewhere)
    if reason is None:
        return load(files, spec, outputs), None
    return open_shapes(files, spec), reason


def _reason_for_shapes(files: BackboneFiles, spec: BackboneSpec, is_elsewhere: bool) -> str | None:
    if not has_weight_files(files.directory):
        return f"{files.directory} has no weights" if is_elsewhere else None
    device = process_state().device
    size, memory = loaded_bytes(files, spec), find_memory(device)
    if size + (CUDA_BASE if device.type == "cuda" else 0) <= memory.available:
        return None
    return (
        f"the weights take {size / GB:.1f} GB as they are loaded, and this machine has "
        f"{memory.available / GB:.1f} GB free of {memory.total / GB:.1f} GB"
    )


def loaded_bytes(files: BackboneFiles, spec: BackboneSpec) -> int:
    """Return the bytes of a model as it is loaded, from the sizes of its files.

    All weights count as quantized ones, which is too few for small models with many words.

    Raises:
        BackboneError: if the weight files are incomplete.
    """
    stored = sum(path.stat().st_size for path in weight_files(files.directory))
    parameters = stored // (open_config(files.directory).dtype or compute_dtype(spec)).itemsize
    if spec.quantization == "none":
        return parameters * compute_dtype(spec).itemsize
    return stored_bytes(parameters, 0, spec.quantization)
