"""What is to be measured: tasks with their batches, laid out before anything is computed."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lora_kit.backbone.encoder_decoder import is_divided
from lora_kit.backbone.load import Backbone
from lora_kit.backbone.positions import Positions
from lora_kit.data.rows import Row
from lora_kit.evaluation.classes import build_class_task
from lora_kit.evaluation.engine.kept import setting
from lora_kit.evaluation.engine.prefix import shared_prefix
from lora_kit.evaluation.grading import GRADING, grading_code
from lora_kit.evaluation.item import GenerationRequest, LossRequest, Task, tokens_of
from lora_kit.evaluation.rewarded import build_reward_task
from lora_kit.evaluation.suite import Suite, TaskSpec
from lora_kit.evaluation.tasks import Shot, build_task, content, shot_of
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import DataError, EvaluationError
from lora_kit.runtime.hashes import json_sha256
from lora_kit.runtime.processes import process_state

FEWSHOT = "fewshot"
# Tokens in a batch, padding included; about the smallest that keeps two cores or a GPU busy: a
# larger one holds more padding (of 180 items of six kinds 12% at 512 tokens, 45% at 2048). A step
# of generation takes one token of each item, so it wants more items.
BATCH_TOKENS = {"cpu": 512, "cuda": 16384}
GENERATION_BATCH_TOKENS = {"cpu": 8192, "cuda": 32768}
# Logits of a batch at most, bytes in float32: of prose, every position has a vocabulary of them.
LOGIT_BYTES = {"cpu": 5e8, "cuda": 2e9}
MOST_ITEMS = 64


@dataclass(frozen=True)
class Work:
    """A task with its batches.

    Attributes:
        batches: indexes of the items, the same for every arm.
        digest: of the task's items.
        variants: the same items asked otherwise, for arms that want them so, with their digest.
        has_encoder: whether a prompt is read whole, or not at all.
    """

    suite: Suite
    task: Task
    batches: tuple[tuple[int, ...], ...]
    digest: str
    variants: Mapping[str, tuple[Task, str]] = field(default_factory=dict)
    has_encoder: bool = False

    @property
    def name(self) -> str:
        """Of the suite and the task."""
        return f"{self.suite.name}/{self.task.spec.name}"

    def asked(self, arm: str) -> Task:
        """The task as an arm is asked it."""
        return self.variants[arm][0] if arm in self.variants else self.task

    def key(self, arm: str, identity: str) -> str:
        """Digest of all that an arm's results on this task depend on."""
        items = self.variants[arm][1] if arm in self.variants else self.digest
        spec = self.task.spec.model_dump(mode="json")
        where = [setting(process_state().device), self.batches]
        graded = [GRADING, grading_code(self.task.spec)]
        return json_sha256([arm, identity, self.suite.name, spec, items, where, graded])


def plan_work(
    suites: Sequence[Suite],
    backbone: Backbone,
    shots: int = 0,
    training: Sequence[Row] = (),
) -> list[Work]:
    """Read all items, load all metrics and lay out all batches, before anything is computed.

    Args:
        suites: what to evaluate.
        backbone: for its tokenizer and vocabulary.
        shots: examples that the `fewshot` arm is shown; 0 where there is no such arm.
        training: rows that they are taken from, by default a task's own items.

    Raises:
        LoraKitError: of the first source, item or metric that is wrong.
    """
    return [
        _plan(suite, spec, backbone, shots, training) for suite in suites for spec in suite.tasks
    ]


def suites_of(work: Sequence[Work]) -> list[Suite]:
    """Return the suites that work is of, in order, each once."""
    return list({one.suite.name: one.suite for one in work}.values())


def _plan(
    suite: Suite, spec: TaskSpec, backbone: Backbone, shots: int, training: Sequence[Row]
) -> Work:
    if backbone.head is not None:
        if backbone.head.is_reward:
            task = build_reward_task(suite, spec, backbone.tokenizer)
        else:
            task = build_class_task(suite, spec, backbone.tokenizer, backbone.head.classes)
        return _laid_out(suite, task, backbone, {})
    task = build_task(spec, backbone.tokenizer, suite.seed)
    _require_places(task, backbone)
    variants = {}
    if shots and suite.role == "gain":
        asked = _with_shots(suite, spec, backbone, shots, training)
        if asked is not None and [i.id for i in asked.items] == [i.id for i in task.items]:
            variants[FEWSHOT] = asked, json_sha256(content(asked))
    return _laid_out(suite, task, backbone, variants)


def _require_places(task: Task, backbone: Backbone) -> None:
    """Raises EvaluationError for an item that is longer than the backbone has positions for."""
    positions = Positions.of(backbone.model)
    for item in task.items:
        if lacking := positions.lacking(*tokens_of(item.request)):
            raise EvaluationError(
                f"{task.spec.name}: {item.id} {lacking} in {backbone.files.reference}; lower the "
                "task's shots, max_length or max_new_tokens"
            )


def part_of(work: Work, ids: Collection[str], backbone: Backbone) -> Work:
    """Some of a task's items in batches of their own, asked by no arm otherwise.

    Args:
        work: the whole.
        ids: of the items that are kept, in the order of the whole.
        backbone: for its vocabulary.
    """
    items = [item for item in work.task.items if item.id in ids]
    return _laid_out(work.suite, replace(work.task, items=items), backbone, {})


def _laid_out(
    suite: Suite, task: Task, backbone: Backbone, variants: Mapping[str, tuple[Task, str]]
) -> Work:
    vocabulary = backbone.model.config.get_text_config().vocab_size
    # By the task itself, so that an arm that is added does not move the others' batches.
    return Work(
        suite,
        task,
        _batches(task, vocabulary),
        json_sha256(content(task)),
        variants,
        is_divided(backbone.model),
    )


def _with_shots(
    suite: Suite, spec: TaskSpec, backbone: Backbone, shots: int, training: Sequence[Row]
) -> Task | None:
    """The task with solved examples before each item; `None` where none can be shown."""
    place = f"{suite.name}/{spec.name}: not asked with examples"
    try:
        if spec.kind == "lm_eval" or not training:
            if spec.limit is None:
                say(f"{place}: without a limit, they would be items that the other arms are asked")
                return None
            own = spec.model_copy(update={"shots": shots})
            task = build_task(own, backbone.tokenizer, suite.seed)
        else:
            task = _with_training_rows(suite, spec, backbone, shots, training)
        _require_places(task, backbone)
        return task
    except (DataError, EvaluationError) as error:
        say(f"{place}: {error}")
        return None


def _with_training_rows(
    suite: Suite, spec: TaskSpec, backbone: Backbone, shots: int, training: Sequence[Row]
) -> Task:
    solved: list[Shot] = [shot for shot in map(shot_of, training) if shot is not None]
    if not solved:
        raise DataError("the training rows are texts without prompts")
    chosen = random.Random(f"{suite.seed}/{spec.name}/shots").sample(
        range(len(solved)), min(shots, len(solved))
    )
    return build_task(spec, backbone.tokenizer, suite.seed, [solved[n] for n in chosen])


def _batches(task: Task, vocabulary: int) -> tuple[tuple[int, ...], ...]:
    """Indexes of the items in batches of about the same length.

    Requests that end otherwise, by other texts or after other lengths, are in other batches.
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
    alike: dict[tuple[object, ...], list[int]] = {}
    for n, request in enumerate(requests):
        ends: tuple[object, ...] = ()
        if isinstance(request, GenerationRequest):
            ends = (request.stop, request.max_new_tokens)
        alike.setdefault(ends, []).append(n)
    return tuple(
        batch
        for items in alike.values()
        for batch in by_length(
            sorted(items, key=lambda n: (-requests[n].length, task.items[n].id)),
            lambda n: requests[n].length - skipped,
            budget,
        )
    )


def by_length(
    ordered: Sequence[int], length: Callable[[int], int], budget: int
) -> tuple[tuple[int, ...], ...]:
    """Batches within a budget of tokens, of items that come the longest first.

    So that a batch that does not fit fails at once, not at the end.
    """
    batches: list[list[int]] = []
    room = 0
    for item in ordered:
        if batches and len(batches[-1]) < min(room, MOST_ITEMS):
            batches[-1].append(item)
        else:
            batches.append([item])
            room = max(budget // max(length(item), 1), 1)
    return tuple(tuple(batch) for batch in batches)
