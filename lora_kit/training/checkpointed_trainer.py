"""Base class of all trainers: our checkpoint format, and adapters that stay in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from lora_kit.training import checkpoints
from lora_kit.training.gradient_hooks import GradientHook
from lora_kit.training.retention.early_stopping import RetentionEarlyStopping
from lora_kit.training.validation import Validation
from lora_kit.training.zero import require_full_state

# Consecutive steps that may have no gradient, for objectives where that occurs: all answers to each
# prompt have equal rewards, or all pairs exceed the margin.
IDLE_STEPS = 20


@contextmanager
def keep_float32_masters(model: torch.nn.Module) -> Iterator[None]:
    """Restore trained parameters that a trainer's constructor cast to another dtype.

    TRL 1.16 casts the adapters of a quantized model to bfloat16, in which most AdamW steps at
    learning rates below 1e-4 round to zero.
    """
    masters = {n: p.data.clone() for n, p in model.named_parameters() if p.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in masters:
            parameter.data = masters[name]


class CheckpointedTrainer(Trainer):
    """Trainer that saves checkpoints in the format of `lora_kit.training.checkpoints`.

    The checkpoints of transformers are written in place and contain pickles.

    Attributes:
        tokens: tokens seen so far by all processes, without padding.
        validation: validation losses and best weights, saved with each checkpoint.
        early_stopping: early stopping on retention texts, if the recipe has it.
        length_group_size: number of adjacent examples of similar length in training order.
        save_total_limit: maximum number of checkpoints kept.
        lengths: tokens of each training example or unit.
        rows: rows of the data set in this process's last batch.
        logged_metrics: metrics logged for each step besides the loss; the first that a step has is
            shown in the progress bar.
        idle_steps: consecutive steps that may have no gradient.
        restore_optimizer: function of `sharded_4bit.optimizer_restorer`, for 4-bit shards.
    """

    tokens: int = 0
    validation: Validation | None = None
    early_stopping: RetentionEarlyStopping | None = None
    length_group_size: int = 1
    save_total_limit: int = 2
    lengths: Sequence[int] = ()
    rows: Sequence[int] = ()
    logged_metrics: tuple[str, ...] = ()
    idle_steps: int = 0
    restore_optimizer: Callable[[], None] | None = None

    def _send_telemetry(self) -> None:
        """Override TRL's telemetry: send nothing."""

    @property
    def ended(self) -> bool:
        """Return true after the last step, by count or by early stopping."""
        exhausted = self.validation is not None and self.validation.exhausted
        exceeded = self.early_stopping is not None and self.early_stopping.exceeded
        return exhausted or exceeded or self.state.global_step >= self.state.max_steps

    def _clip_grad_norm(self, model: Any) -> Any:
        """Run the gradient hooks, then clip the gradients."""
        scaler = self.accelerator.scaler
        scale = scaler.get_scale() if scaler is not None else 1.0
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, GradientHook):
                callback.modify_gradients(self.state, scale)
        return super()._clip_grad_norm(model)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> Any:
        """Return the optimizer, without groups that have no parameters.

        DeepSpeed deletes such groups; a checkpoint has the same ones under every launcher.
        """
        if self.optimizer is not None:
            return super().create_optimizer(model)
        optimizer = super().create_optimizer(model)
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        """Wrap the model and the optimizer, and restore our checkpoint.

        Under DeepSpeed, transformers would look for a checkpoint that DeepSpeed wrote. Weights that
        are in no shards it has loaded before.

        Raises:
            TrainingError: if DeepSpeed holds the optimizer's state in an unknown form.
        """
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if self.restore_optimizer is not None:
            self.restore_optimizer()
        if self.is_deepspeed_enabled:
            require_full_state(self.optimizer)
        if resume_from_checkpoint is not None:
            if self.is_deepspeed_enabled or self.is_fsdp_enabled:
                self._load_from_checkpoint(resume_from_checkpoint)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _save_checkpoint(self, _model: Any, _trial: Any) -> None:
        checkpoints.save(self, self.save_total_limit)

    def _load_from_checkpoint(self, checkpoint: str, _model: Any = None) -> None:
        checkpoints.load_weights(self.model, Path(checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_optimizer(self, Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_random_state(self, Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Do nothing: `checkpoints.load_optimizer` restores the scaler."""

    def _track_num_input_tokens(self, _inputs: Any) -> None:
        """Do nothing: `tokens` counts them."""

    def floating_point_ops(self, _inputs: Any) -> int:
        """Return 0: transformers' estimate assumes that all weights are trained."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the tokens seen so far with the other metrics."""
        super().log(logs | {"tokens": self.tokens}, start_time)
        # `metrics.jsonl` holds the history; it would be repeated in every checkpoint.
        self.state.log_history.clear()
