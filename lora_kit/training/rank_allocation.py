"""AdaLoRA's part in a training: its penalty, and the ranks that it gives and takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from lora_kit.runtime.errors import AdapterError, TrainingError
from lora_kit.training.before_clipping import BeforeClipping

if TYPE_CHECKING:
    from peft import PeftModel

# Shares of the steps before the first rank is taken, and after the last one.
WARM, SETTLED = 0.1, 0.3


def phases(options: Mapping[str, Any], steps: int) -> tuple[int, int]:
    """Steps before the first rank is taken and after the last one, PEFT's `tinit` and `tfinal`.

    Args:
        options: of the adapter; where neither is set, both are shares of the steps.
        steps: of the optimizer, all in all.

    Raises:
        AdapterError: if no step is left between them, in which ranks could be taken.
    """
    warm, settled = options.get("tinit") or 0, options.get("tfinal") or 0
    if not warm and not settled:
        warm, settled = round(WARM * steps), round(SETTLED * steps)
    # PEFT fixes the ranks at the last step but `tfinal`, and has to have looked at them before.
    if settled > steps - 2 or warm >= steps - settled:
        raise AdapterError(
            f"adapter.method: adalora: of {steps} steps, {warm} come before the first rank is taken"
            f" and {settled} after the last one (adapter.options.tinit, tfinal), which leaves none "
            "to choose ranks in. Train longer, or lower them; three steps are the least"
        )
    return warm, settled


class RankAllocation(BeforeClipping):
    """AdaLoRA (Zhang et al. 2023, arXiv:2303.10512): singular values are pruned by importance.

    PEFT adds the penalty for factors that are not orthogonal to a loss that the model computes, and
    leaves it to the training loop to say which step it is.
    """

    def __init__(self, model: PeftModel, steps: int):
        """Plan.

        Args:
            model: with an adapter of the method.
            steps: of the optimizer, all in all.
        """
        self._tuner: Any = model.base_model
        self._config: Any = model.peft_config["default"]
        self._steps = steps

    def on_train_begin(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Tell PEFT how long it takes.

        Raises:
            TrainingError: if a checkpoint is gone on from.
        """
        if state.global_step:
            raise TrainingError(
                "adapter.method: adalora: which singular values mattered so far is not in the "
                "checkpoint; begin anew without --resume"
            )
        self._config.total_step = self._steps
        own = {"tinit": self._config.tinit, "tfinal": self._config.tfinal}
        self._config.tinit, self._config.tfinal = phases(own, self._steps)
        self._tuner.rankallocator.set_total_step(self._steps)

    def change(self, state: TrainerState, scale: float) -> None:
        """Add the penalty's gradient: after the others' were added up, it is the same for all."""
        del state
        factors = [p for name, p in self._tuner.named_parameters()
                   if "lora_A" in name or "lora_B" in name]  # fmt: skip
        penalty = sum(_distance_from_orthogonal(factor) for factor in factors) / len(factors)
        torch.autograd.backward(scale * self._config.orth_reg_weight * penalty)

    def on_optimizer_step(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Give and take ranks while the gradients are there."""
        self._tuner.update_and_allocate(state.global_step + 1)


def _distance_from_orthogonal(factor: torch.Tensor) -> torch.Tensor:
    """Frobenius norm of A A^T - I, or B^T B - I; the rank is the smaller of the two sizes."""
    square = factor @ factor.T if factor.shape[0] < factor.shape[1] else factor.T @ factor
    distance: torch.Tensor = torch.linalg.norm(
        square - torch.eye(len(square), device=square.device)
    )
    return distance
