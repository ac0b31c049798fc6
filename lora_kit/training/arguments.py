"""Trainer arguments from the recipe's section `training`."""

from __future__ import annotations

import importlib.util
from typing import Any, TypeVar

from transformers import TrainingArguments

from lora_kit.recipe.training import TrainingSpec
from lora_kit.runtime.errors import TrainingError
from lora_kit.runtime.processes import process_state
from lora_kit.training.acceleration import acceleration_arguments
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.step_sizes import max_examples_per_process
from lora_kit.training.unused_parameters import may_be_unused

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def training_arguments(kind: type[Arguments], inputs: TrainingInputs, **own: Any) -> Arguments:
    """Return the arguments of transformers' trainer.

    A batch of the data loader is this process's complete share of an optimizer step; our trainers
    distribute the shares and divide them into micro-batches.

    Args:
        kind: class of the arguments.
        inputs: recipe, model and data.
        own: arguments specific to `kind`; override those of the recipe.

    Raises:
        TrainingError: if the batch cannot be divided between the processes, or a tracker is not
            installed.
    """
    recipe, state = inputs.recipe, process_state()
    spec = recipe.training
    require_trackers(spec)
    is_data_parallel = state.num_processes > 1 and not inputs.launch.partitioned
    common: dict[str, Any] = dict(
        output_dir=str(inputs.run.checkpoints),
        run_name=recipe.name,
        project="lora-kit",
        per_device_train_batch_size=max_examples_per_process(spec, state.num_processes),
        gradient_accumulation_steps=1,
        num_train_epochs=spec.epochs,
        learning_rate=spec.learning_rate,
        **_schedule(spec, inputs.steps),
        warmup_steps=spec.warmup_ratio,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        gradient_checkpointing=spec.gradient_checkpointing,
        bf16=inputs.backbone.spec.dtype == "bfloat16",
        fp16=inputs.backbone.spec.dtype == "float16",
        use_cpu=state.device.type == "cpu",
        # transformers would search every forward pass of a PEFT model.
        ddp_find_unused_parameters=is_data_parallel and may_be_unused(inputs),
        # Buffers of a backbone are the same everywhere. To broadcast them in each forward pass
        # would wait for ever where processes have unlike numbers of passes.
        ddp_broadcast_buffers=False,
        remove_unused_columns=False,
        seed=recipe.seed,
        data_seed=recipe.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=spec.save_steps,
        report_to=[name for name in spec.report_to if name != "tensorboard"] or "none",
        disable_tqdm=True,
        **acceleration_arguments(spec),
    )
    arguments: Arguments = kind(**(common | own))
    # Without a launcher, transformers would use nn.DataParallel on all visible GPUs, which splits
    # the indices of the scored columns as if they were examples.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _schedule(spec: TrainingSpec, steps: int) -> dict[str, Any]:
    """Return the arguments of the learning rate schedule.

    `wsd` is warmup, stable, decay (Hu et al. 2024, arXiv:2404.06395), linear at both ends.
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
    """Refuse a tracker whose package is not installed.

    Raises:
        TrainingError: naming the package.
    """
    for name in spec.report_to:
        if importlib.util.find_spec(name) is None:
            raise TrainingError(
                f"training.report_to: tracker is not installed (got {name}). Fix: pip install "
                f"{name}, or remove it"
            )
