"""Start of a head that predicts numbers and has no bias: at the mean of the training rows.

Numbers far from 0, such as prices, would otherwise have to be learned from the weights alone. The
states that a head reads have a large part in common, the mean h; a weight with the part
m h / |h|^2 turns it into the mean m of the numbers.
"""

from __future__ import annotations

import torch

from lora_kit.modeling.features import first_head_inputs
from lora_kit.training.head_losses.numbers import NumberLoss
from lora_kit.training.heads import HeadTask
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.output_layer import output_layer

# Training rows whose states are averaged.
ROWS = 64


@torch.no_grad()
def start_at_the_mean(inputs: TrainingInputs, task: HeadTask | None) -> None:
    """Add to the weight of a head of numbers without a bias what gives their mean.

    Args:
        inputs: inputs of the training; the head is changed in place.
        task: task of the head; `None` if there is none.

    Raises:
        AdapterError: if the inputs of the head cannot be identified in this architecture.
    """
    backbone = inputs.backbone
    if task is None or not isinstance(task.loss, NumberLoss) or backbone.head is None:
        return
    module = backbone.model.get_submodule(backbone.head.module)
    layer = output_layer(module, len(backbone.head.outputs.names))[1]
    if layer.bias is not None:
        return
    states = first_head_inputs(backbone, inputs.model, inputs.data, ROWS).mean(dim=0)
    targets = task.loss.targets(list(inputs.data.examples)).mean(dim=0)
    direction = (states / states.square().sum()).to(layer.weight)
    layer.weight += targets.to(layer.weight)[:, None] * direction
