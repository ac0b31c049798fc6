"""Scores of generated text against references."""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics import CHRF


def chrf(prediction: str, references: Sequence[str]) -> float:
    """Return the character n-gram F-score of the best reference, 0 to 100.

    n up to 6 and beta 2, sacrebleu's defaults (Popović 2015, https://aclanthology.org/W15-3049).
    """
    return float(CHRF().sentence_score(prediction, list(references)).score)


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if the prediction equals a reference, else 0.

    Surrounding white space is ignored; case and punctuation count.
    """
    return float(prediction.strip() in {reference.strip() for reference in references})
