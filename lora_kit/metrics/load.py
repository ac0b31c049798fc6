"""Loading of metrics by name: bundled ones, and `evaluate` modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from lora_kit.metrics.text import chrf, exact_match
from lora_kit.runtime.errors import EvaluationError

HUB = "hub:"

# Function of a prediction and its references; None if the metric has no value for the item.
Metric = Callable[[str, Sequence[str]], float | None]

BUNDLED: dict[str, Metric] = {"chrf": chrf, "exact_match": exact_match}


def load_metric(name: str, allow_hub: bool = True) -> Metric:
    """Return a metric as a function of a prediction and its references.

    Args:
        name: bundled metric, path of an `evaluate` module, or `hub:NAME`. The prefix is explicit
            since `hub:` downloads a module and runs its code, which is not reviewed here.
        allow_hub: if true, the error for an unknown name suggests `hub:NAME`.

    Raises:
        EvaluationError: if there is no such module, or `evaluate` cannot load it.
    """
    if name in BUNDLED:
        return BUNDLED[name]
    import datasets
    import evaluate

    if not name.startswith(HUB) and not Path(name).exists():
        hint = f", or hub:{name} to download the module from the hub and run it"
        raise EvaluationError(
            f"metric {name}: neither bundled nor a path to a module. Fix: use one of "
            f"{', '.join(sorted(BUNDLED))}, or the path of an `evaluate` module"
            f"{hint if allow_hub else ''}"
        )
    try:
        module = evaluate.load(name.removeprefix(HUB), keep_in_memory=True)
    except (OSError, ImportError, ValueError) as error:
        raise EvaluationError(
            f"metric {name}: `evaluate` cannot load it (got {error}). Fix: correct the name, or "
            "install the packages that the module needs"
        ) from error
    # Some metrics take one reference per item, others a list of references.
    features = module.features[0] if isinstance(module.features, list) else module.features
    takes_list = not isinstance(features["references"], datasets.Value)

    def score(prediction: str, references: Sequence[str]) -> float | None:
        reference = list(references) if takes_list else references[0]
        result = module.compute(predictions=[prediction], references=[reference])
        return _single_score(name.removeprefix(HUB), result)

    return score


def _single_score(name: str, result: Any) -> float | None:
    key = Path(name).stem
    value = result.get(key, result.get("score")) if isinstance(result, dict) else result
    if not isinstance(value, Real):
        raise EvaluationError(
            f"metric {name}: its result has neither `{key}` nor `score` as a number (got "
            f"{result!r:.80}). Fix: use a metric that returns a single score"
        )
    # NaN is a metric without a value for the item: counted as missing, never as 0.
    return None if math.isnan(value) else float(value)
