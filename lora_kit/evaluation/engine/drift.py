"""Prompts of a suite that drift is measured on."""

from __future__ import annotations

from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.item import Item
from lora_kit.evaluation.requests import prompt_and_answer_length
from lora_kit.modeling.drift import PROMPT_TOKENS

MAX_PROMPTS = 16
"""Maximum number of prompts per suite, spread over its tasks: drift is an alarm, not a verdict."""
MIN_PROMPTS = 3
"""Minimum number of prompts per task, unless the task has fewer items."""
BATCH = 8
"""Prompts in a batch."""


def drift_items(work: Work) -> list[Item]:
    """Return the items whose prompts drift is measured on, spread evenly over the first look's."""
    count = max(MAX_PROMPTS // len(work.suite.tasks), MIN_PROMPTS)
    asked = [item for item in work.task.items if work.look_of(item.id) == 1]
    step = max(len(asked) // count, 1)
    return asked[::step][:count]


def drift_batches(work: Work) -> list[tuple[Item, ...]]:
    """Return the batches of `drift_items`, the same for any number of processes."""
    items = drift_items(work)
    return [tuple(items[n : n + BATCH]) for n in range(0, len(items), BATCH)]


def drift_prompt(work: Work, item: Item) -> tuple[int, ...]:
    """Return the tokens of an item that drift is measured on.

    These are the tokens of a loss example, or of the prompt otherwise: all of them for an
    encoder-decoder, the last `PROMPT_TOKENS` for a decoder.
    """
    ids, _ = prompt_and_answer_length(item.request)
    return ids if work.has_encoder else ids[-PROMPT_TOKENS:]
