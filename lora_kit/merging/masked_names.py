"""Tensors of a merged masked language model: names that plain transformers expects, and its head.

The checkpoint of an encoder without a head names its tensors without the prefix of the model, which
a model with a head has. One file with both would not be loaded by all programs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial

import torch

from lora_kit.merging.arithmetic import require_finite
from lora_kit.merging.layout import TensorGroup
from lora_kit.merging.meta_model import MetaModel
from lora_kit.merging.tensors import PlannedTensor
from lora_kit.runtime.errors import MergeError


def model_names(groups: Sequence[TensorGroup], meta: MetaModel) -> dict[str, str]:
    """Return the name in the merged files of each stored tensor.

    Tensors without a place in the model, such as a pooler, are kept, with the prefix of the encoder
    if the checkpoint names the encoder's without.
    """
    single = [group for group in groups if group.converter is None]
    pairs = {group.stored[0].key: group.targets[0] for group in single}
    prefix = f"{meta.model.base_model_prefix}."
    is_bare = any(name == f"{prefix}{key}" for key, name in pairs.items())
    return {
        key: f"{prefix}{name}" if is_bare and name not in meta.shapes else name
        for key, name in pairs.items()
    }


def new_tensors(
    meta: MetaModel, stored: Collection[str], dtype: torch.dtype
) -> Iterator[PlannedTensor]:
    """Yield the parameters that the checkpoint lacks: trained layers, and biases that are 0.

    Args:
        meta: model with the adapter attached.
        stored: names of the parameters that the checkpoint has.
        dtype: dtype of the merged weights.

    Raises:
        MergeError: if neither the checkpoint nor the adapter has a weight.
    """
    written = set(stored)
    for name in sorted(meta.shapes):
        group = {name} | meta.aliases.get(name, frozenset())
        if not group.isdisjoint(written):
            continue
        written.add(name)
        shape = meta.shapes[name]
        if name in meta.replaced:
            yield PlannedTensor(name, dtype, shape, partial(_trained, name, meta, dtype))
        elif name.endswith(".bias"):
            yield PlannedTensor(name, dtype, shape, partial(torch.zeros, shape, dtype=dtype))
        else:
            raise MergeError(
                f"{name}: neither the backbone nor the adapter has this weight (got shape {shape})."
                " Fix: give the backbone that the adapter was trained on"
            )


def _trained(name: str, meta: MetaModel, dtype: torch.dtype) -> torch.Tensor:
    return require_finite(name, meta.replaced[name].to(dtype))
