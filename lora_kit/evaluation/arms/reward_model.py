"""The arms of a reward model: the adapter with its head, and what knows the length alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch

from lora_kit.adapter.attach import adapter_sha256
from lora_kit.backbone.heads import REWARD, SavedReward, saved_head
from lora_kit.evaluation.arms.classifier import require_arms
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.recipe.classification import ARMS
from lora_kit.runs.session import Subject
from lora_kit.runtime.hashes import json_sha256


class ByLength(torch.nn.Module):
    """What an untrained head is compared with: so much for each token of an answer.

    How much, and whether more or less is better, the training pairs have said. A head that has
    learned nothing would be a coin, which everything is better than; and length alone is what many
    a reward model turns out to have learned (Singhal et al. 2023, arXiv:2310.03716).
    """

    def __init__(self, learned: SavedReward, config: Any):
        """Take over what a token is worth.

        Args:
            learned: of the training pairs.
            config: of the backbone, which the engine asks for its window.
        """
        super().__init__()
        self.per_token = torch.nn.Parameter(torch.tensor(learned.per_token), requires_grad=False)
        self.config = config

    def forward(self, attention_mask: torch.Tensor, **_: Any) -> SimpleNamespace:
        """Take (batch, length); return `logits` (batch, 1).

        Prompts count as well, which are the same for all answers that are compared.
        """
        return SimpleNamespace(logits=self.per_token * attention_mask.sum(dim=1, keepdim=True))


def loaded_reward_arms(subject: Subject, names: Sequence[str]) -> list[LoadedArms]:
    """The arms that are models.

    Raises:
        EvaluationError: if an arm has no rewards.
    """
    require_arms(subject, names, ARMS["reward"])
    learned = _learned(subject)
    backbone, config = subject.backbone, subject.backbone.model.config
    trained = [backbone.fingerprint.digest, backbone.spec.attention]
    adapted = json_sha256([*trained, adapter_sha256(subject.adapter), list(REWARD)])
    by_length = json_sha256([*REWARD, learned.per_token])
    return [
        LoadedArms(
            lambda: ByLength(learned, config).to(backbone.model.device),
            (Arm("base", by_length, nullcontext, roles=("gain",)),),
        ),
        LoadedArms(lambda: subject.model, (Arm("adapter", adapted, nullcontext, roles=("gain",)),)),
    ]


def reward_facts(subject: Subject) -> dict[str, str]:
    """What the report says of the pairs, and of what the adapter is compared with."""
    learned = _learned(subject)
    worth = learned.per_token
    better = "longer" if worth > 0 else "shorter"
    said = f"the {better} answer is the better one" if worth else "length tells nothing, a coin"
    return {
        "Pairs": f"{learned.pairs:,} in training",
        "Base": f"no model: by the training pairs' answers {said} ({worth:+.4f} log-odds a token)",
    }


def _learned(subject: Subject) -> SavedReward:
    found = saved_head(subject.adapter)
    assert isinstance(found, SavedReward)  # it was loaded with such a head
    return found
