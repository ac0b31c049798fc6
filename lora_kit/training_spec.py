"""The recipe's `training` section: objective, steps, rates, and what is watched."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lora_kit.backbone_spec import BackboneSpec
from lora_kit.objective_spec import Objective
from lora_kit.schema import Count, Fraction, NotNegative, Positive, Section, Share


class ConflictSpec(Section):
    """Several tasks in one adapter, one a source."""

    steps: Count = 10
    """Steps from one look at the cosines of the tasks' gradients to the next."""
    surgery: bool = False
    """Take out of each task's gradient, in every step, what points against another's (PCGrad)."""


class DistillationSpec(Section):
    """A larger model with the same tokens, whose distributions are learned."""

    teacher: BackboneSpec
    """As `backbone`; in memory beside it."""
    weight: Share = 0.5
    """Of its distribution in the loss; the rest is the label's."""
    temperature: Positive = 1.0
    """Above 1, what it thinks of unlikely tokens counts more."""


class TrainingSpec(Section):
    """How it is trained."""

    objective: Objective = "sft"
    """`sft`: cross-entropy on the supervised tokens. `text`, continued pre-training: every token of
    texts, of which long ones are split instead of cut. From pairs of a chosen and a rejected
    answer: `dpo`, `orpo`; from answers with a label: `kto` (all three: see `preference`). From
    rewards of what the model says: `grpo` (see `grpo`). The reference policy of dpo, kto and grpo
    is the base, which is the adapter switched off. `reward`: a head that tells from such pairs how
    good an answer is. `classification`: a head for the classes of rows of the format `text-label`.
    The sections of their names say more."""
    epochs: Positive = 1.0
    """Passes over the training rows."""
    batch_size: Count = 8
    """Examples an optimizer step, over all processes; pairs for dpo, orpo and
    reward, prompts for grpo."""
    micro_batch_size: Count | None = None
    """Examples a forward pass and process; fewer take less memory. By default 4 on a CPU. For grpo
    answers, of which a step has `batch_size` times `grpo.generations`."""
    learning_rate: Positive = 2e-4
    """Peak learning rate of AdamW."""
    batch_tokens: Count | None = None
    """Tokens a forward pass and process, padding included; fewer take less memory."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Learning rate after the warm-up; `wsd`: constant, and at the end down to 0."""
    warmup: Fraction = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    decay: Fraction = 0.2
    """Of `wsd`: share of the steps over which the learning rate falls."""
    lora_plus: Positive | None = None
    """LoRA+: how many times faster LoRA's second factor learns than the first; 4 to 16."""
    rates: dict[str, Positive] = Field(default_factory=dict)
    """Times the learning rate, by the name of a module: `{q_proj: 0.5, score: 10}`; where several
    have a parameter in them, the product."""
    layer_decay: Annotated[Share, Field(gt=0)] | None = None
    """Learning rate of a block over that of the block above it, such as 0.9."""
    unfreeze_steps: Count | None = None
    """Blocks begin to learn from the last to the first, one more every so many steps."""
    weight_decay: NotNegative = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to at most this norm."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, far less memory."""
    checkpoint_steps: Count = 100
    """Steps from one checkpoint to the next, from which `--resume` goes on."""
    keep_checkpoints: Count = 2
    """Checkpoints that are kept while training goes on."""
    validate_steps: Count | None = None
    """Steps between two measurements of the validation loss; by default before and after."""
    patience: Count | None = None
    """Stop after this many measurements without a lower validation loss."""
    keep_best: bool = False
    """Keep the adapter of the lowest validation loss instead of the last one."""
    distillation: DistillationSpec | None = None
    """Learning from a larger model, of sft and text."""
    conflict: ConflictSpec | None = None
    """Of several sources: whether their gradients conflict."""
    log_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    """Trackers that get the figures of `metrics.jsonl` too."""

    @model_validator(mode="after")
    def _whole_accumulation(self) -> TrainingSpec:
        if self.objective == "grpo":
            return self  # there it is answers that are cut, see `objective_fit`
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _decay_of_a_schedule(self) -> TrainingSpec:
        usual = TrainingSpec.model_fields["decay"].default
        if self.schedule != "wsd" and self.decay != usual:
            raise ValueError(
                f"decay: the schedule {self.schedule} does not go by it (wsd does); leave it out"
            )
        return self

    @model_validator(mode="after")
    def _validation_where_it_decides(self) -> TrainingSpec:
        for name in ("patience", "keep_best"):
            if getattr(self, name) and self.validate_steps is None:
                raise ValueError(f"{name} goes by the validation loss; set validate_steps as well")
        return self
