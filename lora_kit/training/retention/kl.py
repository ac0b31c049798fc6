"""KL penalties: keep the adapted model's predictions near the base's, on texts or on the rows."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from lora_kit.data.batches import split_micro_batches
from lora_kit.data.supervision import Example
from lora_kit.modeling.likelihood import supervised_logits, token_kl
from lora_kit.modeling.model_inputs import collate_for, to_device
from lora_kit.modeling.modes import adapter_disabled, eval_mode
from lora_kit.recipe.retention import KlSpec, NonTargetKlSpec

if TYPE_CHECKING:
    from peft import PeftModel


class KlPenalty:
    """KL divergence of the adapted model from the base on a few texts per step.

    Learning without forgetting (Li & Hoiem 2016, arXiv:1606.09282), with the base's full
    distribution as the target. No second model is needed: the base is the adapter disabled.

    Attributes:
        last_divergence: divergence of the last step, in nats per token, a scalar on the device;
            this process's part until the trainer has added those of all.
    """

    def __init__(
        self,
        model: PeftModel,
        examples: Sequence[Example],
        spec: KlSpec,
        seed: int,
        pad_token_id: int,
        rows: int,
        tokens: int | None,
    ):
        """Store the texts and the limits of a forward pass.

        Args:
            model: the model with its adapter, not wrapped for several processes.
            examples: retention texts, every token labelled.
            spec: number of texts per step, and weight of the penalty.
            seed: seed of the texts' order.
            pad_token_id: id that pads short rows.
            rows: largest number of examples per forward pass.
            tokens: largest number of tokens per forward pass, padding included; `None` for no
                limit.
        """
        self._model = model
        self._examples = examples
        self._spec = spec
        self._seed = seed
        self._pad = pad_token_id
        self._rows = rows
        self._tokens = tokens
        self._shuffled: tuple[int, list[int]] = (-1, [])
        self.last_divergence = torch.zeros((), dtype=torch.float64)

    def losses(self, step: int, process: int, processes: int) -> Iterator[torch.Tensor]:
        """Yield one process's part of a step's penalty, one forward pass at a time.

        The parts of all processes add up to the penalty.

        Args:
            step: optimizer step, counted from 0.
            process: index of this process.
            processes: number of processes that share the step.

        Yields:
            Scalars with a gradient, in nats.
        """
        chosen = [self._examples[number] for number in self._step_indices(step)]
        tokens = sum(example.supervised for example in chosen)
        share = sorted(chosen, key=lambda one: -len(one.input_ids))[process::processes]
        device = self._model.device
        self.last_divergence = torch.zeros((), dtype=torch.float64, device=device)
        for group in split_micro_batches(share, self._rows, self._tokens) if share else []:
            batch = to_device(collate_for(self._model, group, self._pad), device)
            base = base_logits(self._model, batch)
            adapted = supervised_logits(self._model, batch)
            divergence = token_kl(base, adapted).sum() / tokens
            self.last_divergence += divergence.detach()
            yield self._spec.weight * divergence

    def _step_indices(self, step: int) -> list[int]:
        """Return the indices of a step's texts, each text once per pass over all texts.

        The indices do not depend on the number of processes.
        """
        first, count = step * self._spec.rows, len(self._examples)
        return [self._order(n // count)[n % count] for n in range(first, first + self._spec.rows)]

    def _order(self, epoch: int) -> list[int]:
        if self._shuffled[0] != epoch:
            order = list(range(len(self._examples)))
            # Another name than "anchor" would change the order of the texts.
            random.Random(f"{self._seed}/anchor/{epoch}").shuffle(order)
            self._shuffled = epoch, order
        return self._shuffled[1]


class NonTargetKl:
    """KL divergence of the adapted model from the base on the training rows, without the targets.

    Mask the Target (Xu et al. 2026, arXiv:2605.29498): at each supervised token, the target y is
    removed from the distributions of the base, p, and of the adapted model, q, both are
    renormalized, and KL(p || q) over the other tokens is added to the token's loss. With w = weight
    and the sum over v != y, the loss of a token is

        -log q(y) + w * sum(p(v) / (1 - p(y)) * log(p(v) / (1 - p(y)) * (1 - q(y)) / q(v))).

    The gradient of the penalty with respect to the target's logit is exactly 0: the cross-entropy
    alone decides how likely the target becomes, the penalty how the rest is distributed. Losses and
    divergences of a step are added up and divided by its supervised tokens, so that the penalty is
    a mean over them.
    """

    def __init__(self, model: PeftModel, spec: NonTargetKlSpec):
        """Store the model with its adapter, not wrapped for several processes, and the weight."""
        self._model = model
        self.weight = spec.weight

    def base_logits(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the base's logits of a training batch, as `supervised_logits` does."""
        return base_logits(self._model, batch)

    @staticmethod
    def divergences(
        base: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Return the divergence at each supervised token, (supervised,) float32, in nats.

        Args:
            base: logits of the base, (supervised, vocabulary).
            logits: logits of the adapted model, (supervised, vocabulary).
            targets: (supervised,) int64.
        """
        return token_kl(base, logits, excluded=targets)


def base_logits(model: PeftModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return `supervised_logits` of the base, without adapter, dropout or gradient."""
    with eval_mode(model), torch.no_grad(), adapter_disabled(model):
        return supervised_logits(model, batch)
