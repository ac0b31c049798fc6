"""The merge itself: tensor by tensor, shards in, shards out; the model is never loaded."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch

from lora_kit.backbone.fingerprint import weight_files
from lora_kit.merging.arithmetic import finite
from lora_kit.merging.configuration import write_configuration
from lora_kit.merging.dequantize import dequantized
from lora_kit.merging.hollow import MetaModel, hollow_model
from lora_kit.merging.layout import Group, groups
from lora_kit.merging.partial import Partial, require_free, require_room
from lora_kit.merging.plan import MergePlan, MergeResult
from lora_kit.merging.tensors import Planned, Stored, by_key
from lora_kit.runtime.errors import MergeError


def merge_stream(plan: MergePlan, output: Path) -> MergeResult:
    """Write the merged model to `output`, whole or not at all.

    Killed in the middle, it leaves a hidden directory beside `output` that holds no configuration,
    and goes on from its finished shards when it is called again for the same.

    Raises:
        MergeError: if a part of the adapter has no place in the backbone, a number is none, or the
            disk is too small.
    """
    started = time.monotonic()
    require_room(output)
    files = weight_files(plan.base)
    stored = by_key(files)
    hollow = hollow_model(plan.base, plan.adapter)
    found = list(groups(stored, hollow))
    _require_places(plan, hollow, found)
    planned = list(_Work(plan, hollow, _base_dtype(stored)).planned(found))
    total = sum(one.length for one in planned)
    require_free(output, total)
    with Partial.of(output, asdict(plan), files) as partial_directory:
        kept = partial_directory.write(planned, plan.shard_bytes)
        write_configuration(plan, hollow, partial_directory.path)
        partial_directory.finish()
    return MergeResult(
        tensors=len(planned),
        merged=len(hollow.changed),
        dequantized=len(plan.quantized_modules) if plan.into == "dequantized" else 0,
        untied=tuple(sorted(hollow.untied)),
        untouched=tuple(one.key for one in planned if one.untouched),
        weight_bytes=total,
        kept_shards=kept,
        in_memory=False,
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class _Work:
    """How each tensor of the merged model comes about.

    Attributes:
        base_dtype: that most of the backbone's numbers are stored in.
        made: tensors of a group that was merged as a whole, until they are written.
        lock: held while layers of the hollow model are filled, or a group is merged: several
            tensors are made at a time.
        threads: of torch, all of which are used then: a decomposition's last digits depend on it.
    """

    plan: MergePlan
    hollow: MetaModel
    base_dtype: torch.dtype
    made: dict[str, torch.Tensor] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    threads: int = field(default_factory=torch.get_num_threads)

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.plan.stored_dtype)
        return found

    def planned(self, found: Sequence[Group]) -> Iterator[Planned]:
        """All tensors that are written, those of a group behind one another."""
        sources = {}
        for group in found:
            for target in group.targets:
                sources[target] = group
            yield from self._of_group(group, sources)
        for name in sorted(self.hollow.untied - set(sources)):
            twin = next(n for n in sorted(self.hollow.aliases[name]) if n in sources)
            yield self._of_parameter(name, name, sources[twin], sources)

    def _of_group(self, group: Group, sources: Mapping[str, Group]) -> Iterator[Planned]:
        if len(group.stored) == 1 and group.converter is None:
            name, tensor = group.targets[0], group.stored[0]
            if self._is_new(name):
                yield self._of_parameter(name, tensor.key, group, sources)
            else:
                yield self._as_it_is(tensor)
            return
        changed = any(self._is_new(name) for name in group.targets)
        for tensor in group.stored:
            if changed:
                produce = partial(self._from_group, tensor.key, group)
                yield Planned(tensor.key, self.dtype, tensor.shape, produce)
            else:
                yield self._as_it_is(tensor)

    def _is_new(self, name: str) -> bool:
        return name in self.hollow.changed or self._was_quantized(name)

    def _was_quantized(self, name: str) -> bool:
        module = name.removesuffix(".weight")
        return self.plan.into == "dequantized" and module in self.plan.quantized_modules

    def _as_it_is(self, tensor: Stored) -> Planned:
        if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
            raise MergeError(
                f"{tensor.path}: {tensor.key} is stored in {tensor.dtype}, without the scale that "
                "belongs to it; merge into a checkpoint that is not quantized"
            )
        # A checkpoint keeps few tensors finer than the others, and for a reason.
        finer = tensor.dtype.itemsize > self.base_dtype.itemsize
        if not tensor.dtype.is_floating_point or tensor.dtype == self.dtype or finer:
            return Planned(tensor.key, tensor.dtype, tensor.shape, copied=tensor, untouched=True)
        return Planned(
            tensor.key,
            self.dtype,
            tensor.shape,
            lambda: finite(tensor.key, tensor.read().to(self.dtype)),
            untouched=True,
        )

    def _of_parameter(
        self, name: str, key: str, group: Group, sources: Mapping[str, Group]
    ) -> Planned:
        replaced = self.hollow.replaced.get(name)
        shape = group.stored[0].shape if replaced is None else tuple(replaced.shape)
        return Planned(key, self.dtype, shape, partial(self._merged, name, group, sources))

    def _merged(
        self, name: str, group: Group, sources: Mapping[str, Group]
    ) -> torch.Tensor | Iterator[torch.Tensor]:
        as_stored = group.converter is None and not self._was_quantized(name)
        if as_stored and self.hollow.is_plain(name) and name not in self.hollow.replaced:
            return self.hollow.merged_rows(name, group.stored[0].rows, self.dtype)

        def read(other: str) -> torch.Tensor:
            # The same tensor under another name, where the backbone has it once.
            source = group if other == name else sources.get(other)
            if source is None:
                raise MergeError(f"{self.plan.base}: {other} is in none of its files")
            found = source.parameters(self.hollow)
            return self._as_trained_on(other, found[other if other in found else source.targets[0]])

        if name not in self.hollow.changed:
            return read(name).to(self.dtype)
        if self.hollow.is_plain(name):
            return self.hollow.merged(name, read, self.dtype)
        with self._alone():
            return self.hollow.merged(name, read, self.dtype)

    def _as_trained_on(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not self._was_quantized(name):
            return tensor
        computed: torch.dtype = getattr(torch, self.plan.dtype)
        used = tensor.to(computed)
        if name.removesuffix(".weight") in self.hollow.transposed:
            # Quantized as the linear layer that takes its place, block by block of the other side.
            return dequantized(used.T, self.plan.quantization).T
        return dequantized(used, self.plan.quantization)

    def _from_group(self, key: str, group: Group) -> torch.Tensor:
        with self._alone():
            if key not in self.made:
                self.made.update(self._merged_group(group))
            return self.made.pop(key)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self.lock:
            share = torch.get_num_threads()
            torch.set_num_threads(self.threads)
            try:
                yield
            finally:
                torch.set_num_threads(share)

    def _merged_group(self, group: Group) -> dict[str, torch.Tensor]:
        parameters = group.parameters(self.hollow)
        for name in group.targets:
            read = parameters.__getitem__
            parameters[name] = (
                self.hollow.merged(name, read, self.dtype)
                if name in self.hollow.changed
                else parameters[name].to(self.dtype)
            )
        return group.back(parameters, self.hollow)


def _base_dtype(stored: Mapping[str, Stored]) -> torch.dtype:
    numbers: Counter[torch.dtype] = Counter()
    for tensor in stored.values():
        if tensor.dtype.is_floating_point:
            numbers[tensor.dtype] += tensor.length // tensor.dtype.itemsize
    return max(numbers, key=lambda dtype: numbers[dtype], default=torch.float32)


def _require_places(plan: MergePlan, hollow: MetaModel, found: Sequence[Group]) -> None:
    names = {name for group in found for name in group.targets}
    reachable = names | {a for name in names for a in hollow.aliases.get(name, frozenset())}
    quantized = [f"{module}.weight" for module in plan.quantized_modules]
    for noun, wanted in (
        ("the adapter changes", sorted(hollow.changed)),
        ("training quantized", quantized),
    ):
        lost = [name for name in wanted if name not in reachable]
        if lost:
            raise MergeError(
                f"{plan.base}: {len(lost)} parameters that {noun} are in none of its files, the "
                f"first: {lost[0]}. Is this the backbone that the adapter was trained on?"
            )
