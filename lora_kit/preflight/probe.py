"""How long a training takes, from one micro batch that is really run."""

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
from lora_kit.data.dataset import PreparedData
from lora_kit.modeling.likelihood import pack_examples, pad_examples, supervised_nll, to_device
from lora_kit.preflight.device import wait
from lora_kit.recipe.training import TrainingSpec
from lora_kit.runs.directory import peak_memory
from lora_kit.runtime.errors import TrainingError
from lora_kit.training.micro_batcher import MicroBatcher

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Probe:
    """One micro batch, forward and backward.

    Attributes:
        rows: of the batch.
        tokens: of the batch, padding included.
        forward_seconds: of the forward pass alone, as a validation would take.
        seconds: of forward and backward pass.
        peak_memory: bytes that were held at most; `None` on a CPU where the process had held as
            much before, so that the probe's share cannot be told.
    """

    rows: int
    tokens: int
    forward_seconds: float
    seconds: float
    peak_memory: int | None

    @property
    def seconds_per_token(self) -> float:
        """Of training, for each token, padding included."""
        return self.seconds / self.tokens

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"seconds_per_token": self.seconds_per_token}


@dataclass(frozen=True)
class Duration:
    """How long a training is going to take, seconds."""

    training: float
    validation: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.training + self.validation

    def to_dict(self) -> dict[str, float]:
        """As JSON."""
        return asdict(self) | {"total": self.total}


def probe(
    model: PeftModel,
    backbone: Backbone,
    data: PreparedData,
    cutting: MicroBatcher,
    checkpointing: bool,
) -> Probe:
    """Time a micro batch of middling length, after one that warms up.

    Nothing is left changed: no weight, no gradient, no state of a random generator.

    Args:
        model: the backbone with the adapter attached.
        backbone: of the model.
        data: of the training.
        cutting: of its steps into forward passes.
        checkpointing: whether activations are recomputed.

    Raises:
        TrainingError: if no gradient reaches the adapter, or the loss is no number.
    """
    passes = sorted(cutting.passes(data.lengths), key=lambda one: one.tokens)
    chosen = cutting.read(passes[len(passes) // 2], data.examples)
    pad = backbone.tokenizer.pad_token_id
    batch = pack_examples(chosen) if cutting.packing else pad_examples(chosen, pad)
    batch = to_device(batch, backbone.model.device)
    dtype = getattr(torch, str(backbone.spec.dtype))
    with _as_in_training(model, checkpointing):
        loss = _loss_of_a_head if backbone.head else _loss
        _pass(model, batch, dtype, loss)
        require_gradient(model)
        before = _start_memory(backbone.model.device)
        forward, seconds = _pass(model, batch, dtype, loss)
        peak = _peak_memory(backbone.model.device, before)
    rows, length = batch["input_ids"].shape
    return Probe(rows, rows * length, forward, seconds, peak)


def duration(
    measured: Probe,
    lengths: NDArray[np.int32],
    held_out: NDArray[np.int32],
    spec: TrainingSpec,
    cutting: MicroBatcher,
    processes: int = 1,
    steps: int = 0,
) -> Duration:
    """The time of a whole training, by its tokens.

    Args:
        measured: of `probe`.
        lengths: tokens of each example of the training, (examples,) int32.
        held_out: of each example whose loss is measured before, after and every `eval_steps`.
        spec: how it is trained.
        cutting: of its steps into forward passes.
        processes: that share the examples out.
        steps: of the optimizer, all in all.
    """
    padded = sum(one.tokens for one in cutting.passes(lengths))
    training = padded * spec.epochs * measured.seconds_per_token / processes
    times = 2 + (steps // spec.eval_steps if spec.eval_steps else 0)
    tokens = int(held_out.sum(dtype=np.int64))
    forward = measured.forward_seconds / measured.tokens
    return Duration(training, times * tokens * forward)


def _loss(model: PeftModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return supervised_nll(model, batch)[0].mean()


def _loss_of_a_head(model: PeftModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """One that takes as long as classes or rewards do, and has a gradient whatever they are."""
    whole = {name: batch[name] for name in ("input_ids", "attention_mask")}
    loss: torch.Tensor = model(**whole).logits.float().square().mean()
    return loss


def _pass(
    model: PeftModel,
    batch: dict[str, torch.Tensor],
    dtype: torch.dtype,
    loss_of: Callable[[PeftModel, dict[str, torch.Tensor]], torch.Tensor],
) -> tuple[float, float]:
    """Seconds of a forward pass, and of a forward and backward pass."""
    device = batch["input_ids"].device
    wait(device)
    started = time.perf_counter()
    # As accelerate does for a backbone in half precision.
    half = dtype is not torch.float32
    with torch.autocast(device.type, dtype) if half else nullcontext():
        loss = loss_of(model, batch)
    wait(device)
    forward = time.perf_counter() - started
    if not math.isfinite(loss.item()):
        raise TrainingError(
            f"the loss of the first examples is {loss.item()} before anything is trained; choose "
            "another backbone.dtype (float16 overflows where bfloat16 and float32 do not)"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    wait(device)
    return forward, time.perf_counter() - started


def require_gradient(model: PeftModel) -> None:
    """After a backward pass: raises TrainingError if it reached nothing that is trained."""
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    if not any(bool(gradient.any()) for gradient in gradients):
        raise TrainingError(
            "no gradient reaches the adapter: nothing would be trained. Check adapter.target_modules; "
            "under training.gradient_checkpointing the model's inputs have to carry gradients"
        )


@contextmanager
def _as_in_training(model: PeftModel, checkpointing: bool) -> Iterator[None]:
    """Training mode and empty gradients inside; outside all is what it was."""
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = [p.grad for p in trained]
    was_training, was_checkpointing = model.training, model.is_activation_checkpointing
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            for parameter in trained:
                parameter.grad = None
            if checkpointing and not was_checkpointing:
                model.activation_checkpointing_enable({"use_reentrant": False})
            model.train()
            yield
        finally:
            model.train(was_training)
            if checkpointing and not was_checkpointing:
                model.activation_checkpointing_disable()
                # Left on by the line above where the adapter is PEFT's own model.
                model.disable_input_require_grads()
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.grad = gradient


def _start_memory(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return 0
    return peak_memory()


def _peak_memory(device: torch.device, before: int) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = peak_memory()
    return peak if peak > before else None
