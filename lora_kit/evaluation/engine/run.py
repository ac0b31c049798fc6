"""Work on arms: the same items in the same batches for each arm of a model, batch by batch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_kit.evaluation.engine import drift
from lora_kit.evaluation.engine.arm import Arm, EvaluationContext, LoadedArms
from lora_kit.evaluation.engine.kept import OutcomeCache
from lora_kit.evaluation.engine.prefix import Prefix, encode, shared_prefix
from lora_kit.evaluation.engine.probe import find_way, within_window
from lora_kit.evaluation.engine.progress import Progress, progress_of_all
from lora_kit.evaluation.engine.scoring import BatchLayout, Scorer, outcomes
from lora_kit.evaluation.engine.sharing import Share, shares
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.item import Item, Outcome, Request, Task
from lora_kit.evaluation.ledger import DRIFT, Entry
from lora_kit.modeling.modes import eval_mode
from lora_kit.runtime.console import meter, say
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.out_of_memory import lacks_memory
from lora_kit.runtime.processes import process_state


def evaluate_models(
    models: Sequence[LoadedArms], work: Sequence[Work], bench: EvaluationContext
) -> None:
    """Evaluate the arms of all models, one model after the other; the journals hold the results.

    Under several processes each takes its share of the batches. The batches do not depend on the
    number of processes, nor on the arm, so that a difference is the adapter's.
    """
    state = process_state()
    plan = [shares(work, loaded, bench, state.num_processes) for loaded in models]
    total = sum(share.items for of_model in plan for part in of_model for share in part)
    ways: Ways = {}
    with (
        meter("evaluating", total, visible=state.is_main_process) as shown,
        progress_of_all(shown) as progress,
    ):
        for loaded, of_model in zip(models, plan, strict=True):
            # By what is left to any process: loading may mean training, which takes all of them.
            if any(share for part in of_model for share in part):
                model = loaded.load()
                own = of_model[state.process_index]
                _evaluate_model(model, loaded, work, own, bench, ways, progress)


@torch.inference_mode()
def _evaluate_model(
    model: Any,
    loaded: LoadedArms,
    work: Sequence[Work],
    own: Sequence[Share],
    bench: EvaluationContext,
    ways: Ways,
    progress: Progress,
) -> None:
    scorer = Scorer(model, bench.tokenizer, bench.stop_token_ids)
    with eval_mode(model):
        for one, share in zip(work, own, strict=True):
            if not share:
                continue
            arms = [arm for arm in loaded.arms if arm.wants(one)]
            asked = [_Asked.prepare(one, arm, scorer, bench, ways) for arm in arms]
            for batch in _evaluate_task(one, share.batches, asked, progress):
                bench.journal.append(batch)
            if loaded.drifting:
                key = one.key(DRIFT, loaded.drifting)
                for batch in _drift(one, share.drift, key, scorer, bench, progress):
                    bench.journal.append(batch)


# Found once for each kind of request, with and without a prefix, for all models alike.
Ways = dict[tuple[type[Request], bool], BatchLayout]


def _evaluate_task(
    work: Work, batches: Sequence[tuple[int, ...]], asked: Sequence[_Asked], progress: Progress
) -> Iterable[list[tuple[str, Entry]]]:
    """Yield the entries of one batch after the other, of all arms."""
    queue = deque(batches)
    while queue:
        batch = queue.popleft()
        items = [work.task.items[n].id for n in batch]
        left = {item for one in asked for item in items if item in one.left}
        batch = tuple(n for n, item in zip(batch, items, strict=True) if item in left)
        if not batch:
            continue
        try:
            yield [record for one in asked for record in one.evaluate(batch, progress)]
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            if len(batch) == 1:
                alone = work.task.items[batch[0]].id
                raise EvaluationError(
                    f"{work.name}: {alone}: not even this item alone fits into memory; lower "
                    "its max_length, or take a smaller dtype or quantization"
                ) from error
            # For every arm alike: a difference must not be the layout's.
            middle = len(batch) // 2
            queue.extendleft([batch[middle:], batch[:middle]])
            say(f"{work.name}: {len(batch)} items do not fit into memory; going on with {middle}")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


@dataclass(frozen=True)
class _Asked:
    """A task as one arm is asked it.

    Attributes:
        left: ids of the items that are not done.
    """

    work: Work
    arm: Arm
    task: Task
    key: str
    left: frozenset[str]
    scorer: Scorer
    way: BatchLayout
    prefix_ids: tuple[int, ...]
    prefix: Prefix | None
    kept: OutcomeCache | None

    @classmethod
    def prepare(
        cls, work: Work, arm: Arm, scorer: Scorer, bench: EvaluationContext, ways: Ways
    ) -> _Asked:
        """Find the way to score, and encode what the items share."""
        task, key = work.asked(arm.name), work.key(arm.name, arm.identity)
        requests = [item.request for item in task.items]
        prefix_ids = shared_prefix(requests)
        known = type(requests[0]), bool(prefix_ids)
        with arm.active(scorer.model):
            if known not in ways:
                ways[known] = find_way(scorer, requests, prefix_ids)
            way = within_window(ways[known], scorer, requests)
            prefix = None
            if prefix_ids and way.prefix:
                prefix = encode(scorer.model, prefix_ids, scorer.device)
        left = frozenset(item.id for item in bench.missing(key, task.items))
        kept = OutcomeCache.of(arm.identity, scorer.device, bench.no_cache) if arm.kept else None
        return cls(work, arm, task, key, left, scorer, way, prefix_ids, prefix, kept)

    def evaluate(self, batch: Sequence[int], progress: Progress) -> list[tuple[str, Entry]]:
        """Entries of a batch's items, with the key of the work."""
        items = [self.task.items[n] for n in batch]
        if not any(item.id in self.left for item in items):
            return []
        started = time.monotonic()
        with self.arm.active(self.scorer.model):
            found = self._outcomes([item.request for item in items])
        seconds = (time.monotonic() - started) / len(items)
        tokens = sum(outcome.tokens for outcome in found)
        progress.advance(len(items), f"{self.task.spec.name}, {self.arm.name}", tokens)
        return [
            (self.key, _entry(self.work, self.arm.name, item, outcome, self.task, seconds))
            for item, outcome in zip(items, found, strict=True)
        ]

    def _outcomes(self, requests: Sequence[Request]) -> list[Outcome]:
        if self.kept is None:
            return outcomes(self.scorer, requests, self.way, self.prefix)
        path = self.kept.path(requests, self.prefix_ids, self.way)
        found = self.kept.read(path)
        if found is None:
            found = outcomes(self.scorer, requests, self.way, self.prefix)
            self.kept.write(path, found)
        return found


def _entry(work: Work, arm: str, item: Item, outcome: Outcome, task: Task, seconds: float) -> Entry:
    graded = task.grade(item, outcome)
    return Entry(
        arm=arm,
        suite=work.suite.name,
        task=task.spec.name,
        item=item.id,
        cluster=item.cluster,
        score=graded.score,
        output=graded.output,
        prompt=item.prompt,
        reference=item.reference,
        tokens=outcome.tokens,
        seconds=seconds,
        slices=item.slices,
        measures=graded.measures,
        log_likelihoods=outcome.log_likelihoods if item.choices else (),
        choices=item.choices,
        answer=item.answer,
    )


def _drift(
    work: Work,
    batches: Sequence[tuple[Item, ...]],
    key: str,
    scorer: Scorer,
    bench: EvaluationContext,
    progress: Progress,
) -> Iterable[list[tuple[str, Entry]]]:
    """Yield the drift of one batch of prompts after the other."""
    for batch in batches:
        left = bench.missing(key, batch)
        if not left:
            continue
        prompts = [drift.prompt_ids(work, item) for item in batch]
        started = time.monotonic()
        values = drift.token_kl(scorer.model, prompts, scorer.tokenizer.pad_token_id, scorer.device)
        seconds = (time.monotonic() - started) / len(batch)
        tokens = 2 * sum(map(len, prompts))
        progress.advance(len(left), f"{work.task.spec.name}, {DRIFT}", tokens)
        yield [
            (key, _drifted(work, item, value, 2 * len(prompt), seconds))
            for item, value, prompt in zip(batch, values, prompts, strict=True)
            if item in left
        ]


def _drifted(work: Work, item: Item, value: float, tokens: int, seconds: float) -> Entry:
    return Entry(
        arm=DRIFT,
        suite=work.suite.name,
        task=work.task.spec.name,
        item=item.id,
        cluster=item.cluster,
        score=value,
        output="",
        prompt=item.prompt,
        reference="",
        tokens=tokens,
        seconds=seconds,
        slices=item.slices,
    )
