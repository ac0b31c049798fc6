"""Metrics of generated text: `evaluate` modules, one score an item."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets

from lora_kit.errors import EvaluationError

HUB = "hub:"
BUNDLED = Path(__file__).parent / "metric_modules"

Metric = Callable[[str, Sequence[str]], float | None]


def load_metric(name: str, fetched: bool = True) -> Metric:
    """A metric as a function of a prediction and its references.

    Args:
        name: a bundled metric, the path of an `evaluate` module, or `hub:NAME`. The last fetches a
            module and runs it, code that nobody here has read: hence by that word alone.
        fetched: whether a module of the hub is possible where this is asked.

    Raises:
        EvaluationError: if there is no such module.
    """
    import evaluate

    on_hub = name.startswith(HUB)
    path = BUNDLED / name if (BUNDLED / name).is_dir() else Path(name)
    bundled = ", ".join(sorted(module.stem for module in BUNDLED.glob("*/*.py")))
    if not on_hub and not path.exists():
        on_the_hub = f"; hub:{name} would fetch the module of that name from the hub and run it"
        raise EvaluationError(
            f"metric {name}: neither bundled ({bundled}) nor a path to a module"
            + (on_the_hub if fetched else "")
        )
    try:
        module = evaluate.load(name.removeprefix(HUB) if on_hub else str(path), keep_in_memory=True)
    except (OSError, ImportError, ValueError) as error:
        raise EvaluationError(f"metric {name}: `evaluate` cannot load it: {error}") from error
    # Some metrics take one reference an item, some a list of them.
    features = module.features[0] if isinstance(module.features, list) else module.features
    several = not isinstance(features["references"], datasets.Value)

    def score(prediction: str, references: Sequence[str]) -> float | None:
        wanted = list(references) if several else references[0]
        result = module.compute(predictions=[prediction], references=[wanted])
        return _single_score(name.removeprefix(HUB), result)

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
