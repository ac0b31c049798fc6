"""Load a metric by name: one of ours, or an `evaluate` module that a suite or recipe names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_kit.metrics.text import chrf, exact_match
from lora_kit.runtime.errors import EvaluationError

HUB = "hub:"

# A function of a prediction and its references; None where the metric has no value for the item.
Metric = Callable[[str, Sequence[str]], float | None]

BUNDLED: dict[str, Metric] = {"chrf": chrf, "exact_match": exact_match}


def load_metric(name: str, allow_hub: bool = True) -> Metric:
    """Return a metric as a function of a prediction and its references.

    Args:
        name: a bundled metric, the path of an `evaluate` module, or `hub:NAME`. `hub:` downloads a
            module and runs its code, which nobody here has reviewed: hence the explicit prefix.
        allow_hub: whether the caller accepts `hub:` names; used in the error message.

    Raises:
        EvaluationError: if there is no such module.
    """
    if name in BUNDLED:
        return BUNDLED[name]
    return _evaluate_module(name, allow_hub)


def _evaluate_module(name: str, allow_hub: bool) -> Metric:
    import datasets
    import evaluate

    on_hub = name.startswith(HUB)
    if not on_hub and not Path(name).exists():
        hint = f"; hub:{name} would fetch the module of that name from the hub and run it"
        raise EvaluationError(
            f"metric {name}: neither bundled ({', '.join(sorted(BUNDLED))}) nor a path to a module"
            + (hint if allow_hub else "")
        )
    try:
        module = evaluate.load(name.removeprefix(HUB), keep_in_memory=True)
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
