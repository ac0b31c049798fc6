"""Suites on arms: the same items in the same batches for each arm, into the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from lora_kit.adapters import switched_off
from lora_kit.backbone import Backbone
from lora_kit.console import Meter, meter
from lora_kit.data.tokenization import end_of_turn
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.metrics import load_metric
from lora_kit.evaluation.scoring import (
    Score,
    Scorer,
    in_one_row,
    score_choices,
    score_generations,
    score_losses,
    way_to_score,
)
from lora_kit.evaluation.suite import Suite, TaskSpec
from lora_kit.evaluation.tasks import ChoiceItem, Item, Task, build_task
from lora_kit.processes import process_state

# Tokens in a batch, padding included; about the smallest that keeps two cores or a GPU busy. A step
# of generation takes one token of each item, so it wants more items.
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
GENERATION_BATCH_TOKENS = {"cpu": 8192, "cuda": 32768}
MOST_ITEMS = 64
# Items on which the fast way to score choices is compared with the slow one.
PROBES = 4

Arm = Callable[[Any], AbstractContextManager[Any]]
ARMS: dict[str, Arm] = {"base": switched_off, "adapter": nullcontext}

ScoreBatch = Callable[[Scorer, Sequence[Any]], list[Score]]


@dataclass(frozen=True)
class Work:
    """A task with its batches and what scores one of them."""

    suite: Suite
    task: Task
    batches: tuple[tuple[Item, ...], ...]
    score: ScoreBatch


def evaluate_arms(
    backbone: Backbone, model: Any, suites: Sequence[Suite], arms: Sequence[str]
) -> list[Entry]:
    """Evaluate every arm on every item of the suites.

    Under several processes each takes every n-th batch; all get the whole result. The batches do
    not depend on the number of processes, nor on the arm, so that a difference is the adapter's.

    Args:
        backbone: loaded, for its tokenizer.
        model: the backbone with the adapter attached.
        suites: what to evaluate.
        arms: names in `ARMS`.

    Returns:
        Entries in the order of suites, tasks, arms and items.
    """
    state = process_state()
    scorer = Scorer(model, backbone.tokenizer, stop_token_ids(backbone))
    work = plan_work(suites, backbone)
    total = sum(len(batch) for w in work for batch in _share(w, state)) * len(arms)
    was_training = model.training
    model.eval()
    entries: list[Entry] = []
    try:
        with meter("evaluating", total, visible=state.is_main_process) as progress:
            for one in map(partial(_safe_choices, scorer), work):
                for arm in arms:
                    with ARMS[arm](model), torch.inference_mode():
                        entries += _evaluate(one, arm, scorer, state, progress)
    finally:
        model.train(was_training)
    if state.num_processes > 1:
        entries = gather_object(entries)
    order = {(w.suite.name, w.task.spec.name): n for n, w in enumerate(work)}
    return sorted(entries, key=lambda e: (order[e.suite, e.task], arms.index(e.arm), e.item))


def _evaluate(
    work: Work, arm: str, scorer: Scorer, state: PartialState, progress: Meter
) -> Iterator[Entry]:
    for batch in _share(work, state):
        started = time.monotonic()
        scores = work.score(scorer, batch)
        seconds = (time.monotonic() - started) / len(batch)
        progress.advance(len(batch), f"{work.task.spec.name}, {arm}")
        for item, score in zip(batch, scores, strict=True):
            yield Entry(
                arm=arm,
                suite=work.suite.name,
                task=work.task.spec.name,
                item=item.id,
                cluster=item.cluster,
                score=score.score,
                output=score.output,
                prompt=item.prompt,
                reference=item.reference,
                tokens=score.tokens,
                seconds=seconds,
            )


def plan_work(suites: Sequence[Suite], backbone: Backbone) -> list[Work]:
    """Read all items, load all metrics and lay out all batches, before anything is computed.

    Raises:
        LoraKitError: of the first source, item or metric that is wrong.
    """
    device = process_state().device
    return [
        _plan(suite, build_task(task, backbone.tokenizer, suite.seed), device)
        for suite in suites
        for task in suite.tasks
    ]


@torch.inference_mode()
def _safe_choices(scorer: Scorer, work: Work) -> Work:
    """The work, with its choices in rows of their own where the model needs that."""
    if work.task.spec.kind != "multiple_choice":
        return work
    probes = cast(Sequence[ChoiceItem], work.task.items[:PROBES])
    way = way_to_score(scorer, probes)
    return replace(work, score=partial(score_choices, log_likelihoods=way))


def _share(work: Work, state: PartialState) -> tuple[tuple[Item, ...], ...]:
    """The batches of this process."""
    return work.batches[state.process_index :: state.num_processes]


def _plan(suite: Suite, task: Task, device: torch.device) -> Work:
    spec = task.spec
    tokens = BATCH_TOKENS
    score: ScoreBatch
    if spec.kind == "loss":
        score = score_losses
    elif spec.kind == "multiple_choice":
        score = partial(score_choices, log_likelihoods=in_one_row)
    else:
        tokens = GENERATION_BATCH_TOKENS
        metric = load_metric(spec.metric) if spec.metric else None
        score = partial(score_generations, spec=spec, metric=metric)
    budget = tokens.get(device.type, tokens["cpu"])
    return Work(suite, task, by_length(task.items, partial(_length, spec), budget), score)


def _length(spec: TaskSpec, item: Any) -> int:
    """Tokens of an item's row in a batch."""
    if spec.kind == "loss":
        return len(item.example.input_ids)
    if spec.kind == "multiple_choice":
        return len(item.prompt_ids) + sum(map(len, item.choice_ids))
    return len(item.prompt_ids) + spec.max_new_tokens


def by_length(
    items: Sequence[Any], length: Callable[[Any], int], budget: int
) -> tuple[tuple[Any, ...], ...]:
    """Batches of items of about the same length, the longest first, within a budget of tokens.

    The longest come first so that a batch that does not fit fails at once, not at the end.
    """
    batches: list[list[Any]] = []
    room = 0
    for item in sorted(items, key=lambda item: (-length(item), item.id)):
        if batches and len(batches[-1]) < min(room, MOST_ITEMS):
            batches[-1].append(item)
        else:
            batches.append([item])
            room = max(budget // length(item), 1)
    return tuple(tuple(batch) for batch in batches)


def stop_token_ids(backbone: Backbone) -> tuple[int, ...]:
    """All tokens on which generation ends: the configuration's, and the template's end of turn.

    Where the two differ, a model that learned to end its turn would be made to go on.
    """
    configured = backbone.model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured]) - {None}
    return tuple(sorted(ids | {end_of_turn(backbone.tokenizer)}))
