"""Too little memory on purpose: what a user is told, and what is scored all the same.

On a GPU the allocator is limited to little more than what the model takes. For a tiny model, and on
a CPU, where nothing would end but the process, passes of many tokens raise the error instead.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from tests.gpu.answering import evaluate, evaluating
from tests.gpu.material import Setting, device
from tests.gpu.runner import Case, Figures
from tests.gpu.speed import Bases, adapted, recipe, train
from tests.gpu.variants import Variant

# Bytes beyond the model's, too few for a pack without gradient checkpointing.
ROOM = 2 * 2**30
# Share of what the evaluation needs that it gets: too little for all of a batch, enough for half.
SHARE = 0.7
# Tokens of a pass, padding included, that are taken to be too many.
MOST_TOKENS = 300
TASK = {
    "name": "drill",
    "kind": "loss",
    "source": "python-reference",
    "limit": 16,
    "max_length": 128,
    "margin": 0.5,
}


def cases(setting: Setting, bases: Bases) -> Sequence[Case]:
    """Return the two drills."""
    return [
        Case("training", partial(training, setting, bases)),
        Case("evaluation", partial(evaluation, setting, bases)),
    ]


@contextmanager
def _little_memory(setting: Setting, model: Any, room: int, most_tokens: int) -> Iterator[None]:
    """Let passes fail for want of memory.

    Args:
        setting: sizes of the look.
        model: model of the passes.
        room: bytes beyond those that are allocated, on a GPU.
        most_tokens: tokens of a pass that are possible where the error is raised instead.
    """
    if device().type == "cuda" and not setting.is_tiny:
        gc.collect()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        limit = torch.cuda.memory_reserved() + room
        torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0))
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()
        return

    def refuse(_module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        ids = options["input_ids"] if "input_ids" in options else inputs[0]
        if ids.numel() > most_tokens:
            raise torch.OutOfMemoryError(f"drill: {ids.numel()} tokens")

    handle = model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def training(setting: Setting, bases: Bases) -> Figures:
    """Train a step that does not fit, see the error, and train one that fits."""
    from lora_kit.runtime.errors import TrainingError

    variant = Variant("drill")
    chosen = recipe(setting, variant)
    with adapted(setting, bases, variant, chosen) as (backbone, model):
        with _little_memory(setting, model, ROOM, setting.length - 1):
            try:
                train(setting, chosen, backbone, model, 1)
            except TrainingError as error:
                said = str(error)
            else:
                raise AssertionError("the step fits: the drill has too much memory")
        if not said.startswith("training.micro_batch_size: step 1 does not fit into memory"):
            raise AssertionError(f"another error than expected: {said}")
        result = train(setting, chosen, backbone, model, 1)
    return {"said": said, "loss_afterwards": result.final_loss}


def evaluation(setting: Setting, bases: Bases) -> Figures:
    """Evaluate with enough memory and with too little, and compare the scores."""
    with evaluating(setting, bases, "none") as (backbone, model):
        whole, room = _evaluated(backbone, model)
        with _little_memory(setting, model, room, MOST_TOKENS), _counting() as said:
            halved, _ = evaluate(backbone, model, TASK)
    if not any("retrying with" in line for line in said):
        raise AssertionError("no batch was halved: the drill has too much memory")
    expected = {(entry.arm, entry.item): entry.score for entry in whole}
    found = {(entry.arm, entry.item): entry.score for entry in halved}
    differences = [abs(found[key] - expected[key]) for key in expected]
    return {
        "halved": sum("retrying with" in line for line in said),
        "items": len(expected),
        "same_items": expected.keys() == found.keys(),
        "equal": sum(difference == 0 for difference in differences),
        "largest_difference": max(differences),
    }


def _evaluated(backbone: Any, model: Any) -> tuple[list[Any], int]:
    """Return entries, and the bytes with which the same evaluation does not fit."""
    if device().type == "cpu":
        return evaluate(backbone, model, TASK)[0], 0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    entries, _ = evaluate(backbone, model, TASK)
    return entries, int(SHARE * (torch.cuda.max_memory_allocated() - before))


@contextmanager
def _counting() -> Iterator[list[str]]:
    """Yield the list of what the engine says."""
    from lora_kit.evaluation.engine import arm_task

    said: list[str] = []
    before = arm_task.say

    def say(text: str) -> None:
        said.append(text)
        before(text)

    arm_task.say = say
    try:
        yield said
    finally:
        arm_task.say = before
