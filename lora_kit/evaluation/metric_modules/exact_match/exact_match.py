"""Exact match as an `evaluate` module: 1 if the prediction is one of the references, else 0."""

from typing import Any

import datasets
import evaluate

DESCRIPTION = "Share of predictions that equal a reference, surrounding white space aside."


class ExactMatch(evaluate.Metric):
    """Exact match, case and punctuation kept."""

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
        hits = [
            prediction.strip() in {candidate.strip() for candidate in candidates}
            for prediction, candidates in zip(predictions, references, strict=True)
        ]
        return {"exact_match": sum(hits) / len(hits)}
