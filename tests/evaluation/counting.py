"""What an evaluation asked of its models."""

from collections.abc import Sequence
from typing import Any

import pytest

from lora_kit.evaluation.engine import run as engine


def count_outcomes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that a model is asked."""
    asked: list[int] = []
    real = engine.outcomes

    def counting(scorer: Any, requests: Sequence[Any], *rest: Any) -> Any:
        asked.append(len(requests))
        return real(scorer, requests, *rest)

    monkeypatch.setattr(engine, "outcomes", counting)
    return asked
