"""Progress of an evaluation: the main process's bar counts the items of all processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch.distributed.distributed_c10d import Store

from lora_kit.runtime.console import Meter
from lora_kit.runtime.processes import process_state, shared_store

POLL_SECONDS = 0.5
ITEMS, TOKENS, FINISHED = (f"lora_kit/evaluation/{n}" for n in ("items", "tokens", "finished"))


@dataclass
class Forecast:
    """Time left, from the cost of the work that is left.

    Items differ in cost by two orders of magnitude, from a choice of 12 tokens to an answer of 300,
    and tasks come one after the other, so that the number of items says little.

    Attributes:
        left: cost of this process's work that is not done, in tokens as `sharing` counts them.
        computed: cost of what has been computed.
        seconds: seconds that it took.
    """

    left: float = 0.0
    computed: float = 0.0
    seconds: float = 0.0

    def remove(self, cost: float, seconds: float | None = None) -> None:
        """Take off work that is done, or that need not be.

        Args:
            cost: cost of the work.
            seconds: seconds that it took; `None` for outcomes from the cache and for items that are
                not asked any more, which say nothing of the rest.
        """
        self.left = max(self.left - cost, 0.0)
        if seconds is not None:
            self.computed += cost
            self.seconds += seconds

    def seconds_left(self) -> float | None:
        """Return the seconds that the rest will take; `None` before anything was computed."""
        return self.left * self.seconds / self.computed if self.computed else None


@dataclass
class Progress:
    """Counts of items and tokens over all processes, and the bar that shows them.

    Attributes:
        meter: progress bar of this process.
        store: key-value store shared by the processes; `None` for a single process.
        items: items shown so far.
        tokens: tokens shown so far.
        forecast: time left of this process; costs are divided evenly among the processes.
    """

    meter: Meter
    store: Store | None
    items: int = 0
    tokens: int = 0
    forecast: Forecast = field(default_factory=Forecast)

    def advance(
        self,
        items: int,
        note: str,
        tokens: int,
        cost: float = 0.0,
        seconds: float | None = None,
    ) -> None:
        """Add work of this process and show the totals of all processes.

        Args:
            items: number of items.
            note: text shown beside the bar.
            tokens: tokens of the items.
            cost: cost of the items, as counted in `forecast`.
            seconds: seconds that they took; `None` for outcomes from the cache.
        """
        self.forecast.remove(cost, seconds)
        if self.store is None:
            left = self.forecast.seconds_left()
            self.meter.advance(items, note, tokens=tokens, left=left)
            return
        self._show(self.store.add(ITEMS, items), self.store.add(TOKENS, tokens), note)

    def leave_out(self, items: int, cost: float) -> None:
        """Take off work that need not be done: items of all processes, and this one's cost.

        Below zero, both are added.
        """
        self.forecast.remove(cost)
        self.meter.leave_out(items)

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
            new, left = max(tokens - self.tokens, 0), self.forecast.seconds_left()
            self.meter.advance(items - self.items, note, tokens=new, left=left)
            self.items, self.tokens = items, max(tokens, self.tokens)


@contextmanager
def shared_progress(meter: Meter, cost: float = 0.0) -> Iterator[Progress]:
    """Yield progress that is shared by all processes, which enter and leave together.

    Args:
        meter: progress bar of this process.
        cost: cost of this process's work.
    """
    state, store = process_state(), shared_store()
    if store is not None:
        if state.is_main_process:
            # Reset the counts, which an earlier evaluation of these processes may have left.
            for name in (ITEMS, TOKENS, FINISHED):
                store.set(name, "0")
        state.wait_for_everyone()
    progress = Progress(meter, store, forecast=Forecast(cost))
    yield progress
    progress.wait(state.num_processes)
