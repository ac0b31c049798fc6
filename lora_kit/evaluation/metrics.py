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
        name: a bundled metric, or the path of an `evaluate` module. A name on a hub is refused: it
            would run code that nobody here has read.

    Raises:
        EvaluationError: if there is no such module here.
    """
    import evaluate

    path = BUNDLED / name if (BUNDLED / name).is_dir() else Path(name)
    bundled = ", ".join(sorted(module.stem for module in BUNDLED.glob("*/*.py")))
    if not path.exists():
        raise EvaluationError(f"metric {name}: neither bundled ({bundled}) nor a path to a module")
    try:
        module = evaluate.load(str(path), keep_in_memory=True)
    except (OSError, ImportError, ValueError) as error:
        raise EvaluationError(f"metric {name}: `evaluate` cannot load it: {error}") from error

    def score(prediction: str, references: Sequence[str]) -> float | None:
        result = module.compute(predictions=[prediction], references=[list(references)])
        return _single_score(name, result)

    return score


def _single_score(name: str, result: Any) -> float | None:
    key = Path(name).stem
    value = result.get(key, result.get("score")) if isinstance(result, dict) else result
    if not isinstance(value, int | float):
        raise EvaluationError(
            f"metric {name}: its result has neither `{key}` nor `score` as a number: {result!r:.80}"
        )
    # A metric that has no value for an item says so; it is counted as missing, never as 0.
    return None if math.isnan(value) else float(value)
