"""What every trainer here has: checkpoints of ours, and adapters that stay in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from lora_kit.training import checkpoints
from lora_kit.training.before_clipping import BeforeClipping
from lora_kit.training.retention.early_stopping import RetentionEarlyStopping
from lora_kit.training.validation import Validation

# Steps in a row that may have nothing to learn from, where that can be: all answers to each prompt
# are worth the same, or all pairs are as far apart as a margin asks for.
IDLE_STEPS = 20


@contextmanager
def float32_masters(model: torch.nn.Module) -> Iterator[None]:
    """Keep what is trained as it is, whatever a trainer's constructor does to it.

    TRL 1.16 casts the adapters of a quantized model to bfloat16, in which most AdamW steps at
    learning rates below 1e-4 round to nothing.
    """
    masters = {n: p.data.clone() for n, p in model.named_parameters() if p.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in masters:
            parameter.data = masters[name]


class CheckpointedTrainer(Trainer):
    """A trainer whose checkpoints are those of `checkpoints`.

    transformers' own are written in place, and are pickles.

    Attributes:
        tokens: seen so far, by all processes, padding not included.
        validation: what its checkpoints hold as well.
        budget: what ends it for forgetting, if anything does.
        like_length: how many examples of about one length stand together in their order.
        save_total_limit: how many are left standing.
        lengths: tokens of each of what it is trained on.
        rows: of the data set, those of this process's last batch.
        figures: by the names under which they are logged, what is said of a step besides its loss;
            the first is shown while it runs.
        idle_steps: how many steps in a row may have nothing to learn from.
    """

    tokens: int = 0
    validation: Validation | None = None
    early_stopping: RetentionEarlyStopping | None = None
    like_length: int = 1
    save_total_limit: int = 2
    lengths: Sequence[int] = ()
    rows: Sequence[int] = ()
    figures: tuple[str, ...] = ()
    idle_steps: int = 0

    def _send_telemetry(self) -> None:
        """TRL's; nothing is sent from here."""

    @property
    def ended(self) -> bool:
        """Whether the step that is done is the last one, by count or for want of progress."""
        exhausted = self.validation is not None and self.validation.exhausted
        exceeded = self.early_stopping is not None and self.early_stopping.exceeded
        return exhausted or exceeded or self.state.global_step >= self.state.max_steps

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clip what the gradients are in the end."""
        scaler = self.accelerator.scaler
        scale = scaler.get_scale() if scaler is not None else 1.0
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, BeforeClipping):
                callback.change(self.state, scale)
        return super()._clip_grad_norm(model)

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
        """With the optimizer."""

    def _track_num_input_tokens(self, _inputs: Any) -> None:
        """Counted in `tokens`."""

    def floating_point_ops(self, _inputs: Any) -> int:
        """Not estimated: the figure would be that of a model that is trained whole."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the tokens seen so far."""
        super().log(logs | {"tokens": self.tokens}, start_time)
        # `metrics.jsonl` has it; in here, each checkpoint would hold it once more.
        self.state.log_history.clear()
