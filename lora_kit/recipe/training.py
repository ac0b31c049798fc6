"""The recipe's `training` section: objective, batches, learning rates, checkpoints, reporting."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.data import SourceSpec
from lora_kit.recipe.objective import Objective
from lora_kit.recipe.section import (
    Count,
    Factors,
    Fraction,
    NotNegative,
    Positive,
    Section,
    Share,
)

ADAMW = ("adamw_torch", "adamw_torch_fused")
Optimizer = Literal[
    "adamw_torch_fused",
    "adamw_torch",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "adafactor",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "rmsprop",
    "adagrad",
    "sgd",
]


class GradientConflictSpec(Section):
    """Several tasks in one adapter, one for each source of `data.train`."""

    steps: Count = 10
    """Optimizer steps between two measurements of the cosines of the tasks' gradients."""
    pcgrad: bool = False
    """Project conflicting parts out of each task's gradient in every step (PCGrad; Yu et al. 2020,
    arXiv:2001.06782)."""


class DistillationSpec(Section):
    """A larger model with the same tokenizer, whose distributions are trained on."""

    teacher: BackboneSpec
    """As `backbone`; loaded beside it."""
    weight: Share = 0.5
    """Weight of the teacher's distribution in the loss; the label has the rest."""
    temperature: Positive = 1.0
    """Softmax temperature; values above 1 raise the weight of unlikely tokens."""


class DomainAlignmentSpec(Section):
    """Features that do not tell the training rows from texts of a target domain.

    Each forward pass has as many texts of the target as rows. The arm `plain` is trained without
    them.
    """

    target: Annotated[list[SourceSpec], Field(min_length=1)]
    """Sources of texts of the target domain, as in `data.train`; labels are not read."""
    method: Literal["adversarial", "coral"] = "adversarial"
    """`adversarial`: a classifier of the domains learns beside the head, and its gradient is
    reversed below it (Ganin et al. 2016, arXiv:1505.07818). `coral`: the distance between the
    covariances of both domains in a step, from 0 to 1, is added to the loss (Sun and Saenko 2016,
    arXiv:1607.01719)."""
    weight: Positive = 0.1
    """`adversarial`: factor of the reversed gradient at the end of the training, to which it rises
    from 0. `coral`: weight of the distance in the loss."""


class TrainingSpec(Section):
    """Training of the adapter."""

    objective: Objective = "sft"
    """Loss. `sft`: cross-entropy on supervised tokens. `text`: continued pre-training on every
    token of texts. From pairs of a chosen and a rejected answer: `dpo`, `orpo`; from labelled
    answers: `kto` (see `preference`). From rewards of generated answers: `grpo`. From the
    distributions of the base, shown a row's completion, on generated answers: `sdft`. `reward`: a
    reward model from pairs. `classification`: a head for the classes of `text-label` rows.
    `regression`: a head for the numbers of `text-score` rows. `multi-label`: a head for any number
    of labels, of `text-labels` rows. `token-classification`: a head for the tags of the words of
    `tokens-tags` rows. `embedding`: vectors of texts, from `pair` and `triplet` rows, with the
    other texts of a step as negatives. `mlm`: masked tokens of texts, for encoders. The reference
    policy of dpo, kto and grpo, and the teacher of sdft, is the base, with the adapter
    disabled."""
    epochs: Positive = 1.0
    """Passes over the training rows."""
    batch_size: Count = 8
    """Examples of an optimizer step over all processes; pairs for dpo, orpo, reward and embedding,
    prompts for grpo and sdft, equally many for each process."""
    micro_batch_size: Count | None = None
    """Examples of a forward pass and process; fewer need less memory. Default: 4 on a CPU, the
    process's share of the step on a GPU. For grpo: answers, of which a step has `batch_size` times
    `grpo.num_generations`. For kto: examples over which the divergence is estimated, shared by all
    processes. For embedding: pairs of a forward pass; the negatives are those of the whole step all
    the same, by cached gradients, which take a second forward pass. Default there: the whole
    step."""
    learning_rate: Positive = 2e-4
    """Peak learning rate."""
    optim: Optimizer = "adamw_torch_fused"
    """Optimizer, by its name in transformers. `8bit` stores its state in 8 bits (Dettmers et al.
    2022, arXiv:2110.02861); `paged` lets the state leave a full GPU for main memory. Only the
    `adamw_torch` ones under FSDP and DeepSpeed."""
    max_tokens_per_batch: Count | None = None
    """Tokens of a forward pass and process, padding included; fewer need less memory."""
    lr_scheduler: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Learning rate after warm-up. `wsd`: constant, then linear to 0 over the last steps."""
    warmup_ratio: Fraction = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    decay_ratio: Fraction = 0.2
    """Share of the steps over which lr_scheduler `wsd` lowers the learning rate to 0."""
    loraplus_lr_ratio: Positive | None = None
    """LoRA+ (Hayou et al. 2024, arXiv:2402.12354): learning rate of B over that of A; usually 4 to
    16."""
    lr_multipliers: Factors = Field(default_factory=dict)
    """Factors of the learning rate by module name, `{q_proj: 0.5, score: 10}`; where several
    names match a parameter, their product."""
    layerwise_lr_decay: Annotated[Share, Field(gt=0)] | None = None
    """Learning rate of a block over that of the block above it, such as 0.9."""
    gradual_unfreezing_steps: Count | None = None
    """Unfreeze one more block, last to first, every so many optimizer steps."""
    weight_decay: NotNegative = 0.0
    """Weight decay; decoupled from the gradient with AdamW and most others."""
    max_grad_norm: Positive = 1.0
    """Largest norm of the gradients; larger ones are scaled down to it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, far less memory."""
    activation_offloading: bool = False
    """Keep activations in main memory until the backward pass, on a GPU. For the objectives sft and
    text. The estimate of memory does not heed it, and is too high then."""
    compile: bool = False
    """Compile each transformer block with torch.compile: minutes at the start, fewer and larger
    kernels then; the same loss up to rounding. For the objectives sft and text; not for quantized
    weights on a CPU. The estimate of memory does not heed it."""
    liger: bool = False
    """Liger's kernels for norms, rotary positions and gated layers, on a GPU, from the extra
    `liger`; the loss stays that of this package. They stay in the process after training. For the
    objectives sft and text. The estimate of memory does not heed it, and is too high then."""
    neftune_noise_alpha: Positive | None = None
    """NEFTune (Jain et al. 2023, arXiv:2310.05914): uniform noise on the embeddings, of this size
    over the root of the number of a row's values; usually 5 to 15. For the objectives sft and
    text; batches are padded then."""
    save_steps: Count = 100
    """Optimizer steps between two checkpoints, from which `--resume` continues."""
    save_total_limit: Count = 2
    """Checkpoints that are kept while training continues."""
    eval_steps: Count | None = None
    """Optimizer steps between two measurements of the validation loss and, for the objectives sft
    and text, of the drift: the KL divergence from the base on up to 8 held-out prompts, which
    predicts forgetting (Shenfeld et al. 2025, arXiv:2509.04259). Default: before and after
    training. Drift is not measured for encoder-decoders, with `compile`, FSDP and DeepSpeed."""
    early_stopping_patience: Count | None = None
    """Stop after this many measurements without a lower validation loss."""
    keep_best: bool = False
    """Keep the adapter of the lowest validation loss instead of the last one."""
    distillation: DistillationSpec | None = None
    """Distillation from a larger model; for the objectives sft and text."""
    gradient_conflict: GradientConflictSpec | None = None
    """Measure, and with `pcgrad` remove, conflicts between the gradients of several sources."""
    domain_alignment: DomainAlignmentSpec | None = None
    """Heads that read a text: keep the features alike in the training rows and in a target
    domain."""
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    """Trackers that also receive the values of `metrics.jsonl`."""
