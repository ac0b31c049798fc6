"""Count the requests that an evaluation sends to its models."""

from collections.abc import Sequence
from typing import Any

import pytest

from lora_kit.evaluation.engine import model_answers as engine


def count_outcomes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that receives the size of every batch that is scored from now on."""
    asked: list[int] = []
    real = engine.compute_outcomes

    def counting(scorer: Any, requests: Sequence[Any], *rest: Any) -> Any:
        asked.append(len(requests))
        return real(scorer, requests, *rest)

    monkeypatch.setattr(engine, "compute_outcomes", counting)
    return asked
