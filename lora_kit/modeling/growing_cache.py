"""Keys and values of a decoder with room for the tokens that will be generated."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """Cache layer that writes new tokens into room that is there, instead of copying all tokens.

    `keys` and `values` are views of the tokens so far, (rows, heads, tokens, width).
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, room: int) -> None:
        """Copy keys and values (rows, heads, tokens, width) and add room for further tokens."""
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._take(keys, values, keys.shape[-2] + room)

    @classmethod
    def zeros(
        cls, keys: torch.Tensor, values: torch.Tensor, rows: int, width: int, room: int
    ) -> GrowingLayer:
        """Return a layer of zeros (rows, heads, width, size) with room for further tokens.

        Args:
            keys: (any, heads, any, size), for heads, size, dtype and device.
            values: as `keys`.
            rows: number of rows.
            width: number of tokens.
            room: number of tokens that can follow.
        """
        empty_keys, empty_values = (
            one.new_zeros(()).expand(rows, one.shape[1], width, one.shape[3])
            for one in (keys, values)
        )
        return cls(empty_keys, empty_values, room)

    def _take(self, keys: torch.Tensor, values: torch.Tensor, capacity: int) -> None:
        length = keys.shape[-2]
        self._buffers = tuple(
            one.new_empty((*one.shape[:-2], capacity, one.shape[-1])) for one in (keys, values)
        )
        for buffer, one in zip(self._buffers, (keys, values), strict=True):
            buffer[..., :length, :] = one
        self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values (rows, heads, new, width) and return those of all tokens."""
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if end > self._buffers[0].shape[-2]:
            self._take(self.keys, self.values, 2 * end)
        keys, values = self._buffers
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only some rows."""
        room = self._buffers[0].shape[-2]
        self._take(self.keys[indices], self.values[indices], room)


def is_row_selectable(cache: Cache) -> bool:
    """Return true for a cache of keys and values alone, of which rows can be dropped.

    States of recurrent layers and other kinds of caches are left to transformers.
    """
    known = (DynamicLayer, DynamicSlidingWindowLayer, GrowingLayer)
    return (
        type(cache) is DynamicCache
        and not cache.offloading
        and all(type(layer) in known for layer in cache.layers)
    )


def give_room(cache: Cache, room: int) -> None:
    """Give the layers that see all tokens room for further ones, in place.

    Layers with a sliding window stay as they are: they hold a few tokens, and drop old ones.
    """
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[number] = GrowingLayer(layer.keys, layer.values, room)
