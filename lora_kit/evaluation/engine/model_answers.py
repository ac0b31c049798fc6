"""Answers of a model in this process: with a layout, and an encoded prefix, for each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lora_kit.evaluation.engine.arm import Arm, EvaluationContext, LoadedArms
from lora_kit.evaluation.engine.arm_task import ArmTask
from lora_kit.evaluation.engine.embeddings import EncodedCorpus
from lora_kit.evaluation.engine.layout_cache import RequestKind, read_layout, write_layout
from lora_kit.evaluation.engine.layout_search import find_layout, within_window
from lora_kit.evaluation.engine.outcome_cache import OutcomeCache
from lora_kit.evaluation.engine.prefix import shared_prefix
from lora_kit.evaluation.engine.scoring import BatchLayout, Scorer, compute_outcomes
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.item import Outcome
from lora_kit.evaluation.requests import ChoiceRequest, Request
from lora_kit.modeling.adapter_layers import adapter_layers
from lora_kit.modeling.prefix import Prefix, encode_prefix
from lora_kit.runtime.console import say
from lora_kit.runtime.out_of_memory import free_memory, is_out_of_memory_error

# Layouts that were searched once and are used for all models.
LayoutsByKind = dict[RequestKind, BatchLayout]


def prepare_arms(
    work: Work,
    loaded: LoadedArms,
    scorer: Scorer,
    context: EvaluationContext,
    layouts: LayoutsByKind,
) -> list[ArmTask]:
    """Prepare a task for all arms; without encoded prefixes if one does not fit into memory.

    Arms whose prefix fits would otherwise differ from the others in their last digits.
    """
    arms = [arm for arm in loaded.arms if arm.applies_to(work)]
    try:
        return [_prepare(work, arm, scorer, context, layouts) for arm in arms]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory_error(error):
            raise
    free_memory()
    say(
        f"{work.name}: the tokens that all items begin with do not fit into memory once; reading "
        "them with each item"
    )
    return [_prepare(work, arm, scorer, context, layouts, prefixes=False) for arm in arms]


def _prepare(
    work: Work,
    arm: Arm,
    scorer: Scorer,
    context: EvaluationContext,
    layouts: LayoutsByKind,
    prefixes: bool = True,
) -> ArmTask:
    """Find a layout, and encode the corpus and, if `prefixes`, the shared prefix for the arm."""
    requests = [item.request for item in work.task_for(arm.name).items]
    prefix_ids = shared_prefix(requests)
    longest = max(request.length for request in requests)
    has_choices = isinstance(requests[0], ChoiceRequest)
    kind = RequestKind(has_choices, bool(prefix_ids), longest.bit_length() // 2)
    with arm.active(scorer.model):
        known = layouts.get(kind)
        if known is None and not context.no_cache:
            known = read_layout(scorer, arm.identity, kind)
        if known is None:
            known = find_layout(scorer, requests, prefix_ids)
            write_layout(scorer, arm.identity, kind, known)
        layouts[kind] = known
        layout = within_window(known, scorer, requests)
        layout = replace(layout, prefix=layout.prefix and prefixes)
        prefix = None
        if prefix_ids and layout.prefix:
            prefix = encode_prefix(scorer.model, prefix_ids, scorer.device)
    cache = None
    if arm.cached:
        cache = OutcomeCache.of(arm.identity, scorer.device, context.no_cache)
    documents = None
    if (corpus := work.task_for(arm.name).corpus) is not None:
        with arm.active(scorer.model), adapter_layers(scorer.model):
            pad = scorer.tokenizer.pad_token_id
            documents = EncodedCorpus.of(scorer.model, corpus, pad, scorer.device)
    answers = ModelAnswers(arm, scorer, layout, prefix_ids, prefix, cache, documents)
    return ArmTask.of(work, arm, context, answers, len(prefix) if prefix else 0)


@dataclass(frozen=True)
class ModelAnswers:
    """One task as a model answers it.

    Attributes:
        arm: arm that is active while it answers.
        scorer: the model.
        layout: layout of the batches.
        prefix_ids: tokens that all requests begin with.
        prefix: encoded prefix; `None` if the layout does not use one.
        cache: cached outcomes of the arm; `None` if the arm is not cached.
        documents: encoded corpus of a retrieval task; `None` for others.
    """

    arm: Arm
    scorer: Scorer
    layout: BatchLayout
    prefix_ids: tuple[int, ...]
    prefix: Prefix | None
    cache: OutcomeCache | None
    documents: EncodedCorpus | None = None

    def __call__(self, requests: Sequence[Request]) -> tuple[list[Outcome], bool]:
        """Return outcomes, and true if they come from the cache; else they are written to it."""
        with self.arm.active(self.scorer.model), adapter_layers(self.scorer.model):
            if self.cache is None:
                return self._compute(requests), False
            path = self.cache.path(requests, self.prefix_ids, self.layout)
            outcomes = self.cache.read(path)
            if outcomes is not None:
                return outcomes, True
            outcomes = self._compute(requests)
            self.cache.write(path, outcomes)
            return outcomes, False

    def _compute(self, requests: Sequence[Request]) -> list[Outcome]:
        return compute_outcomes(self.scorer, requests, self.layout, self.prefix, self.documents)
