"""Arms `base` and `adapter` of a head, which are two models, as one model of the engine.

Base and adapter answer look by look together, so that they have to be arms of one model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from lora_kit.evaluation.engine.arm import Arm, LoadedArms


class BaseOrAdapter(torch.nn.Module):
    """Two models, of which the adapter's answers unless the base is chosen."""

    def __init__(self, base: torch.nn.Module, adapter: torch.nn.Module):
        """Create the model.

        Args:
            base: baseline without an adapter.
            adapter: head with its backbone and adapter.
        """
        super().__init__()
        self.base, self.adapter, self.config = base, adapter, adapter.config
        self._answers: torch.nn.Module = adapter

    def forward(self, **batch: Any) -> Any:
        """Return the output of the model that answers.

        Args:
            batch: `input_ids` and `attention_mask`, each (batch, length), int64, and what else the
                models read.
        """
        return self._answers(**batch)

    @contextmanager
    def answering_as_base(self) -> Iterator[None]:
        """Let the base answer, and the adapter again on exit."""
        self._answers = self.base
        try:
            yield
        finally:
            self._answers = self.adapter


def base_and_adapter(
    base: Callable[[], torch.nn.Module],
    adapter: Callable[[], torch.nn.Module],
    identities: tuple[str, str],
) -> LoadedArms:
    """Return both arms of a head, for suites with the role gain.

    Args:
        base: function that returns the baseline.
        adapter: function that returns the head with its backbone and adapter.
        identities: digests of both, on which their outcomes depend.
    """
    of_base, of_adapter = identities
    return LoadedArms(
        lambda: BaseOrAdapter(base(), adapter()),
        (
            Arm("base", of_base, BaseOrAdapter.answering_as_base, roles=("gain",)),
            Arm("adapter", of_adapter, nullcontext, roles=("gain",)),
        ),
    )
