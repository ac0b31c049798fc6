"""The linear probe: how much of a task a backbone's frozen features hold already.

Alain & Bengio 2016, arXiv:1610.01644; here a logistic regression on the mean of the last hidden
states of a text's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lora_kit.backbone import Backbone

ROWS = 16
# Texts to learn from: a probe of more is hardly better, and takes longer than all the rest.
MOST = 2_000


def probed(
    backbone: Backbone,
    known: Sequence[tuple[str, str]],
    asked: Sequence[tuple[str, str]],
    longest: int,
) -> NDArray[np.float64]:
    """Which texts a probe gets right.

    Args:
        backbone: whose features they are.
        known: texts with their labels, two different ones at least.
        asked: texts with their labels.
        longest: tokens of a text that are looked at.

    Returns:
        (asked,): 1 where it is right.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2_000))
    some = known[:MOST]
    probe.fit(features(backbone, [text for text, _ in some], longest), [label for _, label in some])
    found = probe.predict(features(backbone, [text for text, _ in asked], longest))
    return np.array([a == b for a, (_, b) in zip(found, asked, strict=True)], dtype=np.float64)


@torch.inference_mode()
def features(backbone: Backbone, texts: Sequence[str], longest: int) -> NDArray[np.float32]:
    """(texts, hidden size): the mean of a text's last hidden states."""
    tokenizer, device = backbone.tokenizer, next(backbone.model.parameters()).device
    found = np.zeros((len(texts), backbone.model.config.get_text_config().hidden_size), np.float32)
    order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
    for start in range(0, len(order), ROWS):
        some = order[start : start + ROWS]
        batch = tokenizer(
            [texts[n] for n in some],
            return_tensors="pt",
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=longest,
        ).to(device)
        hidden = backbone.model.base_model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        means = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        found[some] = means.float().cpu().numpy()
    return found
