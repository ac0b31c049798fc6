"""Metrics of generated text: `evaluate` modules, one score an item."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_kit.errors import EvaluationError

BUNDLED = Path(__file__).parent / "metric_modules"

Metric = Callable[[str, Sequence[str]], float | None]


def load_metric(name: str) -> Metric:
    """A metric as a function of a prediction and its references.

    Args:
        name: a bundled metric, the path of an `evaluate` module, or its name on a hub.

    Raises:
        EvaluationError: if there is no such module here and none can be fetched.
    """
    import evaluate

    path = BUNDLED / name
    try:
        module = evaluate.load(str(path) if path.is_dir() else name, keep_in_memory=True)
    except (OSError, ImportError, ValueError) as error:
        bundled = ", ".join(
            sorted(p.name for p in BUNDLED.iterdir() if (p / f"{p.name}.py").exists())
        )
        raise EvaluationError(
            f"metric {name}: not bundled ({bundled}), and `evaluate` cannot load it: {error}"
        ) from error

    def score(prediction: str, references: Sequence[str]) -> float | None:
        result = module.compute(predictions=[prediction], references=[list(references)])
        return _single_score(name, result)

    return score


def _single_score(name: str, result: dict[str, Any]) -> float | None:
    key = name.rsplit("/", 1)[-1]
    value = result.get(key, result.get("score"))
    if not isinstance(value, int | float):
        raise EvaluationError(
            f"metric {name}: its result has neither `{key}` nor `score` as a number; it has "
            f"{', '.join(map(str, result))}"
        )
    # A metric that has no value for an item says so; it is counted as missing, never as 0.
    return None if math.isnan(value) else float(value)
