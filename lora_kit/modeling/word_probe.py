"""Linear probe of words: a logistic regression on the last hidden state of their first tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lora_kit.backbone.devices import input_device
from lora_kit.backbone.heads import pad_right
from lora_kit.backbone.load import Backbone
from lora_kit.data.supervision import Example
from lora_kit.modeling.features import word_states
from lora_kit.modeling.linear_probe import ROWS, fit_linear_probe, hidden_states
from lora_kit.modeling.model_inputs import to_device
from lora_kit.runtime.console import meter

# Maximum training words on which the penalty is selected.
MAX_WORDS = 5_000


def fit_word_probe(
    features: NDArray[np.float32], tags: Sequence[int], clusters: Sequence[str]
) -> Any:
    """Fit a logistic regression of the tags of words.

    The penalty is selected on a random sample of `MAX_WORDS` words, as in `fit_linear_probe`, and
    the regression is fitted to all words.

    Args:
        features: (words, features) float32.
        tags: index of the tag of each word, of at least two tags.
        clusters: cluster of each word.

    Returns:
        scikit-learn pipeline as of `fit_linear_probe`.
    """
    if len(tags) <= MAX_WORDS:
        return fit_linear_probe(features, tags, clusters)
    chosen = sorted(random.Random(0).sample(range(len(tags)), MAX_WORDS))
    probe = fit_linear_probe(
        features[chosen], [tags[n] for n in chosen], [clusters[n] for n in chosen]
    )
    return probe.fit(features, tags)


@torch.inference_mode()
def word_hidden_states(backbone: Backbone, examples: Sequence[Example]) -> torch.Tensor:
    """Compute the last hidden state of each token with a label, the first one of a word.

    Args:
        backbone: backbone as in `mean_hidden_states`.
        examples: tokens with their labels.

    Returns:
        (words of all examples, hidden size) float32, on the CPU.
    """
    states: dict[int, torch.Tensor] = {}
    order = sorted(range(len(examples)), key=lambda number: len(examples[number].input_ids))
    pad, device = backbone.tokenizer.pad_token_id, input_device(backbone.model)
    with meter("features", len(examples)) as progress:
        for start in range(0, len(order), ROWS):
            numbers = order[start : start + ROWS]
            batch = to_device(pad_right([examples[n].input_ids for n in numbers], pad), device)
            for number, own in zip(numbers, hidden_states(backbone, batch).cpu(), strict=True):
                states[number] = word_states(own, examples[number]).float()
            progress.advance(len(numbers))
    return torch.cat([states[number] for number in range(len(examples))])
