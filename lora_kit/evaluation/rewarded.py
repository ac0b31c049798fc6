"""Multiple choice as a reward model is asked it: each choice as the answer to the prompt."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lora_kit.data.answered import encode_answered
from lora_kit.data.rows import Message, Row
from lora_kit.evaluation.grading import grade_reward
from lora_kit.evaluation.headed import Askable
from lora_kit.evaluation.item import Item, RewardRequest, Task
from lora_kit.evaluation.reading import Question
from lora_kit.evaluation.suite import Suite, TaskSpec
from lora_kit.evaluation.tasks import chosen_rows, filled
from lora_kit.runtime.console import say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASKABLE = Askable(
    "a reward model",
    "multiple_choice",
    "compares answers, which are the choices of the kind multiple_choice; name a suite of such "
    "tasks, such as docstring-pairs",
    (None, "accuracy", "loss"),
    "a reward is that of the whole answer, whatever its length",
)


def build_reward_task(suite: Suite, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase) -> Task:
    """Read, choose and tokenize a task's items, as rows of the training are.

    Args:
        suite: of the task.
        spec: the task.
        tokenizer: of the backbone.

    Raises:
        EvaluationError: if a reward model cannot be asked this.
        DataError: if the source does not fit, or an item cannot be asked as a turn of the user.
    """
    ASKABLE.require(suite, spec)
    if not spec.chat:
        say(f"{suite.name}/{spec.name}: asked as a turn of the user, as in the training of rewards")
    rows: list[Question] = chosen_rows(spec, suite.seed)[0]
    prompts = [filled(row, spec) for row in rows]
    answered = [
        Row(row.id, row.cluster, (Message("user", prompt), Message("assistant", choice)))
        for row, prompt in zip(rows, prompts, strict=True)
        for choice in row.choices
    ]
    encoded = encode_answered(answered, tokenizer, spec.max_length)
    cut = sum(example.truncated for example in encoded)
    if cut:
        say(f"{suite.name}/{spec.name}: {cut} of {len(encoded)} answers are cut at their length")
    found = iter(example.input_ids for example in encoded)
    items = [
        Item(
            id=row.id,
            cluster=row.cluster,
            prompt=prompt,
            reference=row.choices[row.answer],
            request=RewardRequest(tuple(next(found) for _ in row.choices)),
            slices=row.slices,
            choices=row.choices,
            answer=row.answer,
        )
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    return Task(spec, items, partial(grade_reward, score=spec.score or "accuracy"))
