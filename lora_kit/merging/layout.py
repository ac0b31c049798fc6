"""Map the tensors of a checkpoint to the parameters of the model, and back.

Most tensors are one parameter each. Where transformers converts tensors on load (for example the
experts of a layer into one tensor), its own conversion rules are applied, in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from lora_kit.merging.meta_model import MetaModel
from lora_kit.merging.tensors import StoredTensor
from lora_kit.runtime.errors import MergeError


@dataclass(frozen=True)
class TensorGroup:
    """Tensors of a checkpoint that transformers converts together.

    Attributes:
        stored: tensors of the checkpoint.
        targets: names of the parameters that the tensors become.
        converter: converter of transformers; `None` where one tensor is one parameter unchanged.
        patterns: name pattern of each tensor in the converter.
    """

    stored: tuple[StoredTensor, ...]
    targets: tuple[str, ...]
    converter: Any = None
    patterns: tuple[str, ...] = ()

    def parameters(self, meta: MetaModel, device: str = "cpu") -> dict[str, torch.Tensor]:
        """Return the parameters by name, in the stored dtype.

        Args:
            meta: model that the parameters belong to.
            device: `cpu`, or `meta` for the shapes only.
        """
        if self.converter is None:
            return {self.targets[0]: self.stored[0].read()}
        converter = deepcopy(self.converter)
        for tensor, pattern in zip(self.stored, self.patterns, strict=True):
            values = (
                torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
                if device == "meta"
                else tensor.read()
            )
            converter.add_tensor(self.targets[0], tensor.key, pattern, values)
        return _convert(converter, self.targets[0], meta)

    def to_checkpoint(
        self, parameters: Mapping[str, torch.Tensor], meta: MetaModel
    ) -> dict[str, torch.Tensor]:
        """Convert parameters back to the tensors of the checkpoint.

        Args:
            parameters: all parameters in `targets`.
            meta: model that the parameters belong to.

        Returns:
            Tensors by checkpoint key, in the dtype of the parameters.

        Raises:
            MergeError: if the reverse conversion gives other tensors than the checkpoint has.
        """
        from transformers.core_model_loading import apply_renamings

        if self.converter is None:
            return {self.stored[0].key: parameters[self.targets[0]]}
        reverse = deepcopy(self.converter).reverse_transform()
        first = self.targets[0]
        for name, tensor in parameters.items():
            renamed, pattern = reverse.rename_source_key(name)
            if pattern is not None:
                first = renamed
                reverse.add_tensor(renamed, name, pattern, tensor)
        renamings = [r.reverse_transform() for r in reversed(_renamings(meta))]
        tensors = {
            apply_renamings(key, renamings): tensor
            for key, tensor in _convert(reverse, first, meta).items()
        }
        expected = {tensor.key for tensor in self.stored}
        if set(tensors) != expected:
            raise MergeError(
                f"{min(set(tensors) ^ expected)}: transformers cannot convert this tensor back to "
                f"the checkpoint's layout (got it from {first}). Fix: release the adapter unmerged"
            )
        return tensors


def tensor_groups(stored: Mapping[str, StoredTensor], meta: MetaModel) -> Iterator[TensorGroup]:
    """Yield the groups of a checkpoint in the order of its files; each tensor is in one group.

    Args:
        stored: tensors of the checkpoint by key.
        meta: model that the checkpoint is loaded into.
    """
    from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

    renamings = _renamings(meta)
    converters = [c for c in meta.conversions if isinstance(c, WeightConverter)]
    by_pattern = {p: converter for converter in converters for p in converter.source_patterns}
    by_parameter: dict[str, list[tuple[StoredTensor, str]]] = {}
    for key, tensor in stored.items():
        name, pattern = rename_source_key(
            key, renamings, converters, meta.model.base_model_prefix, dict(meta.shapes)
        )
        by_parameter.setdefault(name, []).append((tensor, pattern or ""))
    for name, members in by_parameter.items():
        # Experts by number: 2 comes before 10.
        members.sort(key=lambda member: dot_natural_key(member[0].key))
        tensors = tuple(tensor for tensor, _ in members)
        pattern = members[0][1]
        if not pattern:
            yield TensorGroup(tensors, (name,))
            continue
        patterns = tuple(pattern for _, pattern in members)
        group = TensorGroup(tensors, (name,), by_pattern[pattern], patterns)
        targets = tuple(group.parameters(meta, device="meta"))
        yield TensorGroup(tensors, targets, by_pattern[pattern], patterns)


def _renamings(meta: MetaModel) -> list[Any]:
    from transformers.core_model_loading import WeightRenaming

    return [rule for rule in meta.conversions if isinstance(rule, WeightRenaming)]


def _convert(converter: Any, name: str, meta: MetaModel) -> dict[str, torch.Tensor]:
    converted = converter.convert(name, model=meta.model, config=meta.model.config)
    return {key: t[0] if isinstance(t, list) else t for key, t in converted.items()}
