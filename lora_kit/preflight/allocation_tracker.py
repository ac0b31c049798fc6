"""Peak number of bytes that a computation holds, measured on tensors without data."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class AllocationTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of the storages that are alive while operations run.

    Follows torch's `torch.distributed._tools.mem_tracker`, without module hooks. Operations whose
    output shape depends on data cannot run without data; `nonzero`, which selects the supervised
    tokens of the loss, returns as many indices as given to the constructor.

    Attributes:
        label: label under which new storages are counted.
        peak: bytes by label at the moment when the total was largest.
    """

    def __init__(self, supervised: int) -> None:
        """Set the number of supervised tokens."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.label = ""
        self.peak: dict[str, int] = {}
        self._alive: Counter[str] = Counter()
        self._peak_total = -1
        self._counted = WeakIdKeyDictionary()
        self._supervised = supervised

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Exclude tensors that are counted elsewhere, such as weights."""
        for tensor in tensors:
            self._counted[tensor.untyped_storage()] = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.nonzero.default:
            shape = (self._supervised, args[0].dim())
            result = torch.ops.aten.empty.memory_format(
                shape, dtype=torch.int64, device=args[0].device
            )
        else:
            result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._counted:
            return
        size = storage.nbytes()
        self._counted[storage] = True
        self._alive[self.label] += size
        weakref.finalize(storage, self._free, self.label, size)
        total = self._alive.total()
        if total > self._peak_total:
            self._peak_total = total
            self.peak = dict(self._alive)

    def _free(self, label: str, size: int) -> None:
        self._alive[label] -= size
