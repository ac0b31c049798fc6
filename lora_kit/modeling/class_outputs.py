"""Class probabilities and features of texts by a classifier, with its adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lora_kit.backbone.devices import input_device
from lora_kit.backbone.heads import pad_right
from lora_kit.backbone.load import Backbone
from lora_kit.modeling.linear_probe import ROWS, mean_hidden_states
from lora_kit.modeling.model_inputs import to_device
from lora_kit.modeling.modes import eval_mode
from lora_kit.runtime.console import meter


@torch.inference_mode()
def class_probabilities(
    backbone: Backbone, model: Any, rows: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """Compute the probability of each class for texts, (texts, classes) float64.

    Args:
        backbone: backbone of the classifier.
        model: classifier with its adapter.
        rows: token ids of each text, none empty.
    """
    assert backbone.head is not None
    pad, device = backbone.tokenizer.pad_token_id, input_device(backbone.model)
    found = np.zeros((len(rows), len(backbone.head.outputs.names)))
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    with eval_mode(model), meter("probabilities", len(rows)) as progress:
        for start in range(0, len(order), ROWS):
            numbers = order[start : start + ROWS]
            batch = to_device(pad_right([rows[number] for number in numbers], pad), device)
            found[numbers] = model(**batch).logits.double().softmax(dim=-1).cpu().numpy()
            progress.advance(len(numbers))
    return found


def adapted_features(
    backbone: Backbone, model: Any, rows: Sequence[Sequence[int]]
) -> NDArray[np.float32]:
    """Compute the mean of the last hidden states of texts under the adapter.

    Args:
        backbone: backbone of the classifier.
        model: the backbone with its adapter attached and enabled.
        rows: token ids of each text, none empty.

    Returns:
        (texts, hidden size) float32.
    """
    with eval_mode(model):
        return mean_hidden_states(backbone, rows)
