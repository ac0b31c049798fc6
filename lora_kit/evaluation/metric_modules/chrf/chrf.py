"""chrF (Popović 2015, https://aclanthology.org/W15-3049) as an `evaluate` module, by sacrebleu."""

from typing import Any

import datasets
import evaluate
from sacrebleu.metrics import CHRF

DESCRIPTION = "Character n-gram F-score (n up to 6, beta 2), 0 to 100, of the best reference."


class Chrf(evaluate.Metric):
    """chrF with sacrebleu's defaults."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        metric = CHRF()
        scores = [
            metric.sentence_score(prediction, list(candidates)).score
            for prediction, candidates in zip(predictions, references, strict=True)
        ]
        return {"chrf": sum(scores) / len(scores)}
