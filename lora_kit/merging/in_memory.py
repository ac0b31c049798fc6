"""Merge with PEFT, the whole model in memory, for methods that cannot be streamed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.adapter.attach import load_adapter
from lora_kit.backbone.fingerprint import weight_files
from lora_kit.merging.configuration import write_configuration
from lora_kit.merging.methods import adapter_configuration, is_streamed
from lora_kit.merging.partial import require_disk_space, require_empty_output
from lora_kit.merging.plan import MergePlan, MergeResult
from lora_kit.merging.reloaded import ComputeSettings, load_merged
from lora_kit.merging.stream import merge_stream
from lora_kit.merging.tensors import StoredTensor, stored_by_key
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import AdapterError, MergeError
from lora_kit.runtime.files import whole_directory
from lora_kit.runtime.temporaries import hidden_beside

if TYPE_CHECKING:
    from peft import PeftModel


def merge_adapter(plan: MergePlan, output: Path) -> MergeResult:
    """Merge tensor by tensor where the method allows it, else in memory.

    Raises:
        MergeError: if the adapter does not fit the backbone, or cannot be merged.
    """
    config = adapter_configuration(plan.adapter) if plan.adapter else None
    if config is None or is_streamed(config):
        return merge_stream(plan, output)
    if plan.masked:
        raise MergeError(
            f"{plan.adapter}: an adapter of a masked language model is merged tensor by tensor, "
            f"which its method is not (got {config.peft_type.value}). Fix: train LoRA"
        )
    return merge_in_memory(plan, output)


def merge_in_memory(plan: MergePlan, output: Path) -> MergeResult:
    """Merge with PEFT in float32, round once, and write the model to `output`.

    Raises:
        MergeError: if the adapter does not fit, or PEFT cannot merge its method.
    """
    started = time.monotonic()
    require_empty_output(output)
    assert plan.adapter is not None  # without an adapter, `merge_adapter` streams
    numbers = sum(tensor.nbytes // tensor.dtype.itemsize for tensor in _stored(plan.base))
    method = adapter_configuration(plan.adapter).peft_type.value
    say(
        f"{plan.adapter}: {method} cannot be merged tensor by tensor; PEFT merges the whole model "
        f"in memory ({4 * numbers / 1e9:.1f} GB)"
    )
    dtype: torch.dtype = getattr(torch, plan.stored_dtype)
    dequantized = len(plan.quantized_modules) if plan.into == "dequantized" else 0
    require_disk_space(output, numbers * (dtype.itemsize + 4 * bool(dequantized)))
    with hidden_beside(output) as folder:
        base = plan.base
        if dequantized:
            base = folder / "base"
            # float32 holds the dequantized weights of training exactly.
            merge_stream(replace(plan, adapter=None, stored_dtype="float32"), base)
        attached = _attach(base, plan.base, plan.adapter)
        changed = _count_adapted(attached)
        merged = _merge_and_unload(attached, plan.adapter)
        with whole_directory(output) as temporary:
            merged.to(dtype).save_pretrained(temporary, max_shard_size=plan.shard_bytes)
            rows = merged.config.get_text_config().vocab_size
            write_configuration(plan, rows, False, temporary)
    written = _stored(output)
    return MergeResult(
        tensors=len(written),
        merged=changed,
        dequantized=dequantized,
        untied=(),
        untouched=(),
        weight_bytes=sum(tensor.nbytes for tensor in written),
        kept_shards=0,
        in_memory=True,
        seconds=time.monotonic() - started,
    )


def _stored(directory: Path) -> list[StoredTensor]:
    return list(stored_by_key(weight_files(directory)).values())


def _attach(base: Path, backbone: Path, adapter: Path) -> PeftModel:
    model = load_merged(base, ComputeSettings(torch.float32, "cpu", "eager"))
    try:
        return load_adapter(model, str(backbone), adapter)
    except AdapterError as error:
        raise MergeError(str(error)) from error


def _count_adapted(model: PeftModel) -> int:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return sum(isinstance(module, BaseTunerLayer) for module in model.modules())


def _merge_and_unload(model: PeftModel, adapter: Path) -> Any:
    try:
        return model.merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise MergeError(
            f"{adapter}: PEFT cannot merge it (got {type(error).__name__}: {error}). Fix: release "
            "it as an adapter"
        ) from error
