"""TRL's GRPOTrainer, on our prompts, with our order, checkpoints and log probabilities."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from torch.utils.data import Sampler
from trl import GRPOTrainer

from lora_kit.data.rows import Message
from lora_kit.data.tokenization import tokenize_prompt
from lora_kit.data.units import Unit
from lora_kit.training.checkpointed_trainer import IDLE_STEPS
from lora_kit.training.preferences.borrowing import BorrowingTrainer
from lora_kit.training.preferences.scored_forward import score_answers_alone

if TYPE_CHECKING:
    from peft import PeftModel


class Prompts(Sampler[int]):
    """Prompts of whole steps, each as often as it is answered, in a random order of each epoch.

    TRL's leaves out what does not fill a step, and in an epoch that is gone on with has the order
    of the first one. Here an epoch's last step is filled up from its beginning.
    """

    def __init__(self, size: int, prompts: int, answers: int, passes: int, seed: int):
        """Plan.

        Args:
            size: prompts there are.
            prompts: of a step.
            answers: to each.
            passes: forward passes of a step, for each of which TRL asks for the step's prompts.
            seed: of the order.
        """
        self.size = size
        self.prompts = prompts
        self.answers = answers
        self.passes = passes
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the training at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.size // self.prompts) * self.prompts * self.answers * self.passes

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.size))
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        for start in range(0, self.size, self.prompts):
            step = [order[(start + n) % self.size] for n in range(self.prompts)]
            yield from [row for row in step for _ in range(self.answers)] * self.passes


class RewardTrainer(BorrowingTrainer, GRPOTrainer):
    """Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300)."""

    figures = (
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
        """Take adapter and prompts as they are.

        Args:
            args: of GRPOTrainer.
            model: with its adapter attached.
            units: whose prompts are answered; their last turn is the reference.
            ends: tokens that end an answer.
            save_total_limit: how many are left standing.
            kwargs: of GRPOTrainer.
        """
        prompts = Dataset.from_list([_asked(row, unit) for row, unit in enumerate(units)])
        with self.borrowing(model):
            super().__init__(*args, model=model, train_dataset=prompts, **kwargs)
        score_answers_alone(model, self.temperature)
        self.eos_token_ids = list(ends)
        self.generation_kwargs["eos_token_id"] = list(ends)
        self.generation_config.eos_token_id = list(ends)
        self.lengths = [unit.length for unit in units]
        self.save_total_limit = save_total_limit

    def _get_train_sampler(self, dataset: Any = None) -> Prompts:
        prompts = self.args.generation_batch_size // self.num_generations
        self.sampler = Prompts(
            len(dataset if dataset is not None else self.train_dataset),
            prompts,
            self.num_generations,
            self.args.steps_per_generation,
            self.args.data_seed,
        )
        return self.sampler

    def _tokenize_prompts(self, prompts: list[list[dict[str, str]]]) -> tuple[Any, None, Any]:
        """As everywhere here; TRL's way is another one."""
        several = [[Message(turn["role"], turn["content"]) for turn in one] for one in prompts]
        return [tokenize_prompt(one, self._tokenizer) for one in several], None, {}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.rows = sorted({one["row"] for one in inputs})
        found: dict[str, Any] = super()._generate_and_score_completions(inputs)
        self.tokens += int(found["prompt_mask"].sum() + found["completion_mask"].sum())
        return found


def _asked(row: int, unit: Unit) -> dict[str, Any]:
    *asked, reference = unit.row.messages
    prompt = [{"role": turn.role, "content": turn.content} for turn in asked]
    return {"row": row, "prompt": prompt, "reference": reference.content}
