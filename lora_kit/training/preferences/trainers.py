"""TRL's trainers of preferences, on our tokens, in our steps, with our checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from torch.utils.data import DataLoader
from trl import DPOTrainer, KTOTrainer

from lora_kit.data.batches import LengthGroupedSampler, StepShares
from lora_kit.data.units import Unit
from lora_kit.training.preferences.borrowing import BorrowingTrainer
from lora_kit.training.preferences.scored_forward import score_answers_alone
from lora_kit.training.preferences.unit_batches import (
    Batch,
    groups_of,
    judged,
    of_a_step,
    pairs,
    prompt_of,
)

if TYPE_CHECKING:
    from peft import PeftModel

REWARDS = (
    *("rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected"),
    *("logps/chosen", "logps/rejected"),
)


class Numbers(Dataset):
    """The numbers of units, in the form that TRL wants; the units stay where they are."""

    @classmethod
    def of(cls, units: Sequence[Unit]) -> Numbers:
        """One a unit."""
        return cls(InMemoryTable(pa.table({"row": range(len(units))})))

    def map(self, *_args: Any, **_options: Any) -> Numbers:
        """Itself: TRL's ORPOTrainer tokenizes whatever it is given."""
        return self


class UnitTrainer(BorrowingTrainer):
    """What TRL's trainers of preferences have in common here; one of them stands behind it.

    A batch of the data loader is a whole optimizer step, in the order of sft, and each forward pass
    weighs as much as it has units: an average of averages would favour those of a short pass.
    """

    batch_of: Callable[[Sequence[Unit], int], Batch]

    def __init__(
        self,
        *args: Any,
        model: PeftModel,
        units: Sequence[Unit],
        batch_size: int,
        micro_batch_size: int,
        pad_token_id: int,
        save_total_limit: int,
        **kwargs: Any,
    ):
        """Take adapter and tokens as they are.

        Args:
            args: of TRL's trainer.
            model: with its adapter attached.
            units: that are trained on.
            batch_size: units of an optimizer step.
            micro_batch_size: most units of a forward pass.
            pad_token_id: what short rows are filled up with.
            save_total_limit: how many are left standing.
            kwargs: of TRL's trainer.
        """
        with self.borrowing(model):
            super().__init__(
                *args,
                model=model,
                train_dataset=Numbers.of(units),
                data_collator=partial(of_a_step, units=units),
                **kwargs,
            )
        self._prepare_forward(model)
        self._units = units
        self.lengths = [unit.length for unit in units]
        self.batch_size = batch_size
        self.like_length = micro_batch_size
        self._pad_token_id = pad_token_id
        self.save_total_limit = save_total_limit

    def _prepare_forward(self, model: PeftModel) -> None:
        score_answers_alone(model)

    def _batch(self, group: Sequence[Unit]) -> Batch:
        return type(self).batch_of(group, self._pad_token_id)

    def _prepare_dataset(self, dataset: Any, *_args: Any) -> Any:
        """TRL's tokenizes; ours is tokenized."""
        return dataset

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Whole steps, made into tensors when they are cut into forward passes."""
        self.sampler = LengthGroupedSampler(self.lengths, self.like_length, self.args.data_seed)
        shares = StepShares(self.sampler, self.batch_size)
        return DataLoader(self.train_dataset, batch_sampler=shares, collate_fn=self.data_collator)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Forward and backward over an optimizer step.

        Returns:
            The mean of the units' losses.
        """
        del num_items_in_batch
        model.train()
        units: Sequence[Unit] = inputs["units"]
        self.rows = inputs["rows"]
        self.tokens += sum(len(e.input_ids) for unit in units for e in unit.examples)
        self._begin_step(units)
        total = torch.zeros((), device=self.args.device)
        said: dict[str, list[tuple[float, int]]] = {}
        for group in groups_of(units, self.like_length):
            batch = self._prepare_inputs(self._batch(group))
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, batch) * (len(group) / len(units))
            self.accelerator.backward(loss)
            total += loss.detach()
            for name in [name for name in self.figures if self._said.get(name)]:
                value = self._said.pop(name)[-1]
                said.setdefault(name, []).append((value, self._counted(name, group)))
        for name, mean in self._means(said).items():
            self._said[name].append(mean)
        return total

    def _begin_step(self, units: Sequence[Unit]) -> None:
        """What a pass has to know of the step that it is a part of."""

    @property
    def _said(self) -> dict[str, list[float]]:
        """What TRL has noted since the last line of `metrics.jsonl`, a value a pass."""
        found: dict[str, list[float]] = self._metrics["train"]
        return found

    def _counted(self, name: str, group: Sequence[Unit]) -> int:
        """How many units of a pass a figure is the mean of."""
        del name
        return len(group)

    def _means(self, said: Mapping[str, Sequence[tuple[float, int]]]) -> dict[str, float]:
        """Of a step's units; TRL's are of its passes, however few units one has."""
        return {
            name: sum(value * count for value, count in values) / sum(count for _, count in values)
            for name, values in said.items()
        }


class PairTrainer(UnitTrainer, DPOTrainer):
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290)."""

    batch_of = staticmethod(pairs)
    figures = REWARDS


class JudgedTrainer(UnitTrainer, KTOTrainer):
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306)."""

    figures = ("kl", *REWARDS[1:])

    def _counted(self, name: str, group: Sequence[Unit]) -> int:
        good = sum(bool(unit.row.desirable) for unit in group)
        return {"chosen": good, "rejected": len(group) - good}.get(
            name.rpartition("/")[2], len(group)
        )

    def _means(self, said: Mapping[str, Sequence[tuple[float, int]]]) -> dict[str, float]:
        found = super()._means(said)
        if {"rewards/chosen", "rewards/rejected"} <= set(found):
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        return found

    def _batch(self, group: Sequence[Unit]) -> Batch:
        # For a step's last pass there may be one left; its own answer would say nothing of the
        # divergence from answers to other prompts.
        beside = self._another(group[0]) if len(group) == 1 else None
        # No prompt with its own answer is longer, so that the backbone has a place for each token.
        return judged(group, self._pad_token_id, max(self.lengths), beside)

    def _another(self, unit: Unit) -> Unit | None:
        """One of those that follow it in the data, to another prompt if there is one."""
        place = next(number for number, one in enumerate(self._units) if one is unit)
        others = [*self._units[place + 1 :], *self._units[:place]]
        prompt = prompt_of(unit.examples[0])
        elsewhere = (one for one in others if prompt_of(one.examples[0]) != prompt)
        return next(elsewhere, next(iter(others), None))
