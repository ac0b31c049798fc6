"""Cells of the plane: one adapter each, trained once and measured on both halves of the items."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

from lora_kit.adapter.attach import attach_saved
from lora_kit.adapter.peft_methods import DEFAULT_ADAPTER
from lora_kit.adapter.saved import ADAPTER_WEIGHTS
from lora_kit.evaluation.assembly import LEDGER
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.ledger import Entry, read_ledger
from lora_kit.pipeline.halved import HalvedItems
from lora_kit.pipeline.training import train
from lora_kit.recipe.recipe import Recipe
from lora_kit.rescaling.intruders import IntruderSearch, reduce_intruders
from lora_kit.runs.directory import HALF_A, HALF_B, RunDirectory
from lora_kit.runtime.errors import LoraKitError, TrainingInterruptedError
from tests.benchmarks.plane import Task, merged
from tests.benchmarks.retention.figures import GAIN, KEPT, LOSS, changes
from tests.benchmarks.retention.ways import PLAIN, WAYS, Way

CORE_RETENTION = Path("eval/suites/core-retention.yaml")
# The rate that is searched is at most this many times larger or smaller than the first.
LARGEST_FACTOR = 8
MEASURED = "measured.json"


@dataclass(frozen=True)
class Place:
    """A backbone with a task, and everything that is shared by what is trained there.

    Attributes:
        directory: folder of the cells.
        backbone: value of `backbone.model`.
        task: task that is learned.
        items: backbone and items, in halves.
    """

    directory: Path
    backbone: str
    task: Task
    items: HalvedItems

    @classmethod
    def of(cls, directory: Path, backbone: str, task: Task, dtype: str) -> Place:
        """Load the backbone, computed in `dtype`, and the items."""
        directory.mkdir(parents=True, exist_ok=True)
        suites = _suites(directory, task)
        recipe = _recipe(backbone, task, suites, 0, Way(dtype=dtype), 1e-3)
        return cls(directory, backbone, task, HalvedItems.of(recipe))

    def _run(self, way: str, rate: float, seed: int) -> RunDirectory:
        return RunDirectory(self.directory / folder_of(way) / f"{rate:g}" / f"seed-{seed}")

    def _trained(self, way: str, rate: float, seed: int) -> RunDirectory:
        """Train a cell if it is not there.

        Raises:
            LoraKitError: if the training fails.
        """
        run = self._run(way, rate, seed)
        if (run.adapter / "adapter_config.json").is_file():
            return run
        print(f"{run.root}", flush=True)
        if WAYS[way].changes_plain:
            plain = self._trained(PLAIN, rate, seed)
            _write_changed(plain, run, self._changed(plain, WAYS[way]))
            return run
        recipe = _recipe(self.backbone, self.task, self._suites, seed, WAYS[way], rate)
        train(recipe, run.root, resume=True, loaded=self.items.shared.inputs(recipe)).close()
        return run

    def _changed(self, plain: RunDirectory, way: Way) -> dict[str, torch.Tensor]:
        """Return the weights of plain LoRA's adapter that a way changes, as it changes them."""
        if way.scale is not None:
            weights = load_file(plain.adapter / ADAPTER_WEIGHTS)
            return {n: value * way.scale for n, value in weights.items() if ".lora_B." in n}
        assert way.intruders is not None
        model = attach_saved(self.items.shared.inputs().backbone, plain.adapter)
        reduced = reduce_intruders(model, IntruderSearch((way.intruders,)))
        self.items.shared.take_off(model)
        print(reduced.describe(), flush=True)
        values = reduced.parameters[way.intruders]
        return {name.replace(f".{DEFAULT_ADAPTER}.", "."): values[name] for name in values}

    def measure(self, way: str, seeds: int) -> None:
        """Find the best rate, measure all seeds on half B, and write what was found.

        Raises:
            LoraKitError: if a training fails.
        """
        tried = self._rates(PLAIN if WAYS[way].has_plain_rate else way)
        rate = max(tried, key=lambda one: tried[one]) * (WAYS[way].factor or 1)
        for seed in range(seeds):
            self._entries(self._trained(way, rate, seed), self.items, self.items.halves.b, HALF_B)
        found = {"rate": rate, "gains_on_half_a": tried, "seeds": seeds}
        path = self.directory / folder_of(way) / MEASURED
        path.write_text(json.dumps(found, indent=2) + "\n")

    def once(self, way: str) -> dict[str, float]:
        """Train the first seed at the first rate, and return gain and forgetting on half B."""
        run = self._trained(way, WAYS[way].rate, 0)
        entries = self._entries(run, self.items, self.items.halves.b, HALF_B)
        return {
            "gain": -changes([entries], GAIN).mean,
            "forgetting": changes([entries], KEPT, LOSS).mean,
        }

    def _rates(self, way: str) -> dict[float, float]:
        """Return the gain on half A by rate: rates in steps of two, as long as the gain grows."""
        first = WAYS[way].rate
        tried = {first: self._gain(way, first)}
        for factor in (2.0, 0.5):
            rate = first * factor
            while first / LARGEST_FACTOR <= rate <= first * LARGEST_FACTOR:
                before = tried[rate / factor]
                tried[rate] = self._gain(way, rate)
                if not tried[rate] > before:
                    break
                rate *= factor
            if max(tried.values()) > tried[first]:
                break
        return tried

    def _gain(self, way: str, rate: float) -> float:
        """Return the gain on half A for the first seed; minus infinity if the training failed."""
        try:
            run = self._trained(way, rate, 0)
        except TrainingInterruptedError:
            raise
        except LoraKitError as error:
            print(f"{self._run(way, rate, 0).root}: {error}", flush=True)
            self.items.shared.forget()
            return -math.inf
        suites = [suite for suite in self.items.suites if suite.name == GAIN]
        work = [one for one in self.items.halves.a if one.suite.name == GAIN]
        items = replace(self.items, suites=suites)
        return -changes([self._entries(run, items, work, f"{HALF_A}-gain")], GAIN).mean

    @property
    def _suites(self) -> list[str]:
        return [str(self.directory.absolute() / f"{name}.yaml") for name in (GAIN, KEPT)]

    def _entries(
        self, run: RunDirectory, items: HalvedItems, work: Sequence[Work], to: str
    ) -> list[Entry]:
        ledger = run.root / to / LEDGER
        if not ledger.is_file():
            items.evaluated(run, run.load_recipe(), work, to)
        return read_ledger(ledger)


def _suites(directory: Path, task: Task) -> list[str]:
    """Write the two suites, the choices of core-retention being scored by nats of the right one."""
    kept = yaml.safe_load(CORE_RETENTION.read_text())
    for one in kept["tasks"]:
        if one["kind"] == "multiple_choice":
            one |= {"score": "loss", "margin": 0.05, "rationale": "As prose."}
    gain = {"name": "gain", "kind": "loss", **task.held_out}
    documents = {GAIN: {"name": GAIN, "role": "gain", "tasks": [gain]}, KEPT: kept}
    paths = []
    for name, document in documents.items():
        path = directory.absolute() / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        paths.append(str(path))
    return paths


def _recipe(
    backbone: str, task: Task, suites: Sequence[str], seed: int, way: Way, rate: float
) -> Recipe:
    common = {
        "name": "retention",
        "seed": seed,
        "backbone": {"model": backbone, "quantization": "none", "dtype": way.dtype},
        "data": {"train": [task.train], "max_length": 320},
        "training": {"epochs": 1.0, "batch_size": 4, "learning_rate": rate},
        "evaluation": {"arms": ["base", "adapter"], "suites": list(suites)},
    }
    return Recipe.model_validate(merged(common, dict(way.changes)))


def _write_changed(
    plain: RunDirectory, run: RunDirectory, changed: Mapping[str, torch.Tensor]
) -> None:
    """Write an adapter with other values of some weights, and the record of what it was made of."""
    weights = load_file(plain.adapter / ADAPTER_WEIGHTS)
    assert changed.keys() <= weights.keys()
    run.adapter.mkdir(parents=True, exist_ok=True)
    save_file({**weights, **changed}, run.adapter / ADAPTER_WEIGHTS, {"format": "pt"})
    run.recipe.write_text(plain.recipe.read_text())
    run.record.write_text(plain.record.read_text())
    for path in plain.adapter.iterdir():
        if path.suffix != ".safetensors":
            (run.adapter / path.name).write_bytes(path.read_bytes())


def folder_of(way: str) -> str:
    """Return the name of a way's folder."""
    return way.replace(" ", "-").replace(",", "").replace("%", "").replace("/", "by")


@dataclass(frozen=True)
class Measured:
    """Adapters of a way, one for each seed.

    Attributes:
        way: name of the way.
        rate: learning rate with the largest gain on half A.
        entries: for each seed the entries of half B.
        seconds: seconds of a training, on average.
    """

    way: str
    rate: float
    entries: Sequence[Sequence[Entry]]
    seconds: float


def read_measured(folder: Path, ways: Sequence[str], seeds: int) -> list[Measured]:
    """Read the ways that are complete, in the order given."""
    found = []
    for way in ways:
        path = folder / folder_of(way) / MEASURED
        if not path.is_file():
            continue
        record = json.loads(path.read_text())
        if record["seeds"] < seeds:
            continue
        rate = record["rate"]
        runs = [path.parent / f"{rate:g}" / f"seed-{seed}" for seed in range(seeds)]
        entries = [read_ledger(run / HALF_B / LEDGER) for run in runs]
        records = [json.loads(RunDirectory(run).record.read_text()) for run in runs]
        seconds = sum(one["training"]["seconds"] for one in records) / seeds
        found.append(Measured(way, rate, entries, seconds))
    return found
