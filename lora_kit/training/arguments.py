"""From the recipe's `training` section to what the trainer is told."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from transformers import TrainingArguments
from trl import SFTConfig

from lora_kit.backbone.load import Backbone
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.training import TrainingSpec
from lora_kit.runtime.errors import TrainingError
from lora_kit.runtime.launch import current_launch

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def arguments_of(
    recipe: Recipe, backbone: Backbone, state: PartialState, directory: Path, steps: int
) -> SFTConfig:
    """What TRL's SFTTrainer is told; see `configured`."""
    return configured(
        SFTConfig,
        recipe,
        backbone,
        state,
        directory,
        steps,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def configured(
    kind: type[Arguments],
    recipe: Recipe,
    backbone: Backbone,
    state: PartialState,
    directory: Path,
    steps: int,
    **own: Any,
) -> Arguments:
    """What transformers' trainer is told.

    A batch of its data loader is this process's whole share of an optimizer step; our trainer deals
    the shares out and cuts them into micro batches itself.

    Args:
        kind: of arguments.
        recipe: what to do.
        backbone: what it is done to.
        state: this process among the others.
        directory: of the run.
        steps: of the optimizer, all in all.
        own: arguments of the kind, which come before those of the recipe.

    Raises:
        TrainingError: if the batch cannot be divided over the processes, or a tracker is missing.
    """
    spec = recipe.training
    require_trackers(spec)
    common: dict[str, Any] = dict(
        output_dir=str(directory),
        run_name=recipe.name,
        project="lora-kit",
        per_device_train_batch_size=share_of(spec, state.num_processes),
        gradient_accumulation_steps=1,
        num_train_epochs=spec.epochs,
        learning_rate=spec.learning_rate,
        **_schedule(spec, steps),
        warmup_steps=spec.warmup_ratio,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        gradient_checkpointing=spec.gradient_checkpointing,
        bf16=backbone.spec.dtype == "bfloat16",
        fp16=backbone.spec.dtype == "float16",
        use_cpu=state.device.type == "cpu",
        remove_unused_columns=False,
        seed=recipe.seed,
        data_seed=recipe.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        # DeepSpeed keeps the optimizer's state to itself, and could not go on from ours.
        save_strategy="no" if current_launch().deepspeed else "steps",
        save_steps=spec.save_steps,
        report_to=[name for name in spec.report_to if name != "tensorboard"] or "none",
        disable_tqdm=True,
    )
    arguments: Arguments = kind(**(common | own))
    # Without a launcher, all visible GPUs would be taken by nn.DataParallel, which deals out the
    # columns that logits are wanted in as if they were examples.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _schedule(spec: TrainingSpec, steps: int) -> dict[str, Any]:
    """The learning rate over the steps.

    `wsd`: warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395), linear at both ends.
    """
    if spec.lr_scheduler == "constant":
        return {"lr_scheduler_type": "constant_with_warmup"}
    if spec.lr_scheduler != "wsd":
        return {"lr_scheduler_type": spec.lr_scheduler}
    decay = max(round(spec.decay_ratio * steps), 1)
    return {
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": decay, "decay_type": "linear"},
    }


def require_trackers(spec: TrainingSpec) -> None:
    """Refuse a tracker that is not there.

    Raises:
        TrainingError: naming the package.
    """
    for name in spec.report_to:
        if importlib.util.find_spec(name) is None:
            raise TrainingError(
                f"training.report_to: {name} is not installed; pip install {name}, or leave it out"
            )


def share_of(spec: TrainingSpec, processes: int) -> int:
    """Most examples of an optimizer step that one of several processes gets.

    Raises:
        TrainingError: if there are more processes than examples.
    """
    if spec.batch_size < processes:
        raise TrainingError(
            f"training.batch_size: {spec.batch_size} examples of an optimizer step cannot be "
            f"shared by {processes} processes; raise it, or start fewer"
        )
    return math.ceil(spec.batch_size / processes)


def micro_batch_size(spec: TrainingSpec, processes: int, device: torch.device) -> int:
    """Most examples of a forward pass on one process.

    Raises:
        TrainingError: as `share_of`.
    """
    return min(like_length(spec, device), share_of(spec, processes))


def like_length(spec: TrainingSpec, device: torch.device) -> int:
    """How many examples of about one length stand together in the order of the training.

    As many as a forward pass of one process has. The number of processes does not come into it:
    the steps would have other examples.
    """
    default = 4 if device.type == "cpu" else spec.batch_size
    return min(spec.micro_batch_size or default, spec.batch_size)


def optimizer_steps(examples: int, spec: TrainingSpec) -> int:
    """Steps of the optimizer over all epochs, as transformers counts them."""
    an_epoch = max(math.ceil(examples / spec.batch_size), 1)
    return max(math.ceil(spec.epochs * an_epoch), 1)
