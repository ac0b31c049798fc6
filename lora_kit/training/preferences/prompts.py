"""Prompts of objectives that train on generated answers: their order, and the teacher's prompts."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from torch.utils.data import Sampler

from lora_kit.data.rows import Row
from lora_kit.data.templates import control_tokens, refuse_control_tokens
from lora_kit.data.tokenization import tokenize_prompt
from lora_kit.recipe.objective import DEMONSTRATION, PROMPT, SdftSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARTS = re.compile(f"{re.escape(PROMPT)}|{re.escape(DEMONSTRATION)}")


class PromptSampler(Sampler[int]):
    """Sampler of prompts in full steps, shuffled anew each epoch, each repeated per answer.

    TRL's sampler drops prompts that do not fill a step, and after resuming repeats the order of the
    first epoch. This sampler fills an epoch's last step with prompts from the epoch's beginning.
    """

    def __init__(self, size: int, prompts: int, answers: int, passes: int, seed: int):
        """Store the sizes of a step.

        Args:
            size: number of prompts in the data set.
            prompts: prompts per optimizer step, over all processes.
            answers: answers sampled per prompt.
            passes: forward passes per step; TRL draws the step's prompts once per pass.
            seed: seed of the order.
        """
        self.size = size
        self.prompts = prompts
        self.answers = answers
        self.passes = passes
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Select the order of an epoch; the training loop calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.size // self.prompts) * self.prompts * self.answers * self.passes

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.size))
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        for start in range(0, self.size, self.prompts):
            step = [order[(start + n) % self.size] for n in range(self.prompts)]
            yield from [row for row in step for _ in range(self.answers)] * self.passes


def student_prompt(row: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of the turns before a row's completion, as in supervised training.

    Raises:
        DataError: if the chat template does not support the turns.
    """
    return tokenize_prompt(row.messages[:-1], tokenizer)


def teacher_prompt(row: Row, spec: SdftSpec, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of the same turns, with the completion in the last one.

    Args:
        row: a row whose prompt ends with a turn of the user.
        spec: the recipe's `sdft` section.
        tokenizer: tokenizer of the backbone.

    Raises:
        DataError: if the chat template does not support the turns, or `teacher_prompt` writes a
            control token.
    """
    *earlier, asked, completion = row.messages
    parts = {PROMPT: asked.content, DEMONSTRATION: completion.content}
    # In one pass: a prompt may hold the name of the other part.
    text = PARTS.sub(lambda found: parts[found[0]], spec.teacher_prompt)
    turns = (*earlier, replace(asked, content=text))
    origin = f"sdft.teacher_prompt: {row.origin}"
    refuse_control_tokens(Row(origin, "", turns), control_tokens(tokenizer))
    return tokenize_prompt(turns, tokenizer)
