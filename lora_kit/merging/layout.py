"""Which tensors of a checkpoint are which parameters of the model, and back.

Mostly one is one. Where transformers reads a checkpoint's tensors into other ones (the experts of a
layer into one tensor, say), its own rules are asked, there and back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from lora_kit.merging.hollow import MetaModel
from lora_kit.merging.tensors import Stored
from lora_kit.runtime.errors import MergeError


@dataclass(frozen=True)
class Group:
    """Tensors of a checkpoint that are read together.

    Attributes:
        stored: the tensors.
        targets: the parameters that they become.
        converter: of transformers; `None` where one tensor is one parameter as it is.
        patterns: what the converter knows each tensor by.
    """

    stored: tuple[Stored, ...]
    targets: tuple[str, ...]
    converter: Any = None
    patterns: tuple[str, ...] = ()

    def parameters(self, hollow: MetaModel, device: str = "cpu") -> dict[str, torch.Tensor]:
        """The parameters, in the dtype that they are stored in; on `meta`, their shapes."""
        if self.converter is None:
            return {self.targets[0]: self.stored[0].read()}
        converter = deepcopy(self.converter)
        for tensor, pattern in zip(self.stored, self.patterns, strict=True):
            made = (
                torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
                if device == "meta"
                else tensor.read()
            )
            converter.add_tensor(self.targets[0], tensor.key, pattern, made)
        return _converted(converter, self.targets[0], hollow)

    def back(
        self, parameters: Mapping[str, torch.Tensor], hollow: MetaModel
    ) -> dict[str, torch.Tensor]:
        """The checkpoint's tensors of changed parameters.

        Raises:
            MergeError: if transformers' rule does not lead back to the same tensors.
        """
        if self.converter is None:
            return {self.stored[0].key: parameters[self.targets[0]]}
        reverse = deepcopy(self.converter).reverse_transform()
        first = self.targets[0]
        for name, tensor in parameters.items():
            renamed, pattern = reverse.rename_source_key(name)
            if pattern is not None:
                first = renamed
                reverse.add_tensor(renamed, name, pattern, tensor)
        renamings = [r.reverse_transform() for r in reversed(_renamings(hollow))]
        tensors = {
            _renamed(key, renamings): tensor
            for key, tensor in _converted(reverse, first, hollow).items()
        }
        wanted = {tensor.key for tensor in self.stored}
        if set(tensors) != wanted:
            odd = min(set(tensors) ^ wanted)
            raise MergeError(
                f"{odd}: transformers reads it into {first} and cannot write it back the same way; "
                "this adapter cannot be merged tensor by tensor"
            )
        return tensors


def groups(stored: Mapping[str, Stored], hollow: MetaModel) -> Iterator[Group]:
    """Every tensor of a checkpoint, in one group each, in the order of the files."""
    from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

    renamings = _renamings(hollow)
    converters = [c for c in hollow.conversions if isinstance(c, WeightConverter)]
    by_pattern = {p: converter for converter in converters for p in converter.source_patterns}
    together: dict[str, list[tuple[Stored, str]]] = {}
    for key, tensor in stored.items():
        name, pattern = rename_source_key(
            key, renamings, converters, hollow.model.base_model_prefix, dict(hollow.shapes)
        )
        together.setdefault(name, []).append((tensor, pattern or ""))
    for name, members in together.items():
        # Experts by their number: 2 comes before 10.
        members.sort(key=lambda member: dot_natural_key(member[0].key))
        tensors = tuple(tensor for tensor, _ in members)
        pattern = members[0][1]
        if not pattern:
            yield Group(tensors, (name,))
            continue
        patterns = tuple(pattern for _, pattern in members)
        group = Group(tensors, (name,), by_pattern[pattern], patterns)
        made = group.parameters(hollow, device="meta")
        yield Group(tensors, tuple(made), by_pattern[pattern], patterns)


def _renamings(hollow: MetaModel) -> list[Any]:
    from transformers.core_model_loading import WeightRenaming

    return [rule for rule in hollow.conversions if isinstance(rule, WeightRenaming)]


def _renamed(key: str, renamings: list[Any]) -> str:
    from transformers.core_model_loading import apply_renamings

    renamed: str = apply_renamings(key, renamings)
    return renamed


def _converted(converter: Any, name: str, hollow: MetaModel) -> dict[str, torch.Tensor]:
    made = converter.convert(name, model=hollow.model, config=hollow.model.config)
    return {key: t[0] if isinstance(t, list) else t for key, t in made.items()}
