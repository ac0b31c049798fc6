"""Models of the tests' process, which stand-ins of servers ask from processes of their own.

A process that answers from a model itself would first import torch and transformers, for 6 s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing.connection import Client, Connection, Listener
from threading import Lock, Thread
from typing import Any

import numpy as np

# (folder of a model, folder of an adapter or "", ids, rows) -> (rows, vocabulary) float64
LogProbabilities = Callable[[str, str, Sequence[int], int], np.ndarray]
LOADING = Lock()


@cache
def _load(model: str, adapter: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, adapter)
    return loaded.eval()


def log_probabilities(model: str, adapter: str, ids: Sequence[int], rows: int) -> np.ndarray:
    """Return the log-probabilities of the token after each of the last ids, so many rows."""
    import torch

    with LOADING:
        loaded = _load(model, adapter)
    with torch.inference_mode():
        logits = loaded(torch.tensor([list(ids)])).logits[0, -rows:]
        table: np.ndarray = logits.double().log_softmax(-1).numpy()
    return table


@cache
def serve_models() -> str:
    """Answer for models from now on, and return the address."""
    listener = Listener(family="AF_UNIX")

    def accept() -> None:
        while True:
            Thread(target=_answer, args=(listener.accept(),), daemon=True).start()

    Thread(target=accept, daemon=True).start()
    return str(listener.address)


def _answer(connection: Connection[Any, Any]) -> None:
    with connection:
        while True:
            try:
                asked = connection.recv()
            except EOFError:
                return
            connection.send(log_probabilities(*asked))


def models_at(address: str) -> LogProbabilities:
    """Return `log_probabilities` of the process that serves at an address; for one thread."""
    connection = Client(address, "AF_UNIX")

    def ask(model: str, adapter: str, ids: Sequence[int], rows: int) -> np.ndarray:
        connection.send((model, adapter, list(ids), rows))
        table: np.ndarray = connection.recv()
        return table

    return ask
