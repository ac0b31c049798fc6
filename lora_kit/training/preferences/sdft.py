"""SDFT through TRL's SDFTTrainer, which TRL 1.16 lists as experimental."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset

from lora_kit.data.units import Unit
from lora_kit.modeling.generation import contiguous_head
from lora_kit.modeling.modes import adapter_disabled, eval_mode
from lora_kit.recipe.objective import SdftSpec
from lora_kit.training.preferences.prompts import PromptSampler, student_prompt, teacher_prompt
from lora_kit.training.preferences.trl_trainer import TrlTrainer

with warnings.catch_warnings():
    # TRL warns that the experimental interface may change; this package pins TRL's versions.
    warnings.simplefilter("ignore")
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer
    from trl.experimental.sdft.sdft_trainer import DemonstrationTeacherContextBuilder

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["SDFTConfig", "SdftStepTrainer", "sdft_options"]

# TRL's `distillation_alpha`.
ALPHAS = {"forward_kl": 0.0, "jensen_shannon": 0.5, "reverse_kl": 1.0}


def sdft_options(spec: SdftSpec, vocabulary: int) -> dict[str, Any]:
    """Return the options of SDFTConfig that the recipe's `sdft` section sets.

    Args:
        spec: the section.
        vocabulary: number of tokens that the model chooses from.
    """
    # Of the whole vocabulary, no token is left for the bucket of all others.
    is_full = spec.top_k is None or spec.top_k >= vocabulary
    return {
        "max_completion_length": spec.max_new_tokens,
        "temperature": spec.temperature,
        "distillation_alpha": ALPHAS[spec.divergence],
        "distillation_mode": "full_logits" if is_full else "topk_logits",
        "distillation_topk": spec.top_k,
        # Without it, probability outside of the student's likeliest tokens would have no gradient.
        "distillation_add_tail": True,
        "num_loss_tokens_to_skip": spec.skipped_tokens,
        "teacher_model_kind": "base",
        "num_generations": 1,
        "disable_dropout": True,
    }


@contextmanager
def _without_warning() -> Iterator[None]:
    """Hide TRL's warning that the teacher is the base without its adapter, which is intended."""
    logger = logging.getLogger(SDFTTrainer.__module__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class TokenizedPrompts(DemonstrationTeacherContextBuilder):
    """TRL's builder of the teacher's inputs, given prompts that are tokenized already."""

    def _compose_teacher_prompt(self, _prompt: Any, privileged_context: list[int]) -> list[int]:
        return privileged_context


class SdftStepTrainer(TrlTrainer, SDFTTrainer):
    """On-policy self-distillation (Shenfeld et al. 2026, arXiv:2601.19897).

    The loss is the mean over answers of the mean divergence of an answer's tokens, in nats. Each
    process generates the answers to its prompts of a step, with a random state of its own. All
    processes and passes have equally many answers, so TRL's means over a step hold.
    """

    logged_metrics = ("completions/mean_length", "completions/clipped_ratio")

    def __init__(
        self,
        *args: Any,
        model: PeftModel,
        units: Sequence[Unit],
        spec: SdftSpec,
        ends: Sequence[int],
        save_total_limit: int,
        processing_class: Any,
        **kwargs: Any,
    ):
        """Build the trainer without changing the adapter's dtype, and tokenize both prompts.

        Args:
            args: arguments of SDFTTrainer.
            model: the model with its adapter attached.
            units: rows whose prompts are answered; the last turn of each is the demonstration.
            spec: the recipe's `sdft` section.
            ends: ids of the tokens that end an answer.
            save_total_limit: number of checkpoints to keep.
            processing_class: tokenizer of the backbone.
            kwargs: keyword arguments of SDFTTrainer.

        Raises:
            DataError: if the chat template does not support the teacher's prompt of a row.
        """
        # In TRL's names. TRL's own tokenization differs from that of sft and evaluation.
        prompts: list[dict[str, Any]] = [
            {
                "row": row,
                "prompt": student_prompt(unit.row, processing_class),
                "privileged_context": teacher_prompt(unit.row, spec, processing_class),
            }
            for row, unit in enumerate(units)
        ]
        with self.protecting(model), _without_warning():
            super().__init__(
                *args,
                model=model,
                train_dataset=Dataset.from_list(prompts),
                processing_class=processing_class,
                **kwargs,
            )
        self.teacher_context_builder = TokenizedPrompts(self)
        self.eos_token_ids = list(ends)
        self.generation_kwargs["eos_token_id"] = list(ends)
        self.generation_config.eos_token_id = list(ends)
        self.lengths = [len(one["privileged_context"]) for one in prompts]
        self.save_total_limit = save_total_limit

    def _get_train_sampler(self, dataset: Any = None) -> PromptSampler:
        self.sampler = PromptSampler(
            len(dataset if dataset is not None else self.train_dataset),
            self.args.generation_batch_size,
            1,
            self.args.steps_per_generation,
            self.args.data_seed,
        )
        return self.sampler

    def _tokenize_prompts(self, prompts: list[list[int]]) -> list[list[int]]:
        """Return the prompts, which are tokenized already.

        TRL would also cut the beginning of a prompt of more than 512 tokens, which a teacher's
        often is.
        """
        return prompts

    def _generate_transformers(
        self, prompt_ids: list[list[int]]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Generate in evaluation mode; in training mode, attention may have dropout."""
        with eval_mode(self.model), contiguous_head(self.model):
            answers: tuple[list[list[int]], list[list[int]]]
            answers = super()._generate_transformers(prompt_ids)
        return answers

    def _prepare_training_batch(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.rows = sorted({one["row"] for one in inputs})
        batch: dict[str, Any] = super()._prepare_training_batch(inputs)
        tokens = batch["prompt_mask"].sum() + batch["completion_mask"].sum()
        self.tokens += int(self.accelerator.reduce(tokens, "sum"))
        return batch

    def _forward_logits(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int
    ) -> torch.Tensor:
        """Return the logits of the answers' tokens, divided by the temperature.

        TRL counts the positions of a row from its padding, so that a model with learned positions
        would be trained on others than it generates with.

        Args:
            model: the model, perhaps wrapped for several processes.
            input_ids: (answers, length) int64, padded on both sides.
            attention_mask: (answers, length) int64, 0 for padding.
            logits_to_keep: length of the longest answer, in tokens.

        Returns:
            (answers, logits_to_keep, vocabulary).
        """
        if "position_ids" in self.model_kwarg_keys:
            positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
            model = partial(model, position_ids=positions)
        logits: torch.Tensor = super()._forward_logits(
            model, input_ids, attention_mask, logits_to_keep
        )
        return logits

    @contextmanager
    def _get_teacher_context_for_self_distillation(self) -> Iterator[None]:
        """Turn the model into the base, in evaluation mode; TRL leaves it in training mode."""
        with eval_mode(self.model), adapter_disabled(self.model):
            yield
