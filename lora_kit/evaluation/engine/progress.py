"""The progress of an evaluation: the first process's bar shows what all of them have done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch.distributed.distributed_c10d import Store

from lora_kit.runtime.console import Meter
from lora_kit.runtime.processes import process_state, shared_store

POLL_SECONDS = 0.5
ITEMS, TOKENS, FINISHED = (f"lora_kit/evaluation/{n}" for n in ("items", "tokens", "finished"))


@dataclass
class Progress:
    """Counts of items and tokens that all processes add to, and the bar that shows them."""

    meter: Meter
    store: Store | None
    items: int = 0
    tokens: int = 0

    def advance(self, items: int, note: str, tokens: int) -> None:
        """Count what this process has done, and show what all have."""
        if self.store is None:
            self.meter.advance(items, note, tokens=tokens)
            return
        self._show(self.store.add(ITEMS, items), self.store.add(TOKENS, tokens), note)

    def wait(self, processes: int) -> None:
        """Go on showing what the others do, until all have finished."""
        if self.store is None:
            return
        finished = self.store.add(FINISHED, 1)
        while process_state().is_main_process and finished < processes:
            time.sleep(POLL_SECONDS)
            finished = self.store.add(FINISHED, 0)
            items, tokens = self.store.add(ITEMS, 0), self.store.add(TOKENS, 0)
            self._show(items, tokens, "the other processes")

    def _show(self, items: int, tokens: int, note: str) -> None:
        """Move the bar on to these sums; both only grow, but may be seen in another order."""
        if items > self.items:
            self.meter.advance(items - self.items, note, tokens=max(tokens - self.tokens, 0))
            self.items, self.tokens = items, max(tokens, self.tokens)


@contextmanager
def progress_of_all(meter: Meter) -> Iterator[Progress]:
    """All processes have to come in together, and go out together."""
    state, store = process_state(), shared_store()
    if store is not None:
        if state.is_main_process:
            # An earlier evaluation of these processes has left its counts.
            for name in (ITEMS, TOKENS, FINISHED):
                store.set(name, "0")
        state.wait_for_everyone()
    progress = Progress(meter, store)
    yield progress
    progress.wait(state.num_processes)
