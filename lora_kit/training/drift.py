"""Drift in training: KL divergence from the base on held-out prompts, an early sign of forgetting.

Shenfeld et al. 2025, arXiv:2509.04259: across methods and learning rates, the divergence from the
base on the new task's own prompts predicts how much else is forgotten. No texts of another kind
are needed to see it. `tests/benchmarks/RESULTS.md` says how far this holds here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lora_kit.backbone.encoder_decoder import is_encoder_decoder
from lora_kit.backbone.load import Backbone
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.modeling.drift import PROMPT_TOKENS, PromptEnds
from lora_kit.modeling.modes import adapter_disabled, eval_mode
from lora_kit.recipe.objective import LANGUAGE_MODELING
from lora_kit.training.inputs import TrainingInputs

if TYPE_CHECKING:
    from peft import PeftModel

MAX_PROMPTS = 8
"""Maximum number of prompts, spread over the held-out rows."""


class HeldOutDrift:
    """Drift of held-out prompts from the base, as evaluation measures it on items.

    The base's logits at the prompts' ends, up to 128 positions, stay on the device, so that a
    measurement is one forward pass over up to 512 tokens.
    """

    def __init__(self, model: PeftModel, backbone: Backbone, prompts: Sequence[tuple[int, ...]]):
        """Store the prompts; the base is measured the first time.

        Args:
            model: the model with its adapter, not wrapped for several processes.
            backbone: the frozen model.
            prompts: token ids of each prompt, none empty.
        """
        self._model = model
        pad_token_id = backbone.tokenizer.pad_token_id
        self._ends = PromptEnds.of(model, prompts, pad_token_id, model.device)
        self._base: torch.Tensor | None = None

    @classmethod
    def of(cls, inputs: TrainingInputs) -> HeldOutDrift | None:
        """Return the drift of a training; `None` where it is not measured.

        Not measured without held-out rows, with objectives other than sft and text, with
        encoder-decoders, where weights are sharded (the base needs the full model in each process),
        and with `training.compile`, which would compile the blocks of the base as well.
        """
        training, held_out = inputs.recipe.training, inputs.held_out
        if held_out is None or not held_out.examples or training.objective not in LANGUAGE_MODELING:
            return None
        if inputs.launch.partitioned or training.compile or is_encoder_decoder(inputs.model):
            return None
        step = max(len(held_out.examples) // MAX_PROMPTS, 1)
        examples = held_out.examples[::step][:MAX_PROMPTS]
        return cls(inputs.model, inputs.backbone, [held_out_prompt(one) for one in examples])

    def measure(self) -> float:
        """Return KL(base || adapter), averaged over the prompts, in nats per token."""
        # Not inference mode: training uses dequantized weights that may be held here.
        with eval_mode(self._model), torch.no_grad():
            if self._base is None:
                with adapter_disabled(self._model):
                    self._base = self._ends.logits(self._model)
            means = self._ends.means(self._base, self._ends.logits(self._model))
        return sum(means) / len(means)


def held_out_prompt(example: Example) -> tuple[int, ...]:
    """Return the tokens of a held-out row that drift is measured on.

    These are the last `PROMPT_TOKENS` before the first supervised token; of a text, which is
    supervised from its beginning, the first ones.
    """
    labels = example.labels
    start = next((n for n, label in enumerate(labels) if label != IGNORE_INDEX), len(labels))
    if start < 2:  # the first token is never predicted
        return tuple(example.input_ids[:PROMPT_TOKENS])
    return tuple(example.input_ids[max(start - PROMPT_TOKENS, 0) : start])
