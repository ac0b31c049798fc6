"""AdaLoRA during training: orthogonality penalty and rank allocation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from lora_kit.adapter.peft_methods import DEFAULT_ADAPTER
from lora_kit.runtime.errors import AdapterError, TrainingError
from lora_kit.training.gradient_hooks import GradientHook

if TYPE_CHECKING:
    from peft import PeftModel

# Default shares of the steps before the first pruning and after the last one.
INITIAL_SHARE, FINAL_SHARE = 0.1, 0.3


def pruning_phases(options: Mapping[str, Any], steps: int) -> tuple[int, int]:
    """Return the steps before ranks are first pruned and after, PEFT's `tinit` and `tfinal`.

    Args:
        options: the recipe's `adapter.options`; if neither is set, both are shares of the steps.
        steps: optimizer steps over all epochs.

    Raises:
        AdapterError: if no step is left between them for pruning.
    """
    initial, final = options.get("tinit") or 0, options.get("tfinal") or 0
    if not initial and not final:
        initial, final = round(INITIAL_SHARE * steps), round(FINAL_SHARE * steps)
    # PEFT fixes the ranks `tfinal` steps before the end, and must have scored them before.
    if final > steps - 2 or initial >= steps - final:
        raise AdapterError(
            f"adapter.method: adalora has no step left to prune ranks in (got {steps} steps, "
            f"adapter.options.tinit {initial}, tfinal {final}). Fix: train longer (at least three "
            "steps), or lower tinit and tfinal"
        )
    return initial, final


class RankAllocation(GradientHook):
    """AdaLoRA (Zhang et al. 2023, arXiv:2303.10512), which prunes singular values by importance.

    PEFT adds the orthogonality penalty only to a loss that the model computes, and expects the
    training loop to pass the step.
    """

    def __init__(self, model: PeftModel, steps: int):
        """Create the hook.

        Args:
            model: model with an AdaLoRA adapter.
            steps: optimizer steps over all epochs.
        """
        self._tuner: Any = model.base_model
        self._config: Any = model.peft_config[DEFAULT_ADAPTER]
        self._steps = steps

    def on_train_begin(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Set the number of steps in PEFT's configuration.

        Raises:
            TrainingError: if the training is resumed from a checkpoint.
        """
        if state.global_step:
            raise TrainingError(
                "adapter.method: adalora cannot resume, since checkpoints do not hold the "
                f"importance of singular values (got a checkpoint of step {state.global_step}). "
                "Fix: drop --resume"
            )
        self._config.total_step = self._steps
        own = {"tinit": self._config.tinit, "tfinal": self._config.tfinal}
        self._config.tinit, self._config.tfinal = pruning_phases(own, self._steps)
        self._tuner.rankallocator.set_total_step(self._steps)

    def modify_gradients(self, state: TrainerState, scale: float) -> None:
        """Add the penalty's gradient, after the reduction, since it is equal on all processes."""
        del state
        factors = [p for name, p in self._tuner.named_parameters()
                   if "lora_A" in name or "lora_B" in name]  # fmt: skip
        penalty = sum(_distance_from_orthogonal(factor) for factor in factors) / len(factors)
        torch.autograd.backward(scale * self._config.orth_reg_weight * penalty)

    def on_optimizer_step(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Update importance and ranks while the gradients exist."""
        self._tuner.update_and_allocate(state.global_step + 1)


def _distance_from_orthogonal(factor: torch.Tensor) -> torch.Tensor:
    """Return the Frobenius norm of A A^T - I or B^T B - I; scalar, dtype of the factor.

    Args:
        factor: (rank, in) or (out, rank); the rank is the smaller dimension.
    """
    square = factor @ factor.T if factor.shape[0] < factor.shape[1] else factor.T @ factor
    distance: torch.Tensor = torch.linalg.norm(
        square - torch.eye(len(square), device=square.device)
    )
    return distance
