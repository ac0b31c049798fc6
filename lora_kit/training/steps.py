"""Optimizer steps that are cut into forward passes: what all trainers of rows have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import DataLoader

from lora_kit.data.batches import LengthGroupedSampler, StepShares
from lora_kit.data.tokenization import IGNORED, Example
from lora_kit.recipe.training import TrainingSpec
from lora_kit.runtime.launch import current_launch, require_sharded
from lora_kit.training.checkpointed_trainer import CheckpointedTrainer, float32_masters
from lora_kit.training.gradient_conflict import GradientConflict, taken
from lora_kit.training.learning_rates import parameter_groups
from lora_kit.training.micro_batches import micro_batches, of_a_step
from lora_kit.training.retention.early_stopping import RetentionEarlyStopping
from lora_kit.training.retention.kl import KlPenalty
from lora_kit.training.sharded import is_sharded
from lora_kit.training.validation import Validation

if TYPE_CHECKING:
    from peft import PeftModel

Batch = dict[str, Any]


class StepTrainer(CheckpointedTrainer):
    """A trainer with float32 adapters, and steps that are cut into micro batches by length.

    Attributes:
        lengths: tokens of each example of the data set.
        like_length: how many examples of about one length stand together in their order.
        sampler: of the training.
        rows: of the data set, those of this process's last batch.
        tokens: seen so far, by all processes, padding not included.
        validation: what its checkpoints hold as well.
        anchor: what holds it to the base, if anything does.
        budget: what ends it for forgetting, if anything does.
        conflict: what looks at the gradients task by task, if anything does.
    """

    optimizer: Any
    figures = ("kl",)

    def __init__(
        self,
        *args: Any,
        model: PeftModel,
        lengths: Sequence[int],
        batch_size: int,
        like_length: int,
        micro_batch_size: int,
        max_tokens_per_batch: int | None,
        packing: bool,
        pad_token_id: int,
        save_total_limit: int,
        validation: Validation | None = None,
        kl: KlPenalty | None = None,
        early_stopping: RetentionEarlyStopping | None = None,
        rates: TrainingSpec | None = None,
        gradient_conflict: GradientConflict | None = None,
        **kwargs: Any,
    ):
        """Take the adapters as they are.

        Args:
            args: of the trainer below.
            model: with its adapter attached.
            lengths: tokens of each example of the data set.
            batch_size: examples of an optimizer step, of all processes together.
            like_length: how many of about one length stand together in their order.
            micro_batch_size: most examples of a forward pass.
            max_tokens_per_batch: most tokens of a forward pass, or `None`.
            packing: whether a forward pass has one row of several examples.
            pad_token_id: what short rows are filled up with.
            save_total_limit: how many are left standing.
            validation: what its checkpoints hold as well.
            anchor: what holds it to the base.
            budget: what ends it for forgetting.
            rates: where parameters differ in their learning rates, by what.
            conflict: what looks at the gradients task by task.
            kwargs: of the trainer below.
        """
        collator = partial(of_a_step, packing=packing)
        with float32_masters(model):
            super().__init__(*args, model=model, data_collator=collator, **kwargs)
        # Of some models transformers thinks otherwise; the loss is not theirs.
        self.model_accepts_loss_kwargs = True
        self.validation = validation
        self.kl = kl
        self.early_stopping = early_stopping
        self._rates = rates
        self.gradient_conflict = gradient_conflict
        self.rows: list[int] = []
        self._micro = partial(
            micro_batches,
            rows=micro_batch_size,
            tokens=max_tokens_per_batch,
            packing=packing,
            pad_token_id=pad_token_id,
        )
        self.batch_size = batch_size
        self.like_length = like_length
        self._is_bare = False
        self._in_step = current_launch().deepspeed
        _reduce_in_float32(self.accelerator)
        self.lengths = lengths
        self.save_total_limit = save_total_limit

    def create_optimizer(self, model: torch.nn.Module | None = None) -> Any:
        """The optimizer, with the recipe's own learning rates if it has such."""
        if self._rates is None or self.optimizer is not None:
            return super().create_optimizer(model)
        of = model or self.model
        trained = {name: p for name, p in of.named_parameters() if p.requires_grad}
        groups = parameter_groups(trained, self.get_decay_parameter_names(of), self._rates)
        kind, options = self.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = kind(groups, **options)
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """This process's share of each step; the tensors are made when it is cut into passes."""
        self.sampler = LengthGroupedSampler(self.lengths, self.like_length, self.args.data_seed)
        shares = StepShares(
            self.sampler, self.batch_size, self.args.process_index, self.args.world_size
        )
        return DataLoader(self.train_dataset, batch_sampler=shares, collate_fn=self.data_collator)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Forward and backward over this process's share of an optimizer step.

        Returns:
            The sum of the supervised tokens' losses over the supervised tokens of the whole step:
            `num_items_in_batch` counts them over all processes. Since gradients are averaged over
            processes, the sum is scaled up by their number.
        """
        self._unwrap_forward(model)
        model.train()
        examples: Sequence[Example] = inputs["examples"]
        self.rows = inputs["rows"]
        self._hold_to_the_base(model)
        if self.gradient_conflict is None:
            return self._backward(model, examples, num_items_in_batch)
        return self._task_by_task(self.gradient_conflict, model, examples, num_items_in_batch)

    def _task_by_task(
        self,
        gradient_conflict: GradientConflict,
        model: torch.nn.Module,
        examples: Sequence[Example],
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        """As `training_step`, a backward pass for each task that the step has rows of."""
        step = self.state.global_step
        groups = gradient_conflict.groups(step, self.rows, examples)
        if len(groups) == 1:
            return self._backward(model, examples, num_items_in_batch)
        parameters = [p for p in model.parameters() if p.requires_grad]
        held, gradients = taken(parameters), {}
        total = torch.zeros((), device=self.args.device)
        for task, group in groups.items():
            total += self._backward(model, group, num_items_in_batch)
            gradients[task] = taken(parameters)
        for parameter, gradient in zip(parameters, held, strict=True):
            parameter.grad = gradient
        gradient_conflict.settle(parameters, gradients, step)
        return total

    def _backward(
        self,
        model: torch.nn.Module,
        examples: Sequence[Example],
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        """Forward and backward passes over examples; returns their share of the step's loss."""
        batches = self._passes(examples, model)
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(batches, start=1):
            synchronised = number == len(batches)
            # DeepSpeed takes the optimizer's step in the backward pass that this is set for.
            self.accelerator.gradient_state._set_sync_gradients(synchronised)
            waiting = nullcontext() if synchronised else self.accelerator.no_sync(model)
            with waiting:
                with self.compute_loss_context_manager(), self._autocast():
                    loss = self.compute_loss(
                        model, self._prepare_inputs(batch), num_items_in_batch=num_items_in_batch
                    )
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _hold_to_the_base(self, model: torch.nn.Module) -> None:
        """Add the anchor's gradient, which is reduced with that of the step's last pass."""
        if self.kl is None:
            return
        arguments, step = self.args, self.state.global_step
        parts = self.kl.losses(step, arguments.process_index, arguments.world_size)
        with self.accelerator.no_sync(model):
            while (part := self._next(parts)) is not None:
                # Gradients are averaged over the processes, and these are to be added up.
                self.accelerator.backward(part * arguments.world_size)
        found = torch.tensor(self.kl.last, device=arguments.device)
        self.kl.last = float(self.accelerator.reduce(found, reduction="sum"))

    def _next(self, parts: Iterator[torch.Tensor]) -> torch.Tensor | None:
        with self._autocast():
            return next(parts, None)

    def _passes(
        self, examples: Sequence[Example], model: torch.nn.Module
    ) -> list[dict[str, torch.Tensor]]:
        """The forward passes over this process's share.

        A share may be empty, and one with less than the others' passes: where weights are gathered
        for each pass, or gradients reduced after each as ZeRO-2 does, all processes have to make as
        many. What is made up for them has no label.
        """
        batches = self._micro(examples) if examples else []
        counts = torch.tensor(
            [[sum(len(e.input_ids) for e in examples), len(batches)]], device=self.args.device
        )
        of_all = self.accelerator.gather(counts)
        self.tokens += int(of_all[:, 0].sum())
        wanted = int(of_all[:, 1].max()) if self._in_step or is_sharded(model) else 1
        lacking = max(wanted - len(batches), 0)
        return [self._micro([Example((0, 0), (IGNORED, IGNORED))])[0]] * lacking + batches

    def _unwrap_forward(self, model: torch.nn.Module) -> None:
        """Undo Accelerate's wrapper, which casts all the logits to float32; `_autocast` is left.

        Before the first step, since only now the model is wrapped at all.

        Raises:
            TrainingError: if it was to be sharded and is not.
        """
        if not self._is_bare:
            require_sharded(current_launch(), model)
            self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            self._is_bare = True

    def _autocast(self) -> AbstractContextManager[Any]:
        if not (self.args.bf16 or self.args.fp16):
            return nullcontext()
        dtype = torch.bfloat16 if self.args.bf16 else torch.float16
        return torch.autocast(self.args.device.type, dtype)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the anchor's divergence."""
        held = {"kl": self.kl.last} if self.kl else {}
        super().log(logs | held, start_time)


def _reduce_in_float32(accelerator: Accelerator) -> None:
    """Let FSDP 2 add gradients up in float32, as data parallelism does.

    Told of bfloat16, Accelerate 1.15 has it gather adapters and add up their gradients in it.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
