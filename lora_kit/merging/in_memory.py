"""A merge by PEFT with the whole model in memory, for methods that cannot be merged otherwise."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.adapter.attach import attach_to
from lora_kit.backbone.fingerprint import weight_files
from lora_kit.merging.configuration import write_configuration
from lora_kit.merging.hollow import hollow_model
from lora_kit.merging.methods import adapter_configuration, is_streamed
from lora_kit.merging.partial import require_free, require_room
from lora_kit.merging.plan import MergePlan, MergeResult
from lora_kit.merging.reloaded import Computing, reload
from lora_kit.merging.stream import merge_stream
from lora_kit.merging.tensors import by_key
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import AdapterError, MergeError
from lora_kit.runtime.files import whole_directory

if TYPE_CHECKING:
    from peft import PeftModel


def merge_adapter(plan: MergePlan, output: Path) -> MergeResult:
    """Merge tensor by tensor where that is possible, else in memory, and say so.

    Raises:
        MergeError: as `merge_stream` and `merge_in_memory`.
    """
    if plan.adapter is None or is_streamed(adapter_configuration(plan.adapter)):
        return merge_stream(plan, output)
    return merge_in_memory(plan, output)


def merge_in_memory(plan: MergePlan, output: Path) -> MergeResult:
    """Merge with PEFT in float32 and round once.

    Raises:
        MergeError: if the adapter does not fit, or PEFT cannot merge its method.
    """
    started = time.monotonic()
    require_room(output)
    numbers = sum(tensor.length // tensor.dtype.itemsize for tensor in _stored(plan.base))
    method = adapter_configuration(_adapter(plan)).peft_type.value
    say(
        f"{plan.adapter}: {method} cannot be merged tensor by tensor; the whole model goes through "
        f"PEFT in memory ({4 * numbers / 1e9:.1f} GB)"
    )
    dtype: torch.dtype = getattr(torch, plan.stored_dtype)
    dequantized = len(plan.quantized_modules) if plan.into == "dequantized" else 0
    require_free(output, numbers * (dtype.itemsize + 4 * bool(dequantized)))
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as folder:
        base = plan.base
        if dequantized:
            base = Path(folder) / "base"
            # As it was multiplied with, which float32 holds exactly.
            merge_stream(replace(plan, adapter=None, stored_dtype="float32"), base)
        attached = _attached(base, plan)
        changed = _adapted(attached)
        merged = _merged(attached, plan)
        with whole_directory(output) as temporary:
            merged.to(dtype).save_pretrained(temporary, max_shard_size=plan.shard_bytes)
            write_configuration(plan, hollow_model(plan.base, None), temporary)
    written = _stored(output)
    return MergeResult(
        tensors=len(written),
        merged=changed,
        dequantized=dequantized,
        untied=(),
        untouched=(),
        weight_bytes=sum(tensor.length for tensor in written),
        kept_shards=0,
        in_memory=True,
        seconds=time.monotonic() - started,
    )


def _stored(directory: Path) -> list[Any]:
    return list(by_key(weight_files(directory)).values())


def _adapter(plan: MergePlan) -> Path:
    if plan.adapter is None:
        raise MergeError("no adapter to merge")
    return plan.adapter


def _attached(base: Path, plan: MergePlan) -> PeftModel:
    model = reload(base, Computing(torch.float32, "cpu", "eager"))
    try:
        return attach_to(model, str(plan.base), _adapter(plan))
    except AdapterError as error:
        raise MergeError(str(error)) from error


def _adapted(model: PeftModel) -> int:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return sum(isinstance(module, BaseTunerLayer) for module in model.modules())


def _merged(model: PeftModel, plan: MergePlan) -> Any:
    try:
        return model.merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise MergeError(f"{plan.adapter}: PEFT cannot merge it: {error}") from error
