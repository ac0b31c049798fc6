"""Duration of a training, extrapolated from one micro batch that is run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lora_kit.backbone.load import Backbone
from lora_kit.data.prepared import PreparedData
from lora_kit.modeling.checkpointing import (
    disable_checkpointing,
    enable_checkpointing,
    is_checkpointing,
)
from lora_kit.modeling.likelihood import supervised_nll, token_nll
from lora_kit.modeling.masked import masked_logits
from lora_kit.modeling.model_inputs import to_device
from lora_kit.modeling.modes import in_mode
from lora_kit.recipe.training import TrainingSpec
from lora_kit.runtime.errors import TrainingError
from lora_kit.runtime.launch import current_launch
from lora_kit.runtime.machine import peak_memory
from lora_kit.runtime.matrix_rate import synchronize
from lora_kit.training.acceleration import faster_on_cpu
from lora_kit.training.micro_batcher import MicroBatcher

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class StepTiming:
    """Measured time and memory of one micro batch.

    Attributes:
        rows: rows of the batch.
        tokens: tokens of the batch, padding included.
        forward_seconds: seconds of the forward pass, which a validation takes.
        seconds: seconds of the forward and backward pass.
        peak_memory: peak bytes held; `None` on a CPU if the process held as much before, so that
            the micro batch's share is unknown.
    """

    rows: int
    tokens: int
    forward_seconds: float
    seconds: float
    peak_memory: int | None

    @property
    def seconds_per_token(self) -> float:
        """Seconds of training per token, padding included."""
        return self.seconds / self.tokens

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement as JSON values."""
        return asdict(self) | {"seconds_per_token": self.seconds_per_token}


@dataclass(frozen=True)
class Duration:
    """Expected seconds of a training and of its validations."""

    training: float
    validation: float

    @property
    def total(self) -> float:
        """Seconds of training and validation together."""
        return self.training + self.validation

    def to_dict(self) -> dict[str, float]:
        """Return the seconds as JSON values."""
        return asdict(self) | {"total": self.total}


def time_micro_batch(
    model: PeftModel,
    backbone: Backbone,
    data: PreparedData,
    batcher: MicroBatcher,
    checkpointing: bool,
) -> StepTiming:
    """Time a micro batch of median length, after a warm-up pass.

    Weights, gradients and random states are left unchanged.

    Args:
        model: backbone with the adapter attached.
        backbone: backbone of the model.
        data: training data.
        batcher: division of an optimizer step into forward passes.
        checkpointing: if true, use gradient checkpointing.

    Raises:
        TrainingError: if no gradient reaches the adapter, or the loss is not finite.
    """
    passes = sorted(batcher.passes(data.lengths), key=lambda one: one.tokens)
    chosen = batcher.read(passes[len(passes) // 2], data.examples)
    batch = batcher.collate(chosen, backbone.tokenizer.pad_token_id)
    batch = to_device(batch, backbone.model.device)
    dtype = getattr(torch, str(backbone.spec.dtype))
    with _training_mode(model, checkpointing), faster_on_cpu(model, current_launch()):
        loss = _loss_of(backbone)
        _timed_pass(model, batch, dtype, loss)
        require_gradient(model)
        before = _reset_peak_memory(backbone.model.device)
        forward, seconds = _timed_pass(model, batch, dtype, loss)
        peak = _peak_memory(backbone.model.device, before)
    rows, length = batch["input_ids"].shape
    return StepTiming(rows, rows * length, forward, seconds, peak)


def estimate_duration(
    measured: StepTiming,
    lengths: NDArray[np.int32],
    held_out: NDArray[np.int32],
    spec: TrainingSpec,
    batcher: MicroBatcher,
    processes: int = 1,
    steps: int = 0,
) -> Duration:
    """Extrapolate the duration of a complete training from its number of tokens.

    Args:
        measured: result of `time_micro_batch`.
        lengths: tokens of each training example, (examples,) int32.
        held_out: tokens of each held-out example, (examples,) int32; the loss on them is measured
            before and after the training and every `eval_steps`.
        spec: training section of the recipe.
        batcher: division of an optimizer step into forward passes.
        processes: number of processes that share the examples.
        steps: total number of optimizer steps.
    """
    padded = sum(one.tokens for one in batcher.passes(lengths))
    training = padded * spec.epochs * measured.seconds_per_token / processes
    validations = 2 + (steps // spec.eval_steps if spec.eval_steps else 0)
    tokens = int(held_out.sum(dtype=np.int64))
    forward = measured.forward_seconds / measured.tokens
    return Duration(training, validations * tokens * forward)


def _loss_of(backbone: Backbone) -> Callable[[PeftModel, dict[str, torch.Tensor]], torch.Tensor]:
    """Return a loss as costly as that of the training."""
    if backbone.head is None:
        return _language_model_loss
    return _masked_loss if backbone.head.kind == "mlm" else _head_loss


def _masked_loss(model: PeftModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the loss of every seventh token, about as many as are predicted by default."""
    rows, columns = batch["attention_mask"].nonzero(as_tuple=True)
    rows, columns = rows[::7], columns[::7]
    logits = masked_logits(model, batch, rows, columns)
    return token_nll(logits, batch["input_ids"][rows, columns]).mean()


def _language_model_loss(model: PeftModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return supervised_nll(model, batch)[0].mean()


def _head_loss(model: PeftModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a scalar float32 loss as costly as that of a head, with a gradient for any label."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    # Logits, or the hidden states of a model that embeds texts.
    loss: torch.Tensor = model(**inputs)[0].float().square().mean()
    return loss


def _timed_pass(
    model: PeftModel,
    batch: dict[str, torch.Tensor],
    dtype: torch.dtype,
    loss_of: Callable[[PeftModel, dict[str, torch.Tensor]], torch.Tensor],
) -> tuple[float, float]:
    """Return the seconds of the forward pass, and of the forward and backward pass."""
    device = batch["input_ids"].device
    synchronize(device)
    started = time.perf_counter()
    # Accelerate uses autocast for a backbone in half precision.
    half = dtype is not torch.float32
    with torch.autocast(device.type, dtype) if half else nullcontext():
        loss = loss_of(model, batch)
    synchronize(device)
    forward = time.perf_counter() - started
    if not math.isfinite(loss.item()):
        raise TrainingError(
            f"backbone.dtype: the loss before training is not finite (got {loss.item()}). Fix: "
            "choose another dtype; float16 overflows where bfloat16 and float32 do not"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    synchronize(device)
    return forward, time.perf_counter() - started


def require_gradient(model: PeftModel) -> None:
    """Refuse with TrainingError a backward pass whose gradients are all zero or missing."""
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    if not any(bool(gradient.any()) for gradient in gradients):
        raise TrainingError(
            "adapter.target_modules: no gradient reaches the adapter, so nothing would be trained. "
            "Fix: name modules that the loss depends on; with training.gradient_checkpointing, the "
            "model's inputs must require gradients"
        )


@contextmanager
def _training_mode(model: PeftModel, checkpointing: bool) -> Iterator[None]:
    """Enter training mode with empty gradients; restore mode and gradients on exit."""
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = [p.grad for p in trained]
    was_checkpointing = is_checkpointing(model)
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with in_mode(model, training=True), torch.random.fork_rng(devices):
        try:
            for parameter in trained:
                parameter.grad = None
            if checkpointing and not was_checkpointing:
                enable_checkpointing(model, use_reentrant=False)
            yield
        finally:
            if checkpointing and not was_checkpointing:
                disable_checkpointing(model)
                # The line above leaves this on for models of PEFT.
                model.disable_input_require_grads()
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.grad = gradient


def _reset_peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return 0
    return peak_memory()


def _peak_memory(device: torch.device, before: int) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = peak_memory()
    return peak if peak > before else None
