"""GRPO through TRL's GRPOTrainer, with our own prompts, checkpoints and log probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from trl import GRPOTrainer

from lora_kit.data.rows import Message
from lora_kit.data.tokenization import tokenize_prompt
from lora_kit.data.units import Unit
from lora_kit.training.checkpointed_trainer import IDLE_STEPS
from lora_kit.training.preferences.answer_log_probs import score_answers_only
from lora_kit.training.preferences.prompts import PromptSampler
from lora_kit.training.preferences.trl_trainer import TrlTrainer

if TYPE_CHECKING:
    from peft import PeftModel


class GrpoStepTrainer(TrlTrainer, GRPOTrainer):
    """Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300).

    Each process generates the answers to its prompts of a step, with a random state of its own, and
    computes their rewards. All processes have equally many answers, so TRL's own sums over a step
    hold.
    """

    logged_metrics = (
        *("reward", "reward_std", "frac_reward_zero_std", "kl", "entropy"),
        *("completions/mean_length", "completions/clipped_ratio"),
    )
    idle_steps = IDLE_STEPS

    def __init__(
        self,
        *args: Any,
        model: PeftModel,
        units: Sequence[Unit],
        ends: Sequence[int],
        save_total_limit: int,
        **kwargs: Any,
    ):
        """Build the trainer without changing the adapter's dtype or adding a reference adapter.

        Args:
            args: arguments of GRPOTrainer.
            model: the model with its adapter attached.
            units: rows whose prompts are answered; the last turn of each is the reference.
            ends: ids of the tokens that end an answer.
            save_total_limit: number of checkpoints to keep.
            kwargs: keyword arguments of GRPOTrainer.
        """
        prompts = Dataset.from_list([_prompt_record(row, unit) for row, unit in enumerate(units)])
        with self.protecting(model):
            super().__init__(*args, model=model, train_dataset=prompts, **kwargs)
        score_answers_only(model, self.temperature)
        self.eos_token_ids = list(ends)
        self.generation_kwargs["eos_token_id"] = list(ends)
        self.generation_config.eos_token_id = list(ends)
        self.lengths = [unit.length for unit in units]
        self.save_total_limit = save_total_limit

    def _get_train_sampler(self, dataset: Any = None) -> PromptSampler:
        prompts = self.args.generation_batch_size // self.num_generations
        self.sampler = PromptSampler(
            len(dataset if dataset is not None else self.train_dataset),
            prompts,
            self.num_generations,
            self.args.steps_per_generation,
            self.args.data_seed,
        )
        return self.sampler

    def _tokenize_prompts(self, prompts: list[list[dict[str, str]]]) -> tuple[Any, None, Any]:
        """Tokenize as in supervised training; TRL's own tokenization differs."""
        messages = [[Message(turn["role"], turn["content"]) for turn in one] for one in prompts]
        return [tokenize_prompt(one, self._tokenizer) for one in messages], None, {}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.rows = sorted({one["row"] for one in inputs})
        scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
        tokens = scored["prompt_mask"].sum() + scored["completion_mask"].sum()
        self.tokens += int(self.accelerator.reduce(tokens, "sum"))
        return scored


def _prompt_record(row: int, unit: Unit) -> dict[str, Any]:
    *turns, reference = unit.row.messages
    prompt = [{"role": turn.role, "content": turn.content} for turn in turns]
    return {"row": row, "prompt": prompt, "reference": reference.content}
