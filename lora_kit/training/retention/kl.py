"""The KL anchor: on texts of another kind, what is trained goes on saying what the base says."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import kl_div, log_softmax

from lora_kit.data.batches import cut
from lora_kit.data.tokenization import IGNORED, Example
from lora_kit.modeling.likelihood import pad_examples, supervised_logits, to_device
from lora_kit.modeling.modes import adapter_disabled, eval_mode
from lora_kit.recipe.retention import KlSpec

if TYPE_CHECKING:
    from peft import PeftModel


class KlPenalty:
    """Divergence of the adapted model from the base on a few texts of each step.

    Learning without forgetting (Li & Hoiem 2016, arXiv:1606.09282), with the whole distribution for
    a target and no second model: the base is the adapter switched off.

    Attributes:
        last: this process's part of the last step's divergence, nats per token.
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
        """Plan.

        Args:
            model: with its adapter, not wrapped for several processes.
            examples: every token of which has a label.
            spec: how many a step, and what a nat is worth.
            seed: of their order.
            pad_token_id: what short rows are filled up with.
            rows: most examples of a forward pass.
            tokens: most tokens of one, padding included, or `None`.
        """
        self._model = model
        self._examples = examples
        self._spec = spec
        self._seed = seed
        self._pad = pad_token_id
        self._rows = rows
        self._tokens = tokens
        self._turn: tuple[int, list[int]] = (-1, [])
        self.last = 0.0

    def losses(self, step: int, process: int, processes: int) -> Iterator[torch.Tensor]:
        """One process's part of a step's penalty, a forward pass at a time.

        Args:
            step: of the optimizer, counted from 0.
            process: index of this one.
            processes: that share the step; the parts of all add up to the penalty.

        Yields:
            Scalars with a gradient.
        """
        chosen = [self._examples[number] for number in self._of_step(step)]
        tokens = sum(_scored(example) for example in chosen)
        share = sorted(chosen, key=lambda one: -len(one.input_ids))[process::processes]
        self.last = 0.0
        for group in cut(share, self._rows, self._tokens) if share else []:
            batch = to_device(pad_examples(group, self._pad), self._model.device)
            base = self._of_the_base(batch)
            found = log_softmax(supervised_logits(self._model, batch).float(), dim=-1)
            divergence = kl_div(found, base, reduction="sum", log_target=True) / tokens
            self.last += float(divergence.detach())
            yield self._spec.weight * divergence

    def _of_the_base(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities under the base, (places, vocabulary), without dropout of its own."""
        with eval_mode(self._model), torch.no_grad(), adapter_disabled(self._model):
            return log_softmax(supervised_logits(self._model, batch).float(), dim=-1)

    def _of_step(self, step: int) -> list[int]:
        """Each text once before any comes again, the same ones on any number of processes."""
        first, count = step * self._spec.rows, len(self._examples)
        return [self._order(n // count)[n % count] for n in range(first, first + self._spec.rows)]

    def _order(self, turn: int) -> list[int]:
        if self._turn[0] != turn:
            order = list(range(len(self._examples)))
            random.Random(f"{self._seed}/anchor/{turn}").shuffle(order)
            self._turn = turn, order
        return self._turn[1]


def _scored(example: Example) -> int:
    """Tokens that are predicted: the first one is not."""
    return sum(label != IGNORED for label in example.labels[1:])
