"""Arms of an embedding: the backbone with its adapter, and without it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from lora_kit.adapter.saved import adapter_sha256, read_saved_head
from lora_kit.adapter.saved_heads.embedding import SavedEmbedding
from lora_kit.evaluation.arms.models import adapter_tokenizer_identity
from lora_kit.evaluation.arms.text_heads import require_arms
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.recipe.sections import HEAD_ARMS
from lora_kit.runs.session import Subject
from lora_kit.runtime.hashes import json_sha256


def loaded_embedding_arms(subject: Subject, names: Sequence[str]) -> LoadedArms:
    """Return base and adapter, which pool the hidden states in the same way.

    Raises:
        EvaluationError: if an embedding does not support an arm.
    """
    require_arms(subject, names, HEAD_ARMS["embedding"])
    backbone = subject.backbone
    parts = [backbone.fingerprint.digest, backbone.spec.attention, _learned(subject).pooling]
    base = json_sha256([*parts, *adapter_tokenizer_identity(backbone)])
    adapted = json_sha256([base, adapter_sha256(subject.adapter)])
    return LoadedArms(
        lambda: subject.model,
        (Arm("base", base, adapter_disabled), Arm("adapter", adapted, nullcontext)),
    )


def embedding_facts(subject: Subject) -> dict[str, str]:
    """Return the report's facts on the training pairs and the vectors."""
    learned = _learned(subject)
    return {
        "Pairs": f"{learned.pairs:,} in training",
        "Vectors": f"{learned.pooling} pooling, unit length",
        "Base": "the backbone without the adapter, pooled in the same way",
    }


def _learned(subject: Subject) -> SavedEmbedding:
    head = read_saved_head(subject.adapter)
    assert isinstance(head, SavedEmbedding)  # the adapter was loaded with such vectors
    return head
