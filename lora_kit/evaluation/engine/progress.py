"""Progress of an evaluation: the main process's bar counts the items of all processes."""

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
    """Counts of items and tokens over all processes, and the bar that shows them.

    Attributes:
        meter: progress bar of this process.
        store: key-value store shared by the processes; `None` for a single process.
        items: items shown so far.
        tokens: tokens shown so far.
    """

    meter: Meter
    store: Store | None
    items: int = 0
    tokens: int = 0

    def advance(self, items: int, note: str, tokens: int) -> None:
        """Add items and tokens of this process and show the totals of all processes."""
        if self.store is None:
            self.meter.advance(items, note, tokens=tokens)
            return
        self._show(self.store.add(ITEMS, items), self.store.add(TOKENS, tokens), note)

    def wait(self, processes: int) -> None:
        """Keep showing the totals until all processes have finished."""
        if self.store is None:
            return
        finished = self.store.add(FINISHED, 1)
        while process_state().is_main_process and finished < processes:
            time.sleep(POLL_SECONDS)
            finished = self.store.add(FINISHED, 0)
            items, tokens = self.store.add(ITEMS, 0), self.store.add(TOKENS, 0)
            self._show(items, tokens, "the other processes")

    def _show(self, items: int, tokens: int, note: str) -> None:
        """Advance the bar to these totals; they only grow, but may be read out of order."""
        if items > self.items:
            self.meter.advance(items - self.items, note, tokens=max(tokens - self.tokens, 0))
            self.items, self.tokens = items, max(tokens, self.tokens)


@contextmanager
def shared_progress(meter: Meter) -> Iterator[Progress]:
    """Yield progress that is shared by all processes, which enter and leave together."""
    state, store = process_state(), shared_store()
    if store is not None:
        if state.is_main_process:
            # Reset the counts, which an earlier evaluation of these processes may have left.
            for name in (ITEMS, TOKENS, FINISHED):
                store.set(name, "0")
        state.wait_for_everyone()
    progress = Progress(meter, store)
    yield progress
    progress.wait(state.num_processes)
