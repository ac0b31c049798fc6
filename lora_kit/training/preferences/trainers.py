"""Preference trainers: TRL's losses, with this package's tokenization, steps and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from datasets.table import InMemoryTable
from torch.utils.data import DataLoader
from trl import DPOTrainer, KTOTrainer

from lora_kit.data.batches import LengthGroupedSampler, StepShareSampler
from lora_kit.data.units import Unit
from lora_kit.training.preferences.answer_log_probs import score_answers_only
from lora_kit.training.preferences.trl_trainer import TrlTrainer, local_metrics
from lora_kit.training.preferences.unit_batches import (
    PreferenceBatch,
    UnitPass,
    collate_step,
    dpo_batch,
    kto_batch,
    prompt_tokens,
    split_into_passes,
)

if TYPE_CHECKING:
    from peft import PeftModel

REWARD_METRICS = (
    *("rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected"),
    *("logps/chosen", "logps/rejected"),
)


class UnitIndices(Dataset):
    """Data set of unit indices: TRL requires a data set, and the units are not copied into one."""

    @classmethod
    def of(cls, units: Sequence[Unit]) -> UnitIndices:
        """Build a data set with the column `row`, one index per unit."""
        return cls(InMemoryTable(pa.table({"row": range(len(units))})))

    def map(self, *_args: Any, **_options: Any) -> UnitIndices:
        """Return the data set unchanged, since TRL's ORPOTrainer would tokenize it."""
        return self


class PreferenceTrainer(TrlTrainer):
    """Base class of trainers on preference units; combined with one of TRL's trainers.

    A batch of the data loader is a complete optimizer step, in the order of sft, on every process,
    which trains on its share. Each forward pass is weighted by its number of units, because a mean
    of means would favour units of short passes.

    Attributes:
        batch_of: function from units and the padding token id to the tensors of a forward pass.
    """

    batch_of: Callable[[Sequence[Unit], int], PreferenceBatch]

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
        """Build the trainer without changing the adapter's dtype or tokenizing again.

        Args:
            args: arguments of TRL's trainer.
            model: the model with its adapter attached.
            units: preference pairs or rated answers to train on, tokenized.
            batch_size: units per optimizer step, over all processes.
            micro_batch_size: largest number of units per forward pass; independent of the number of
                processes, since it determines the order of the units.
            pad_token_id: id that pads short rows.
            save_total_limit: number of checkpoints to keep.
            kwargs: keyword arguments of TRL's trainer.
        """
        with self.protecting(model):
            super().__init__(
                *args,
                model=model,
                train_dataset=UnitIndices.of(units),
                data_collator=partial(collate_step, units=units),
                **kwargs,
            )
        self._prepare_forward(model)
        self._units = units
        self.lengths = [unit.length for unit in units]
        self.batch_size = batch_size
        self.length_group_size = micro_batch_size
        self._pad_token_id = pad_token_id
        self.save_total_limit = save_total_limit

    def _prepare_forward(self, model: PeftModel) -> None:
        score_answers_only(model)

    def _batch(self, one: UnitPass) -> PreferenceBatch:
        return type(self).batch_of(one.units, self._pad_token_id)

    def _prepare_dataset(self, dataset: Any, *_args: Any) -> Any:
        """Return the data set unchanged: the units are tokenized already."""
        return dataset

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return a loader of complete steps, which `training_step` splits into tensors."""
        self.sampler = LengthGroupedSampler(
            self.lengths, self.length_group_size, self.args.data_seed
        )
        shares = StepShareSampler(self.sampler, self.batch_size)
        return DataLoader(self.train_dataset, batch_sampler=shares, collate_fn=self.data_collator)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Run forward and backward passes over this process's share of an optimizer step.

        Returns:
            Summed loss of the share's units, divided by the number of units of the step and
            multiplied by the number of processes, since gradients are averaged over processes;
            scalar.
        """
        del num_items_in_batch
        model.train()
        units: Sequence[Unit] = inputs["units"]
        process, processes = self.args.process_index, self.args.world_size
        self.rows = inputs["rows"][process::processes]
        self.tokens += sum(len(e.input_ids) for unit in units for e in unit.examples)
        self._begin_step(units)
        total = torch.zeros((), device=self.args.device)
        values: dict[str, list[tuple[float, int]]] = {}
        passes = self._passes(units)
        for number, one in enumerate(passes, start=1):
            self._pass = one
            # Gradients are exchanged in the last backward pass.
            with nullcontext() if number == len(passes) else self.accelerator.no_sync(model):
                batch = self._prepare_inputs(self._batch(one))
                with self.compute_loss_context_manager(), local_metrics(self.accelerator):
                    loss = self.compute_loss(model, batch)
                loss = loss * (processes * (one.counted / len(units)))
                self.accelerator.backward(loss)
            total += loss.detach()
            self._collect_metrics(one, values)
        self._log_step(_merged(gather_object([values])))
        return total

    def _passes(self, units: Sequence[Unit]) -> list[UnitPass]:
        """Return this process's forward passes over a step, at least one.

        Units are dealt out from the longest to the shortest, as in sft.
        """
        ordered = sorted(units, key=lambda unit: -unit.length)
        share = ordered[self.args.process_index :: self.args.world_size]
        groups = split_into_passes(share, self.length_group_size)
        passes = [UnitPass(group, len(group)) for group in groups]
        return passes or [UnitPass(ordered[-1:], 0)]

    def _collect_metrics(self, one: UnitPass, values: dict[str, list[tuple[float, int]]]) -> None:
        """Move the metrics of a pass to `values`, each with its number of units."""
        for name in [n for n, passes in self._logged.items() if passes and n != "num_tokens"]:
            value = self._logged.pop(name)[-1]
            if one.counted:
                values.setdefault(name, []).append((value, self._unit_count(name, one.units)))

    def _log_step(self, values: Mapping[str, Sequence[tuple[float, int]]]) -> None:
        """Log the metrics of a step; TRL's further ones go to trackers, as means over passes.

        Args:
            values: for each metric, its value and number of units in each pass of all processes.
        """
        own = {name: pairs for name, pairs in values.items() if name in self.logged_metrics}
        for name, mean in self._step_means(own).items():
            self._logged[name].append(mean)
        for name in set(values) - set(own):
            self._logged[name] += [value for value, _ in values[name]]
        if "num_tokens" in self._logged:
            self._logged["num_tokens"] = [self.tokens]

    def _begin_step(self, units: Sequence[Unit]) -> None:
        """Prepare values that every forward pass of the step needs; does nothing by default."""

    @property
    def _logged(self) -> dict[str, list[float]]:
        """Values that TRL has logged since the last line of `metrics.jsonl`, one per pass."""
        metrics: dict[str, list[float]] = self._metrics["train"]
        return metrics

    def _unit_count(self, name: str, group: Sequence[Unit]) -> int:
        """Return the number of units of a pass that a metric is the mean of."""
        del name
        return len(group)

    def _step_means(self, values: Mapping[str, Sequence[tuple[float, int]]]) -> dict[str, float]:
        """Return the mean of each metric over a step's units; TRL averages over passes instead.

        Args:
            values: for each metric, its value and number of units in each pass.
        """
        return {
            name: sum(value * count for value, count in pairs) / sum(count for _, count in pairs)
            for name, pairs in values.items()
        }


class DpoStepTrainer(PreferenceTrainer, DPOTrainer):
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290)."""

    batch_of = staticmethod(dpo_batch)
    logged_metrics = REWARD_METRICS


class KtoStepTrainer(PreferenceTrainer, KTOTrainer):
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306)."""

    logged_metrics = ("kl", *REWARD_METRICS[1:])

    def _unit_count(self, name: str, group: Sequence[Unit]) -> int:
        desirable = sum(bool(unit.row.desirable) for unit in group)
        return {"chosen": desirable, "rejected": len(group) - desirable}.get(
            name.rpartition("/")[2], len(group)
        )

    def _step_means(self, values: Mapping[str, Sequence[tuple[float, int]]]) -> dict[str, float]:
        means = super()._step_means(values)
        if {"rewards/chosen", "rewards/rejected"} <= set(means):
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means

    def _passes(self, units: Sequence[Unit]) -> list[UnitPass]:
        """Return this process's part of each pass of a single process.

        The divergence is estimated over a pass, so that a pass has the same units, each with the
        same other answer, on any number of processes.
        """
        processes, start, passes = self.args.world_size, 0, []
        for group in split_into_passes(units, self.length_group_size):
            # A unit that is alone in the last pass borrows the answer of another unit.
            first = self._other_unit(group[0]) if len(group) == 1 else None
            others = [first or group[-1], *group[:-1]]
            own = slice((self.args.process_index - start) % processes, None, processes)
            counted = len(group[own])
            own = own if counted else slice(1)
            passes.append(UnitPass(group[own], counted, others[own]))
            start += len(group)
        return passes

    def _batch(self, one: UnitPass) -> PreferenceBatch:
        # No mismatched row is longer than the longest row, which the backbone's positions fit.
        return kto_batch(one.units, self._pad_token_id, max(self.lengths), one.others)

    def _compute_kl_logps(self, model: torch.nn.Module, batch: PreferenceBatch) -> torch.Tensor:
        """Return the log probabilities of a pass's mismatched answers, on all processes.

        Returns:
            Sums over the tokens of each answer, (answers,) float32, in nats.
        """
        own: torch.Tensor = super()._compute_kl_logps(model, batch)
        if self.args.world_size == 1:
            return own
        return own.new_tensor(gather_object(own[: self._pass.counted].tolist()))

    def _other_unit(self, unit: Unit) -> Unit | None:
        """Return the next unit in the data, cyclically, that has another prompt if one exists."""
        index = next(number for number, one in enumerate(self._units) if one is unit)
        others = [*self._units[index + 1 :], *self._units[:index]]
        prompt = prompt_tokens(unit.examples[0])
        other_prompts = (one for one in others if prompt_tokens(one.examples[0]) != prompt)
        return next(other_prompts, next(iter(others), None))


def _merged(
    values: Sequence[Mapping[str, Sequence[tuple[float, int]]]],
) -> dict[str, list[tuple[float, int]]]:
    """Join the metrics of all processes; a pass of KTO may lack some of them."""
    names = dict.fromkeys(name for one in values for name in one)
    return {name: [pair for one in values for pair in one.get(name, ())] for name in names}
