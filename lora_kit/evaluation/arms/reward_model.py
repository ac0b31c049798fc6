"""Arms of a reward model: the adapter with its head, and a baseline of answer lengths."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from lora_kit.adapter.saved import adapter_sha256, read_saved_head
from lora_kit.adapter.saved_heads.reward import SavedReward
from lora_kit.backbone.devices import input_device
from lora_kit.backbone.heads import REWARD
from lora_kit.evaluation.arms.base_or_adapter import base_and_adapter
from lora_kit.evaluation.arms.models import adapter_tokenizer_identity
from lora_kit.evaluation.arms.text_heads import require_arms
from lora_kit.evaluation.engine.arm import LoadedArms
from lora_kit.recipe.sections import HEAD_ARMS
from lora_kit.runs.session import Subject
from lora_kit.runtime.hashes import json_sha256


class LengthBaseline(torch.nn.Module):
    """Model whose reward is proportional to the length of an answer.

    The arm `base` of a reward model; the reward of a token is fitted to the training pairs. An
    untrained head would be a weaker reference, since its rewards are random, and many reward
    models learn little more than length (Singhal et al. 2023, arXiv:2310.03716).
    """

    def __init__(self, learned: SavedReward, config: Any):
        """Create the baseline.

        Args:
            learned: reward of a token, fitted to the training pairs.
            config: configuration of the backbone, from which the engine reads the context window.
        """
        super().__init__()
        self.per_token = torch.nn.Parameter(torch.tensor(learned.per_token), requires_grad=False)
        self.config = config

    def forward(self, attention_mask: torch.Tensor, **_: Any) -> SimpleNamespace:
        """Return the rewards of a batch.

        The length includes the prompt, which is the same for all answers that are compared.

        Args:
            attention_mask: (batch, length), int64.

        Returns:
            `logits`: (batch, 1), float32.
        """
        return SimpleNamespace(logits=self.per_token * attention_mask.sum(dim=1, keepdim=True))


def loaded_reward_arms(subject: Subject, names: Sequence[str]) -> list[LoadedArms]:
    """Return the arms of a reward model that are models.

    Raises:
        EvaluationError: if a reward model does not support an arm.
    """
    require_arms(subject, names, HEAD_ARMS["reward"])
    learned = _learned(subject)
    backbone, config = subject.backbone, subject.backbone.model.config
    trained = [backbone.fingerprint.digest, backbone.spec.attention]
    trained += adapter_tokenizer_identity(backbone)
    adapted = json_sha256([*trained, adapter_sha256(subject.adapter), list(REWARD.names)])
    by_length = json_sha256([*REWARD.names, learned.per_token])
    return [
        base_and_adapter(
            lambda: LengthBaseline(learned, config).to(input_device(backbone.model)),
            lambda: subject.model,
            (by_length, adapted),
        )
    ]


def reward_facts(subject: Subject) -> dict[str, str]:
    """Return the report's facts on the training pairs and on the arm `base`."""
    learned = _learned(subject)
    per_token = learned.per_token
    preferred = f"the {'longer' if per_token > 0 else 'shorter'} answer" if per_token else "neither"
    return {
        "Pairs": f"{learned.pairs:,} in training",
        "Base": f"no model: the length of the answer; {preferred} is preferred, as fitted to the "
        f"training pairs ({per_token:+.4f} log-odds per token)",
    }


def _learned(subject: Subject) -> SavedReward:
    head = read_saved_head(subject.adapter)
    assert isinstance(head, SavedReward)  # the adapter was loaded with such a head
    return head
