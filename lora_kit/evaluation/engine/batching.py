"""Division of a task's items: into looks, and of each look into batches of similar lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lora_kit.evaluation.engine.prefix import shared_prefix
from lora_kit.evaluation.item import Task
from lora_kit.evaluation.requests import GenerationRequest, LossRequest, Request, SampledRequest
from lora_kit.evaluation.stopping import Stopping, look_of_place
from lora_kit.evaluation.suite import Suite
from lora_kit.runtime.processes import process_state
from lora_kit.statistics.looks import ordered_clusters

# Tokens in a batch, padding included: about the smallest number that keeps two cores or a GPU busy.
# Larger batches hold more padding (measured on 180 items of six kinds: 12% at 512 tokens, 45% at
# 2048). Generation processes one token per item and step, so its batches hold more items.
BATCH_TOKENS = {"cpu": 512, "cuda": 16384}
GENERATION_BATCH_TOKENS = {"cpu": 8192, "cuda": 32768}
# Maximum bytes of a batch's logits in float32; a loss task has logits of the whole vocabulary at
# every position.
LOGIT_BYTES = {"cpu": 5e8, "cuda": 2e9}
MAX_BATCH_ITEMS = 64
# Tokens of the shared prefix over all items of a batch: a copy of its keys and values belongs to
# each item. 32,768 tokens of an 8B model with 8 key-value heads are 4.3 GB in bfloat16; 16,384 of
# one of 135M are 0.8 GB in float32.
PREFIX_TOKENS = {"cpu": 16384, "cuda": 32768}


def items_by_look(suite: Suite, task: Task, stopping: Stopping) -> list[list[int]]:
    """Return the indexes of the items that each look asks, by the drawn order of clusters."""
    clusters = [item.cluster for item in task.items]
    order = ordered_clusters(clusters, suite.seed, f"{suite.name}/{task.spec.name}")
    looks = stopping.plan(len(order), suite, task.spec)
    place = {cluster: n for n, cluster in enumerate(order)}
    items: list[list[int]] = [[] for _ in range(len(looks))]
    for n, cluster in enumerate(clusters):
        items[look_of_place(place[cluster], looks) - 1].append(n)
    return items


def plan_batches(task: Task, vocabulary: int, asked: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return item indexes in batches of similar lengths.

    Generation requests share a batch only if their stop texts and maximum lengths are equal.

    Args:
        task: task with all of its items.
        vocabulary: number of tokens that logits are computed for.
        asked: indexes of the items to divide into batches.
    """
    requests = [item.request for item in task.items]
    skipped = len(shared_prefix(requests))
    device = process_state().device.type
    first = requests[0]
    table = GENERATION_BATCH_TOKENS if isinstance(first, GenerationRequest) else BATCH_TOKENS
    budget = table.get(device, table["cpu"])
    if isinstance(first, LossRequest):
        logits = LOGIT_BYTES.get(device, LOGIT_BYTES["cpu"])
        budget = min(budget, int(logits / (4 * vocabulary)))
    by_limits: dict[tuple[object, ...], list[int]] = {}
    for n in asked:
        request = requests[n]
        limits: tuple[object, ...] = ()
        if isinstance(request, GenerationRequest):
            limits = (request.stop, request.max_new_tokens)
        by_limits.setdefault(limits, []).append(n)
    return tuple(
        batch
        for items in by_limits.values()
        for batch in batches_by_length(
            sorted(items, key=lambda n: (-requests[n].length, task.items[n].id)),
            lambda n: rows_of(requests[n]) * (requests[n].length - skipped),
            budget,
            PREFIX_TOKENS.get(device, PREFIX_TOKENS["cpu"]) // max(skipped, 1),
        )
    )


def rows_of(request: Request) -> int:
    """Return the number of rows that a request has in a batch, one for each sample."""
    return request.sampling.samples if isinstance(request, SampledRequest) else 1


def batches_by_length(
    ordered: Sequence[int],
    length: Callable[[int], int],
    budget: int,
    most: int = MAX_BATCH_ITEMS,
) -> tuple[tuple[int, ...], ...]:
    """Divide items, longest first, into batches within a budget of tokens.

    The longest batch comes first, so that a lack of memory shows at once and not at the end.

    Args:
        ordered: item indexes, longest first.
        length: function from an item index to its tokens.
        budget: maximum tokens per batch, padding included; an item above it is a batch of its own.
        most: maximum items per batch, at least 1; never more than `MAX_BATCH_ITEMS`.
    """
    batches: list[list[int]] = []
    capacity = 0
    for item in ordered:
        if batches and len(batches[-1]) < min(capacity, most, MAX_BATCH_ITEMS):
            batches[-1].append(item)
        else:
            batches.append([item])
            capacity = max(budget // max(length(item), 1), 1)
    return tuple(tuple(batch) for batch in batches)
