"""Merge tensor by tensor, shards in, shards out; the model is never loaded."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from lora_kit.backbone.fingerprint import weight_files
from lora_kit.merging.arithmetic import require_finite
from lora_kit.merging.configuration import write_configuration
from lora_kit.merging.dequantize import dequantized
from lora_kit.merging.layout import TensorGroup, tensor_groups
from lora_kit.merging.masked_names import model_names, new_tensors
from lora_kit.merging.meta_model import MetaModel, build_meta_model
from lora_kit.merging.partial import PartialMerge, require_disk_space, require_empty_output
from lora_kit.merging.plan import MergePlan, MergeResult
from lora_kit.merging.tensors import PlannedTensor, StoredTensor, stored_by_key
from lora_kit.runtime.errors import MergeError


def merge_stream(plan: MergePlan, output: Path) -> MergeResult:
    """Write the merged model to `output`, completely or not at all.

    A merge that is killed leaves a hidden directory beside `output`, without a configuration; the
    next call with the same plan resumes from the shards that are finished.

    Args:
        plan: backbone, adapter and options.
        output: directory that does not exist or is empty.

    Raises:
        MergeError: if the adapter does not fit the backbone, a value is not finite, or the disk is
            too small.
    """
    started = time.monotonic()
    require_empty_output(output)
    files = weight_files(plan.base)
    stored = stored_by_key(files)
    meta = build_meta_model(plan.base, plan.adapter, plan.masked)
    groups = list(tensor_groups(stored, meta))
    names = model_names(groups, meta) if plan.masked else {}
    _require_parameters(plan, meta, groups)
    sources = {target: group for group in groups for target in group.targets}
    merge = _StreamedMerge(plan, meta, sources, _prevailing_dtype(stored), names)
    planned = list(merge.plan_tensors(groups))
    if plan.masked:
        planned += new_tensors(meta, sources, merge.dtype)
    total = sum(one.nbytes for one in planned)
    require_disk_space(output, total)
    architecture = type(meta.model).__name__ if plan.masked else None
    with PartialMerge.begin_or_resume(output, plan, files) as partial_merge:
        reused = partial_merge.write(planned, plan.shard_bytes)
        rows = meta.model.config.get_text_config().vocab_size
        write_configuration(plan, rows, bool(meta.untied), partial_merge.path, architecture)
        partial_merge.finish()
    return MergeResult(
        tensors=len(planned),
        merged=len(meta.changed),
        dequantized=len(plan.quantized_modules) if plan.into == "dequantized" else 0,
        untied=tuple(sorted(meta.untied)),
        untouched=tuple(one.key for one in planned if one.unmodified),
        weight_bytes=total,
        kept_shards=reused,
        in_memory=False,
        seconds=time.monotonic() - started,
        renamed={new: key for key, new in names.items() if new != key},
    )


@dataclass(frozen=True)
class _StreamedMerge:
    """Plans and produces each tensor of the merged model.

    Attributes:
        plan: plan of the merge.
        meta: meta model with the adapter attached.
        sources: group of checkpoint tensors that holds a parameter, by parameter.
        base_dtype: dtype that most numbers of the backbone are stored in.
        names: name in the merged files of each stored tensor that has another one there.
        produced: tensors of a group that was merged together, until they are written.
        lock: held while PEFT layers hold real weights, or a group is merged: several tensors are
            produced at a time.
        threads: number of torch threads while the lock is held. All are used: the last digits of
            a decomposition depend on the number of threads.
    """

    plan: MergePlan
    meta: MetaModel
    sources: Mapping[str, TensorGroup]
    base_dtype: torch.dtype
    names: Mapping[str, str] = field(default_factory=dict)
    produced: dict[str, torch.Tensor] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    threads: int = field(default_factory=torch.get_num_threads)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.plan.stored_dtype)
        return dtype

    def plan_tensors(self, groups: Sequence[TensorGroup]) -> Iterator[PlannedTensor]:
        """Yield all tensors to write, those of a group one after another."""
        for group in groups:
            yield from self._plan_group(group)
        for name in sorted(self.meta.untied - set(self.sources)):
            twin = next(n for n in sorted(self.meta.aliases[name]) if n in self.sources)
            yield self._plan_parameter(name, name, self.sources[twin])

    def _plan_group(self, group: TensorGroup) -> Iterator[PlannedTensor]:
        if len(group.stored) == 1 and group.converter is None:
            name, tensor = group.targets[0], group.stored[0]
            if self._is_modified(name):
                yield self._plan_parameter(name, self.names.get(tensor.key, tensor.key), group)
            else:
                yield self._plan_unmodified(tensor)
            return
        modified = any(self._is_modified(name) for name in group.targets)
        for tensor in group.stored:
            if modified:
                produce = partial(self._tensor_of_group, tensor.key, group)
                yield PlannedTensor(tensor.key, self.dtype, tensor.shape, produce)
            else:
                yield self._plan_unmodified(tensor)

    def _is_modified(self, name: str) -> bool:
        return name in self.meta.changed or self._was_quantized(name)

    def _was_quantized(self, name: str) -> bool:
        module = name.removesuffix(".weight")
        return self.plan.into == "dequantized" and module in self.plan.quantized_modules

    def _plan_unmodified(self, tensor: StoredTensor) -> PlannedTensor:
        if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
            raise MergeError(
                f"{tensor.path}: tensor is quantized, and its scale is unknown (got "
                f"{tensor.key} in {tensor.dtype}). Fix: merge into a checkpoint that is not "
                "quantized"
            )
        # Tensors that a checkpoint stores finer than the others keep their dtype.
        finer = tensor.dtype.itemsize > self.base_dtype.itemsize
        key = self.names.get(tensor.key, tensor.key)
        if not tensor.dtype.is_floating_point or tensor.dtype == self.dtype or finer:
            return PlannedTensor(key, tensor.dtype, tensor.shape, copied=tensor, unmodified=True)
        return PlannedTensor(
            key,
            self.dtype,
            tensor.shape,
            lambda: require_finite(tensor.key, tensor.read().to(self.dtype)),
            unmodified=True,
        )

    def _plan_parameter(self, name: str, key: str, group: TensorGroup) -> PlannedTensor:
        replaced = self.meta.replaced.get(name)
        shape = group.stored[0].shape if replaced is None else tuple(replaced.shape)
        return PlannedTensor(key, self.dtype, shape, partial(self._merge_parameter, name, group))

    def _merge_parameter(
        self, name: str, group: TensorGroup
    ) -> torch.Tensor | Iterator[torch.Tensor]:
        as_stored = group.converter is None and not self._was_quantized(name)
        if as_stored and self.meta.is_plain_lora(name) and name not in self.meta.replaced:
            return self.meta.merged_rows(name, group.stored[0].read_rows, self.dtype)

        def read_parameter(other: str) -> torch.Tensor:
            # A tied parameter may be stored under another name, in `group`.
            source = group if other == name else self.sources.get(other)
            if source is None:
                raise MergeError(
                    f"{self.plan.base}: parameter missing from the files (got none for {other}). "
                    "Fix: give the backbone that the adapter was trained on"
                )
            tensors = source.parameters(self.meta)
            tensor = tensors[other if other in tensors else source.targets[0]]
            return self._as_in_training(other, tensor)

        if name not in self.meta.changed:
            return read_parameter(name).to(self.dtype)
        if self.meta.is_plain_lora(name):
            return self.meta.merged_parameter(name, read_parameter, self.dtype)
        with self._exclusive():
            return self.meta.merged_parameter(name, read_parameter, self.dtype)

    def _as_in_training(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Quantize and dequantize a weight if it was quantized in training."""
        if not self._was_quantized(name):
            return tensor
        computed: torch.dtype = getattr(torch, self.plan.dtype)
        weight = tensor.to(computed)
        if name.removesuffix(".weight") in self.meta.transposed:
            # bitsandbytes replaces it by a linear layer, whose blocks run along the other side.
            return dequantized(weight.T, self.plan.quantization).T
        return dequantized(weight, self.plan.quantization)

    def _tensor_of_group(self, key: str, group: TensorGroup) -> torch.Tensor:
        with self._exclusive():
            if key not in self.produced:
                self.produced.update(self._merge_group(group))
            return self.produced.pop(key)

    def _merge_group(self, group: TensorGroup) -> dict[str, torch.Tensor]:
        parameters = group.parameters(self.meta)
        for name in group.targets:
            parameters[name] = (
                self.meta.merged_parameter(name, parameters.__getitem__, self.dtype)
                if name in self.meta.changed
                else parameters[name].to(self.dtype)
            )
        return group.to_checkpoint(parameters, self.meta)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the lock, and use all torch threads meanwhile."""
        with self.lock:
            share = torch.get_num_threads()
            torch.set_num_threads(self.threads)
            try:
                yield
            finally:
                torch.set_num_threads(share)


def _prevailing_dtype(stored: Mapping[str, StoredTensor]) -> torch.dtype:
    numbers: Counter[torch.dtype] = Counter()
    for tensor in stored.values():
        if tensor.dtype.is_floating_point:
            numbers[tensor.dtype] += tensor.nbytes // tensor.dtype.itemsize
    return max(numbers, key=lambda dtype: numbers[dtype], default=torch.float32)


def _require_parameters(plan: MergePlan, meta: MetaModel, groups: Sequence[TensorGroup]) -> None:
    """Refuse a checkpoint that lacks a parameter which was changed or quantized in training."""
    names = {name for group in groups for name in group.targets}
    if plan.masked:
        # Layers of a head that the adapter holds in full.
        names |= set(meta.replaced)
    stored = names | {a for name in names for a in meta.aliases.get(name, frozenset())}
    quantized = [f"{module}.weight" for module in plan.quantized_modules]
    for origin, expected in (
        ("the adapter changes", sorted(meta.changed)),
        ("training quantized", quantized),
    ):
        missing = [name for name in expected if name not in stored]
        if missing:
            raise MergeError(
                f"{plan.base}: {len(missing)} parameters that {origin} are missing from the files "
                f"(got none for {missing[0]} first). Fix: give the backbone that the adapter was "
                "trained on"
            )
