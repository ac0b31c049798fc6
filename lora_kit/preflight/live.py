"""How many bytes a computation holds at most, found by running it on tensors without data."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that are alive while operations run, as the allocator would see them.

    After torch's own `torch.distributed._tools.mem_tracker`, without its module hooks. What
    depends on data cannot run without it: the loss finds as many places as it is told.

    Attributes:
        label: what is made from now on is counted under it.
        peak: bytes by label at the moment when most were alive.
    """

    def __init__(self, places: int) -> None:
        """Take the number of supervised tokens."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.label = ""
        self.peak: dict[str, int] = {}
        self._alive: Counter[str] = Counter()
        self._most = -1
        self._known = WeakIdKeyDictionary()
        self._places = places

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Leave tensors out that are counted elsewhere, such as weights."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()] = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.nonzero.default:
            shape = (self._places, args[0].dim())
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
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = True
        self._alive[self.label] += size
        weakref.finalize(storage, self._free, self.label, size)
        total = self._alive.total()
        if total > self._most:
            self._most = total
            self.peak = dict(self._alive)

    def _free(self, label: str, size: int) -> None:
        self._alive[label] -= size
