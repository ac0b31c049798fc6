"""Trainer of embeddings: the whole step is contrasted, in one pass or by cached gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.backbone.heads import Head
from lora_kit.data.units import Unit
from lora_kit.modeling.embeddings import embed_rows
from lora_kit.recipe.embedding import EmbeddingSpec
from lora_kit.training.preferences.cached_gradients import Processes, backward_in_passes
from lora_kit.training.preferences.contrast import Contrast
from lora_kit.training.preferences.trainers import PreferenceTrainer

if TYPE_CHECKING:
    from peft import PeftModel

# Tokens of a batch within a forward pass, padding included; texts of similar lengths share one.
BATCH_TOKENS = 4096


class EmbeddingTrainer(PreferenceTrainer):
    """transformers' Trainer with InfoNCE over the pairs of a step.

    The negatives of a pair are the other texts of the step, which goes through the model at once,
    or in passes with cached gradients. Processes share the texts of a step and exchange vectors.

    Logged per step: `accuracy`, the share of its anchors whose positive is the nearest text.
    """

    logged_metrics = ("accuracy",)

    def __init__(
        self, *args: Any, head: Head, spec: EmbeddingSpec, pairs_per_pass: int | None, **kwargs: Any
    ):
        """Build the trainer.

        Args:
            args: arguments of `PreferenceTrainer`.
            head: pooling of the model.
            spec: the recipe's `embedding` section.
            pairs_per_pass: pairs of a forward pass; `None` for the whole step in one pass.
            kwargs: keyword arguments of `PreferenceTrainer`.
        """
        super().__init__(*args, **kwargs)
        self._pooling, self._temperature = head.pooling, spec.temperature
        self._pairs_per_pass = pairs_per_pass
        self._measured: dict[str, float] = {}
        if self.args.gradient_checkpointing:
            # transformers#42489: transformers does not do this for PEFT models.
            kwargs["model"].enable_input_require_grads()

    def _prepare_forward(self, model: PeftModel) -> None:
        """Leave the model's forward as it is: an embedding predicts no tokens."""

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Run the forward and backward passes of an optimizer step.

        Returns:
            Mean loss of the pairs; scalar, float32.
        """
        del num_items_in_batch
        model.train()
        units: Sequence[Unit] = inputs["units"]
        process = self.args.process_index
        self.rows = inputs["rows"][process :: self.args.world_size]
        self.tokens += sum(len(e.input_ids) for unit in units for e in unit.examples)
        contrast = Contrast.of(units)
        pairs = self._pairs_per_pass or len(units)
        return backward_in_passes(
            contrast.texts,
            len(contrast.texts) if pairs >= len(units) else 2 * pairs,
            partial(self._embed, model),
            partial(self._loss, contrast),
            self.accelerator.backward,
            self.args.device,
            Processes(
                process,
                self.args.world_size,
                self.accelerator.gather,
                partial(self.accelerator.no_sync, model),
            ),
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the accuracy of the last step with its loss."""
        super().log(logs | self._measured if "loss" in logs else logs, start_time)

    def _embed(self, model: torch.nn.Module, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the vectors of texts, (texts, hidden size) float32."""
        with self.compute_loss_context_manager():
            return embed_rows(
                model, texts, self._pooling, self._pad_token_id, self.args.device, BATCH_TOKENS
            )

    def _loss(self, contrast: Contrast, vectors: torch.Tensor) -> torch.Tensor:
        losses, nearest = contrast.losses(vectors, self._temperature)
        self._measured = {"accuracy": nearest.double().mean().item()}
        return losses.mean()
