"""Arms of a masked language model: backbone, adapter and merged model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

from lora_kit.adapter.saved import adapter_sha256, read_saved_head
from lora_kit.adapter.saved_heads.masked import SavedMasked
from lora_kit.evaluation.arms.models import adapter_tokenizer_identity, merged_arm, merged_facts
from lora_kit.evaluation.arms.text_heads import require_arms
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.evaluation.verdict import Verdict
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.recipe.sections import HEAD_ARMS, MERGED_ARMS
from lora_kit.runs.session import Subject
from lora_kit.runtime.hashes import json_sha256


def loaded_masked_arms(subject: Subject, names: Sequence[str]) -> list[LoadedArms]:
    """Return base and adapter, and the merged model if it is an arm.

    Raises:
        EvaluationError: if a masked language model does not support an arm, or is not merged yet.
    """
    require_arms(subject, names, HEAD_ARMS["mlm"])
    backbone = subject.backbone
    parts = [backbone.fingerprint.digest, backbone.spec.attention, "mlm"]
    base = json_sha256([*parts, *adapter_tokenizer_identity(backbone)])
    adapted = json_sha256([base, adapter_sha256(subject.adapter)])
    models = [
        LoadedArms(
            lambda: subject.model,
            (Arm("base", base, adapter_disabled), Arm("adapter", adapted, nullcontext)),
        )
    ]
    session = subject.session
    if session is not None:
        # Last, since the backbone's model is freed before a merged one is loaded.
        models += [merged_arm(session, arm) for arm in MERGED_ARMS if arm in names]
    return models


def masked_facts(subject: Subject, names: Sequence[str]) -> dict[str, str]:
    """Return the report's facts on the training texts and the arm `base`."""
    learned = read_saved_head(subject.adapter)
    assert isinstance(learned, SavedMasked)  # the adapter was loaded with such a head
    base = "the backbone without the adapter"
    if learned.new_layers:
        base += ", whose head is random: its checkpoint has none for masked tokens"
    return {
        "Texts": f"{learned.texts:,} in training, {learned.probability:.0%} of tokens predicted",
        "Loss": "nats per token, each masked in turn; its exponential is the pseudo-perplexity",
        "Base": base,
        **merged_facts(subject, names),
    }


def pseudo_perplexities(verdict: Verdict) -> list[str]:
    """Return a sentence for each task: the pseudo-perplexity of base and adapter."""
    return [
        f"{suite.suite}/{task.task}: pseudo-perplexity of the base {math.exp(task.base):,.4g}, of "
        f"the adapter {math.exp(task.adapter):,.4g}"
        for suite, task in verdict.tasks
    ]
