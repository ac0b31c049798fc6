"""Rewards from a reward model that an earlier run trained, loaded frozen beside the policy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lora_kit.adapter.saved import ADAPTER_CONFIG, adapter_sha256, read_saved_head
from lora_kit.adapter.saved_heads.reward import SavedReward
from lora_kit.data.reward_inputs import encode_reward_inputs
from lora_kit.data.rows import Message, Row
from lora_kit.data.templates import control_tokens
from lora_kit.data.tokenization import NO_LIMIT
from lora_kit.evaluation.engine.rewards import score_rewards
from lora_kit.evaluation.requests import RewardRequest
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runs.session import Session, open_run
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import DataError, RecipeError

RUN = "run:"
ANSWERS_PER_PASS = 16


def reward_run_directory(name: str) -> Path:
    """Return the run directory that a reward names as `run:DIRECTORY`.

    Raises:
        RecipeError: if the directory is not the run of a reward model.
    """
    path = Path(name.removeprefix(RUN))
    adapter = RunDirectory(path).adapter
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise RecipeError(
            f"grpo.rewards: no run with an adapter in {path} (got {name}). Fix: name a finished "
            "run of training.objective: reward"
        )
    if not isinstance(read_saved_head(adapter), SavedReward):
        raise RecipeError(
            f"grpo.rewards: the run is not a reward model (got {name}). Fix: name a run of "
            "training.objective: reward"
        )
    return path


def reward_digests(recipe: Recipe) -> dict[str, str]:
    """Return the adapter sha256 of each reward model in `grpo.rewards` that exists, by name."""
    names = [name for name in recipe.grpo.rewards if name.startswith(RUN)] if recipe.grpo else []
    adapters = {name: RunDirectory(Path(name.removeprefix(RUN))).adapter for name in names}
    return {
        name: adapter_sha256(adapter)
        for name, adapter in adapters.items()
        if (adapter / ADAPTER_CONFIG).is_file()
    }


class RewardModel:
    """Frozen reward model that scores answers given their prompts.

    The reward model is a second model in memory, since the policy's backbone has another adapter
    and no reward head.
    """

    def __init__(self, path: Path):
        """Load the reward model of a run, and report its memory.

        Args:
            path: run directory.

        Raises:
            LoraKitError: if the run cannot be opened.
        """
        self.session: Session = open_run(path)
        self.session.model.eval()
        self._has_truncated = False
        size = sum(p.numel() * p.element_size() for p in self.session.model.parameters())
        say(f"{path}: the reward model takes {size / 1e9:.2f} GB in addition to the policy")

    def require_readable(self, rows: Sequence[Row]) -> None:
        """Refuse rows that the reward model cannot encode, before training starts.

        Raises:
            DataError: naming the row.
        """
        try:
            encode_reward_inputs(rows, self.session.backbone.tokenizer, NO_LIMIT)
        except DataError as error:
            raise DataError(f"grpo.rewards: {self.session.run.root}: {error}") from error

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[Sequence[dict[str, Any]]], answers: Sequence[str]
    ) -> list[float]:
        """Return the reward of each answer in log-odds, in the order of the answers.

        Args:
            prompts: turns before each answer.
            answers: the policy's answers; control tokens written out in them are removed.
        """
        backbone = self.session.backbone
        control = control_tokens(backbone.tokenizer)
        rows = [
            Row(
                f"grpo.rewards: {self.session.run.root}",
                "",
                (
                    *(Message(turn["role"], turn["content"]) for turn in prompt),
                    Message("assistant", _strip_control_tokens(control, answer)),
                ),
            )
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        # Only the reward model's positions limit the length: a truncated part gets no reward.
        encoded = encode_reward_inputs(rows, backbone.tokenizer, NO_LIMIT)
        if any(example.truncated for example in encoded) and not self._has_truncated:
            self._has_truncated = True
            say(
                f"{self.session.run.root}: prompts and answers longer than the reward model's "
                "positions are truncated. Fix: lower data.max_length or grpo.max_new_tokens"
            )
        requests = [RewardRequest((example.input_ids,)) for example in encoded]
        pad, device = backbone.tokenizer.pad_token_id, backbone.model.device
        rewards: list[float] = []
        for start in range(0, len(requests), ANSWERS_PER_PASS):
            batch = requests[start : start + ANSWERS_PER_PASS]
            outcomes = score_rewards(self.session.model, batch, pad, device)
            rewards += [outcome.log_likelihoods[0] for outcome in outcomes]
        return rewards


def _strip_control_tokens(control: re.Pattern[str] | None, text: str) -> str:
    """Remove control tokens, including those that appear only once others are removed."""
    while control and control.search(text):
        text = control.sub("", text)
    return text
