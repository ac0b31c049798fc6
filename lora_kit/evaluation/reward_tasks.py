"""Multiple-choice tasks for a reward model: each choice is an answer to the prompt."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from lora_kit.backbone.heads import REWARD, HeadOutputs
from lora_kit.data.reward_inputs import encode_reward_inputs
from lora_kit.data.rows import Message, Row
from lora_kit.evaluation.grading import grade_reward
from lora_kit.evaluation.head_tasks import SupportedTasks
from lora_kit.evaluation.item import Item, Task
from lora_kit.evaluation.questions import Question
from lora_kit.evaluation.requests import RewardRequest
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_items import fill_template
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.tasks import select_rows
from lora_kit.runtime.console import say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REWARD_MODEL_TASKS = SupportedTasks(
    head="a reward model",
    kinds=("multiple_choice",),
    example="docstring-pairs",
    scores=(None, "accuracy", "loss"),
    no_score="a reward belongs to the complete answer, whatever its length",
)


def build_reward_task(
    suite: Suite, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, _: HeadOutputs = REWARD
) -> Task:
    """Read, select and tokenize a task's items in the same way as training rows.

    Args:
        suite: suite of the task.
        spec: multiple-choice task.
        tokenizer: tokenizer of the backbone.

    Raises:
        EvaluationError: if a reward model does not support the task.
        DataError: if the source is invalid, or an item does not fit the chat template.
    """
    REWARD_MODEL_TASKS.require(suite, spec)
    if not spec.chat:
        say(
            f"{suite.name}/{spec.name}: prompts use the chat template, as in reward training; set "
            "`chat: true` to say so"
        )
    rows: list[Question] = select_rows(spec, suite.seed)[0]
    prompts = [fill_template(row, spec) for row in rows]
    answered = [
        Row(row.id, row.cluster, (Message("user", prompt), Message("assistant", choice)))
        for row, prompt in zip(rows, prompts, strict=True)
        for choice in row.choices
    ]
    encoded = encode_reward_inputs(answered, tokenizer, spec.max_length)
    truncated = sum(example.truncated for example in encoded)
    if truncated:
        say(
            f"{suite.name}/{spec.name}: {truncated} of {len(encoded)} answers are truncated to "
            f"max_length {spec.max_length}; raise it if the backbone supports more"
        )
    input_ids = iter(example.input_ids for example in encoded)
    items = [
        Item(
            id=row.id,
            cluster=row.cluster,
            prompt=prompt,
            reference=row.choices[row.answer],
            request=RewardRequest(tuple(next(input_ids) for _ in row.choices)),
            slices=row.slices,
            choices=row.choices,
            answer=row.answer,
        )
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    unused = Counter(name for row in rows for name in row.unused)
    return Task(spec, items, partial(grade_reward, score=spec.score or "accuracy"), unused)
