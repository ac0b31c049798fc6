"""How many bytes a computation holds at most, found by running it on tensors without data."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that are alive while operations run, as the allocator would see them.

    After torch's own `torch.distributed._tools.mem_tracker`, without its module hooks. An operation
    whose result's shape depends on data cannot run without data: those of the loss find as many
    places as they are told.

    Attributes:
        label: what is made from now on is counted under it.
        peak: bytes by label at the moment when most were alive.
    """

    def __init__(self, places: int, columns: int) -> None:
        """Take the number of supervised tokens, and of the different columns they stand in."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.label = ""
        self.peak: dict[str, int] = {}
        self._alive: Counter[str] = Counter()
        self._most = -1
        self._known = WeakIdKeyDictionary()
        self._sizes: dict[Any, Callable[[torch.Tensor], tuple[int, ...]]] = {
            torch.ops.aten.nonzero.default: lambda found: (places, found.dim()),
            torch.ops.aten._unique2.default: lambda _found: (min(columns, places),),
        }

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Leave tensors out that are counted elsewhere, such as weights."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()] = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in self._sizes:
            shape = self._sizes[func](args[0])
            made = torch.ops.aten.empty.memory_format(
                shape, dtype=torch.int64, device=args[0].device
            )
            # `unique` gives counts as well, which nobody here takes.
            result = made if func is torch.ops.aten.nonzero.default else (made, made, made)
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
