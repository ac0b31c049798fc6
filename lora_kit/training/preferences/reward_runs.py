"""Rewards that a reward model gives: one that was trained here, frozen beside the policy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lora_kit.adapter.attach import ADAPTER_CONFIG, adapter_sha256
from lora_kit.backbone.heads import SavedReward, saved_head
from lora_kit.data.answered import encode_answered
from lora_kit.data.rows import Message, Row
from lora_kit.data.templates import control_tokens
from lora_kit.data.tokenization import NO_LIMIT
from lora_kit.evaluation.engine.rewards import rewarded
from lora_kit.evaluation.item import RewardRequest
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runs.session import Session, open_run
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import DataError, RecipeError

RUN = "run:"
# Answers of a forward pass.
ROWS = 16


def run_of(name: str) -> Path:
    """The run directory that a reward names.

    Raises:
        RecipeError: if it is not that of a reward model.
    """
    path = Path(name.removeprefix(RUN))
    adapter = RunDirectory(path).adapter
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise RecipeError(f"grpo.rewards: {name}: no run with an adapter lies in {path}")
    if not isinstance(saved_head(adapter), SavedReward):
        raise RecipeError(
            f"grpo.rewards: {name}: not a reward model; name a run of training.objective: reward"
        )
    return path


def reward_digests(recipe: Recipe) -> dict[str, str]:
    """Of each reward model that rewards answers, and is there, which adapter it is."""
    names = [name for name in recipe.grpo.rewards if name.startswith(RUN)] if recipe.grpo else []
    adapters = {name: RunDirectory(Path(name.removeprefix(RUN))).adapter for name in names}
    return {
        name: adapter_sha256(adapter)
        for name, adapter in adapters.items()
        if (adapter / ADAPTER_CONFIG).is_file()
    }


class RunReward:
    """The reward of an answer behind its prompt, as TRL asks for it.

    A second model in memory: the policy's backbone has its own adapter, and no head.
    """

    def __init__(self, path: Path):
        """Load it.

        Args:
            path: of the run.

        Raises:
            LoraKitError: if the run cannot be opened.
        """
        self.session: Session = open_run(path)
        self.session.model.eval()
        self._has_cut = False
        held = sum(p.numel() * p.element_size() for p in self.session.model.parameters())
        say(f"{path}: the reward model takes {held / 1e9:.2f} GB beside the policy")

    def require_readable(self, rows: Sequence[Row]) -> None:
        """Raises DataError for a row whose turns this backbone cannot carry, before it is asked."""
        try:
            encode_answered(rows, self.session.backbone.tokenizer, NO_LIMIT)
        except DataError as error:
            raise DataError(f"grpo.rewards: {self.session.run.root}: {error}") from error

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[Sequence[dict[str, Any]]], answers: Sequence[str]
    ) -> list[float]:
        """Log-odds, in the order of the answers.

        Args:
            prompts: turns before each answer.
            answers: what the policy said; control tokens that are written out in it are left out.
        """
        backbone = self.session.backbone
        control = control_tokens(backbone.tokenizer)
        rows = [
            Row(
                f"grpo.rewards: {self.session.run.root}",
                "",
                (
                    *(Message(turn["role"], turn["content"]) for turn in prompt),
                    Message("assistant", _without(control, answer)),
                ),
            )
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        # Cut where the model ends and nowhere else: what is cut off an answer has no reward.
        encoded = encode_answered(rows, backbone.tokenizer, NO_LIMIT)
        if any(example.truncated for example in encoded) and not self._has_cut:
            self._has_cut = True
            say(f"{self.session.run.root}: prompts and answers are cut where the model ends")
        requests = [RewardRequest((example.input_ids,)) for example in encoded]
        pad, device = backbone.tokenizer.pad_token_id, backbone.model.device
        found: list[float] = []
        for start in range(0, len(requests), ROWS):
            some = requests[start : start + ROWS]
            outcomes = rewarded(self.session.model, some, pad, device)
            found += [outcome.log_likelihoods[0] for outcome in outcomes]
        return found


def _without(control: re.Pattern[str] | None, text: str) -> str:
    """A text without control tokens, those that stand there once others are gone included."""
    while control and control.search(text):
        text = control.sub("", text)
    return text
