"""Drift: KL divergence of the adapter's next-token distributions from the base's, per prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_kit.backbone.encoder_decoder import Seq2SeqBatch, is_encoder_decoder
from lora_kit.data.supervision import Example
from lora_kit.modeling.likelihood import logits_at, token_kl
from lora_kit.modeling.model_inputs import pad_examples, to_device
from lora_kit.modeling.modes import adapter_disabled

PROMPT_TOKENS = 64
"""Maximum tokens of a prompt for a decoder; the last ones are used."""
POSITIONS = 16
"""Last positions of a prompt that the divergence is averaged over."""


@dataclass(frozen=True, eq=False)
class PromptEnds:
    """Batch of prompts, and the positions at their ends that drift is measured at.

    Attributes:
        batch: inputs of the model, on its device.
        places: row and column of each position, (2, positions) int64, on the model's device.
        rows: the rows of `places` on the CPU.
        counts: positions of each prompt, (prompts,) int64, on the CPU.
    """

    batch: dict[str, Any]
    places: torch.Tensor
    rows: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def of(
        cls,
        model: Any,
        prompts: Sequence[tuple[int, ...]],
        pad_token_id: int,
        device: torch.device,
    ) -> PromptEnds:
        """Pad prompts on the left; the arguments are those of `prompt_drift`."""
        padded = pad_examples([Example(p, p) for p in prompts], pad_token_id)
        measured = padded["attention_mask"].clone()
        measured[:, :-POSITIONS] = 0
        if is_encoder_decoder(model):
            starts = Seq2SeqBatch.of(model, padded["input_ids"], padded["attention_mask"]).starts
            measured *= torch.arange(measured.shape[1]) >= starts[:, None]
        places = measured.nonzero(as_tuple=True)
        batch = to_device(padded | {"places": torch.stack(places)}, device)
        return cls(batch, batch["places"], places[0], measured.sum(dim=1))

    def logits(self, model: Any) -> torch.Tensor:
        """Return the next-token logits at all positions, (positions, vocabulary)."""
        rows, columns = self.places
        return logits_at(model, self.batch, rows, columns)

    def means(self, base: torch.Tensor, adapted: torch.Tensor) -> list[float]:
        """Return the mean of KL(base || adapted) over the positions of each prompt, in nats.

        Args:
            base: logits of the base, (positions, vocabulary).
            adapted: logits of the adapted model, (positions, vocabulary).
        """
        kl = token_kl(base, adapted).double().cpu()
        sums = torch.zeros(len(self.counts), dtype=torch.float64).index_add_(0, self.rows, kl)
        return (sums / self.counts).tolist()


@torch.inference_mode()
def prompt_drift(
    model: Any, prompts: Sequence[tuple[int, ...]], pad_token_id: int, device: torch.device
) -> list[float]:
    """Compute KL(base || adapter) in nats per token, averaged over each prompt's last positions.

    Args:
        model: backbone with the adapter attached.
        prompts: token ids of each prompt, none empty.
        pad_token_id: token that fills shorter rows on the left.
        device: device of the model.

    Returns:
        One mean divergence per prompt.
    """
    ends = PromptEnds.of(model, prompts, pad_token_id, device)
    adapted = ends.logits(model)
    with adapter_disabled(model):
        base = ends.logits(model)
    return ends.means(base, adapted)
