"""Training steps that are divided into forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import DataLoader

from lora_kit.data.batches import LengthGroupedSampler, StepShareSampler
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.modeling.model_inputs import to_device
from lora_kit.runtime.errors import TrainingError
from lora_kit.runtime.launch import require_sharded
from lora_kit.runtime.processes import process_state
from lora_kit.training.checkpointed_trainer import CheckpointedTrainer, keep_float32_masters
from lora_kit.training.gradient_conflict import GradientConflict, pop_gradients
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.learning_rates import needs_parameter_groups, parameter_groups
from lora_kit.training.retention_methods import RetentionMethods
from lora_kit.training.sharded import is_sharded
from lora_kit.training.step_sizes import length_group_size
from lora_kit.training.validation import Validation

# Collated share of a step (`examples`, `rows`, `labels`), or the tensors of one forward pass.
StepInputs = dict[str, Any]


class StepTrainer(CheckpointedTrainer):
    """Trainer with float32 adapters whose steps are divided into forward passes by length.

    Attributes:
        batch_size: examples of an optimizer step, over all processes.
        micro_batcher: division of a step into forward passes.
        sampler: sampler of the training examples.
        kl: KL penalty against the base, if the recipe has one.
        gradient_conflict: comparison of the tasks' gradients, if the recipe has one.
    """

    optimizer: Any
    logged_metrics: tuple[str, ...] = ("kl",)
    # TRL's name; its SFTTrainer sets it for `activation_offloading`.
    maybe_activation_offload_context: AbstractContextManager[Any] = nullcontext()

    def __init__(
        self,
        *args: Any,
        inputs: TrainingInputs,
        retention: RetentionMethods,
        validation: Validation | None = None,
        gradient_conflict: GradientConflict | None = None,
        **kwargs: Any,
    ):
        """Create the trainer, leaving the adapter's dtype as it is.

        Args:
            args: arguments of the parent trainer.
            inputs: model, data and recipe.
            retention: retention methods; the KL penalty and early stopping act here.
            validation: validation losses, saved with each checkpoint.
            gradient_conflict: comparison of the tasks' gradients.
            kwargs: keyword arguments of the parent trainer.
        """
        spec, micro_batcher = inputs.recipe.training, inputs.micro_batcher
        pad_token_id = inputs.backbone.tokenizer.pad_token_id
        with keep_float32_masters(inputs.model):
            super().__init__(
                *args,
                model=inputs.model,
                train_dataset=inputs.data.to_dataset(),
                processing_class=inputs.backbone.tokenizer,
                data_collator=micro_batcher.collate_share,
                **kwargs,
            )
        # transformers infers false for some models; the loss is computed here, not by the model.
        self.model_accepts_loss_kwargs = True
        self.validation = validation
        self.kl = retention.kl
        self.early_stopping = retention.early_stopping
        self.gradient_conflict = gradient_conflict
        self.rows: list[int] = []
        self.lengths = inputs.data.lengths.tolist()
        self.batch_size = spec.batch_size
        self.length_group_size = length_group_size(spec, process_state().device)
        self.save_total_limit = spec.save_total_limit
        self.micro_batcher = micro_batcher
        self._pad_token_id = pad_token_id
        self._spec = spec
        self._is_unwrapped = False
        self._launch = inputs.launch
        _reduce_in_float32(self.accelerator)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> Any:
        """Return the optimizer, with parameter groups if the recipe's learning rates differ."""
        if not needs_parameter_groups(self._spec) or self.optimizer is not None:
            return super().create_optimizer(model)
        module = model or self.model
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        groups = parameter_groups(trained, self.get_decay_parameter_names(module), self._spec)
        kind, options = self.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = kind(groups, **options)
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader[StepInputs]:
        """Return a loader of this process's share of each step.

        A batch of the loader is a complete share; `training_step` divides it into passes.
        """
        self.sampler = LengthGroupedSampler(
            self.lengths, self.length_group_size, self.args.data_seed
        )
        shares = StepShareSampler(
            self.sampler, self.batch_size, self.args.process_index, self.args.world_size
        )
        return DataLoader(self.train_dataset, batch_sampler=shares, collate_fn=self.data_collator)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: StepInputs,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Run forward and backward passes over this process's share of an optimizer step.

        Args:
            model: the model, wrapped by Accelerate.
            inputs: this process's share, of `collate_share`.
            num_items_in_batch: supervised tokens of the step, over all processes.

        Returns:
            Summed losses of the share's supervised tokens, divided by `num_items_in_batch` and
            multiplied by the number of processes, since gradients are averaged over processes;
            scalar, float32.
        """
        self._unwrap_forward(model)
        model.train()
        examples: Sequence[Example] = inputs["examples"]
        self.rows = inputs["rows"]
        self._backward_kl(model)
        if self.gradient_conflict is None:
            return self._backward(model, examples, num_items_in_batch)
        return self._backward_by_task(self.gradient_conflict, model, examples, num_items_in_batch)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: StepInputs,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the contribution of one forward pass to the step's loss; scalar, float32.

        Args:
            model: the model, wrapped by Accelerate.
            inputs: tensors of the pass, as `summed_loss` takes them.
            return_outputs: not supported.
            num_items_in_batch: divisor of the summed losses of the step, over all processes.

        Raises:
            TrainingError: if the outputs are requested, or the divisor is missing.
        """
        if return_outputs or num_items_in_batch is None:
            raise TrainingError(
                "compute_loss: supports training steps only (got return_outputs or no "
                "num_items_in_batch). Fix: call trainer.train(); lora_kit.training.validation "
                "computes the loss of held-out rows"
            )
        total = self.summed_loss(model, inputs) / num_items_in_batch
        loss: torch.Tensor = total * self.accelerator.num_processes
        return loss

    def summed_loss(self, model: torch.nn.Module, inputs: StepInputs) -> torch.Tensor:
        """Return the summed losses of one forward pass; scalar, float32."""
        raise NotImplementedError

    def _backward_by_task(
        self,
        gradient_conflict: GradientConflict,
        model: torch.nn.Module,
        examples: Sequence[Example],
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        """Run one backward pass per task of the step; returns the loss as `training_step`."""
        step = self.state.global_step
        groups = gradient_conflict.group_by_task(step, self.rows, examples)
        if len(groups) == 1:
            return self._backward(model, examples, num_items_in_batch)
        parameters = [p for p in model.parameters() if p.requires_grad]
        kl_gradients, gradients = pop_gradients(parameters), {}
        total = torch.zeros((), device=self.args.device)
        for task, group in groups.items():
            total += self._backward(model, group, num_items_in_batch)
            gradients[task] = pop_gradients(parameters)
        for parameter, gradient in zip(parameters, kl_gradients, strict=True):
            parameter.grad = gradient
        gradient_conflict.combine(parameters, gradients, step)
        return total

    def _backward(
        self,
        model: torch.nn.Module,
        examples: Sequence[Example],
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        """Run forward and backward passes over examples; returns their share of the loss."""
        batches = self._passes(examples, model)
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(batches, start=1):
            is_last = number == len(batches)
            # DeepSpeed takes the optimizer step in the backward pass for which this is true.
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            synced = nullcontext() if is_last else self.accelerator.no_sync(model)
            # One pass at a time: offloaded activations come back in its backward pass.
            with synced, self.maybe_activation_offload_context:
                with self.compute_loss_context_manager(), self._autocast():
                    prepared = self._prepare_inputs(to_device(batch, self.args.device))
                    loss = self.compute_loss(model, prepared, num_items_in_batch=num_items_in_batch)
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _backward_kl(self, model: torch.nn.Module) -> None:
        """Add the gradient of the KL penalty, to be reduced with that of the step's last pass."""
        if self.kl is None:
            return
        arguments, step = self.args, self.state.global_step
        parts = self.kl.losses(step, arguments.process_index, arguments.world_size)
        with self.accelerator.no_sync(model):
            while True:
                with self._autocast():
                    part = next(parts, None)
                if part is None:
                    break
                # Gradients are averaged over processes, but the parts must be summed.
                self.accelerator.backward(part * arguments.world_size)
        divergence = self.kl.last_divergence.float()
        self.kl.last_divergence = self.accelerator.reduce(divergence, reduction="sum")

    def _passes(self, examples: Sequence[Example], model: torch.nn.Module) -> list[StepInputs]:
        """Return the forward passes over this process's share.

        A share may be empty or have fewer passes than those of other processes. Where weights are
        gathered for each pass, or gradients are reduced after each pass (ZeRO-2), all processes
        must run the same number of passes: the missing ones are padded with unlabeled examples.
        """
        batches = self._tensors(examples) if examples else []
        tokens, most = sum(len(example.input_ids) for example in examples), len(batches)
        if self.args.world_size > 1:
            counts = torch.tensor([[tokens, most]], device=self.args.device)
            counts = self.accelerator.gather(counts).cpu()
            tokens, most = int(counts[:, 0].sum()), int(counts[:, 1].max())
        self.tokens += tokens
        in_lockstep = self._launch.deepspeed or is_sharded(model)
        required = most if in_lockstep else 1
        missing = max(required - len(batches), 0)
        unlabeled = Example((0, 0), (IGNORE_INDEX, IGNORE_INDEX))
        return [self._tensors([unlabeled])[0]] * missing + batches

    def _tensors(self, examples: Sequence[Example]) -> list[StepInputs]:
        return self.micro_batcher.tensors(examples, self._pad_token_id)

    def _unwrap_forward(self, model: torch.nn.Module) -> None:
        """Remove Accelerate's wrapper, which casts all logits to float32; keep `_autocast`.

        The model is wrapped only when training starts, so that this runs at the first step.

        Raises:
            TrainingError: if the launch requires sharding and the model is not sharded.
        """
        if not self._is_unwrapped:
            require_sharded(self._launch, model)
            self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            self._is_unwrapped = True

    def _autocast(self) -> AbstractContextManager[Any]:
        if not (self.args.bf16 or self.args.fp16):
            return nullcontext()
        dtype = torch.bfloat16 if self.args.bf16 else torch.float16
        return torch.autocast(self.args.device.type, dtype)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the KL divergence from the base, in nats per token, with the other metrics."""
        divergence = {"kl": float(self.kl.last_divergence)} if self.kl else {}
        super().log(logs | divergence, start_time)


def _reduce_in_float32(accelerator: Accelerator) -> None:
    """Reduce gradients in float32 under FSDP2, as data parallelism does.

    With bfloat16 training, Accelerate 1.15 gathers adapters and reduces gradients in bfloat16.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
