"""The recipe: one YAML file that describes a whole run, validated whole before anything starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from lora_kit.schema import (
    Count,
    Fraction,
    NotNegative,
    Positive,
    Section,
    Whole,
    bundled_names,
    find_document,
    override,
    read_document,
    validate,
)

RECIPE_FOLDERS = ("recipes",)

Quantization = Literal["none", "nf4", "fp4", "int8"]
ArmName = Literal["base", "adapter", "merged", "fewshot", "retrieval", "scratch"]
DType = Literal["auto", "bfloat16", "float16", "float32"]


class BackboneSpec(Section):
    """The frozen base model."""

    model: str
    """Alias, hub id, directory, `.gguf` file, or `package:DISTRIBUTION/FILE.gguf`."""
    revision: str | None = None
    """Commit, tag or branch of a hub id; pinned to the commit when the recipe is resolved."""
    quantization: Quantization = "nf4"
    """How the frozen weights are stored: `none`, `nf4`, `fp4` (4 bit) or `int8`."""
    dtype: DType = "auto"
    """What is computed in; `auto`: bfloat16 where the machine multiplies it fast, else float32."""


class AdapterSpec(Section):
    """What is trained."""

    method: Literal["lora"] = "lora"
    """LoRA (Hu et al. 2021, arXiv:2106.09685)."""
    rank: Count = 16
    """Rank r of each update."""
    alpha: Positive = 32.0
    """The update is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Dropout on the adapter's input."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """`all-linear` (each linear layer but the output head), or a list of module names."""

    @field_validator("targets")
    @classmethod
    def _targets_named(cls, targets: str | list[str]) -> str | list[str]:
        if isinstance(targets, list) and (not targets or not all(targets)):
            raise ValueError("name at least one module, such as q_proj, or write all-linear")
        return targets


class SourceSpec(Section):
    """Rows from one place."""

    source: str
    """Name of a built-in source, or a path to a `.jsonl` file."""
    split: Literal["train", "validation", "test", "all"] = "train"
    """Part of a built-in source; a file has no parts and takes `all` or `train`."""
    limit: Count | None = None
    """At most this many rows, chosen by the recipe's seed."""


class ReplaySpec(Section):
    """Rows of another kind, mixed in so that the backbone keeps what it knew."""

    source: str
    """As in `data.train`."""
    split: Literal["train", "validation", "test", "all"] = "train"
    """As in `data.train`."""
    fraction: Fraction = 0.05
    """Share of all training rows that is replay."""


class DataSpec(Section):
    """What is trained on."""

    train: list[SourceSpec] = Field(min_length=1)
    """The sources, one after the other."""
    validation: list[SourceSpec] = Field(default_factory=list)
    """Held out; its loss is measured before and after training."""
    replay: ReplaySpec | None = None
    """Rows mixed in against forgetting."""
    max_length: Count = 1024
    """Tokens an example; longer ones are cut at the end, counted and reported."""
    max_dropped: Fraction = 0.1
    """Share of rows that may be dropped (nothing left to learn from) before the data is refused."""


class TrainingSpec(Section):
    """How it is trained."""

    objective: Literal["sft"] = "sft"
    """Supervised fine-tuning: cross-entropy on the supervised tokens."""
    epochs: Positive = 1.0
    """Passes over the training rows."""
    batch_size: Count = 8
    """Examples an optimizer step, over all processes."""
    micro_batch_size: Count | None = None
    """Examples a forward pass and process; fewer take less memory. By default 4 on a CPU."""
    learning_rate: Positive = 2e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    warmup: Fraction = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: NotNegative = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to at most this norm."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, far less memory."""

    @model_validator(mode="after")
    def _whole_accumulation(self) -> TrainingSpec:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )
        return self


class EvaluationSpec(Section):
    """What is measured."""

    suites: list[str] = Field(default_factory=lambda: ["core-retention"])
    """Bundled suites by name, or paths to suite files."""
    arms: list[ArmName] = Field(default=["base", "adapter"])
    """What is evaluated on the items: `base` and `adapter` always; `merged`: the merged model, from
    disk; on gain suites other ways to the same end: `fewshot`: the base with examples in its
    prompt, `retrieval`: the answer of the most similar training row, `scratch`: the same training
    on weights that were never pretrained."""
    shots: Count = 5
    """Training rows that the arm `fewshot` is shown."""

    @field_validator("arms")
    @classmethod
    def _both_arms(cls, arms: list[str]) -> list[str]:
        if not {"base", "adapter"} <= set(arms) or len(set(arms)) < len(arms):
            raise ValueError(
                "name `base` and `adapter`, which a verdict compares, and no arm twice"
            )
        return arms

    @field_validator("suites")
    @classmethod
    def _some_suites(cls, suites: list[str]) -> list[str]:
        if not suites or len(set(suites)) < len(suites):
            raise ValueError("name at least one suite, and none twice")
        return suites


class MergeSpec(Section):
    """What ships."""

    base: Literal["dequantized", "original"] = "dequantized"
    """Add the adapter to the weights it was trained on, or to those of the checkpoint."""
    shard_size: Positive = 2.0
    """Largest weight file, GB (10^9 bytes)."""


class Recipe(Section):
    """A whole run."""

    name: str
    """Names the run directory; letters, digits, `.`, `_` and `-`."""
    seed: Annotated[Whole, Field(lt=2**32)] = 0
    """Seed of everything random."""
    backbone: BackboneSpec
    adapter: AdapterSpec = AdapterSpec()
    data: DataSpec
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    merge: MergeSpec = MergeSpec()

    @model_validator(mode="after")
    def _merge_what_is_measured(self) -> Recipe:
        if self.merge.base == "original" and self.backbone.quantization != "none":
            raise ValueError(
                f"merge.base: original, but the adapter is trained and measured on "
                f"{self.backbone.quantization} weights, so what would ship is not what was "
                "measured; use dequantized"
            )
        return self

    @field_validator("name")
    @classmethod
    def _is_file_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError("letters, digits, `.`, `_` and `-` only: it names a directory")
        return name

    @classmethod
    def load(cls, reference: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe.

        Args:
            reference: a path, or the name of a bundled recipe.
            overrides: assignments such as `training.epochs=2`.

        Raises:
            RecipeError: with all problems at once.
        """
        document = read_document(find_document(str(reference), RECIPE_FOLDERS, "recipe"))
        for assignment in overrides:
            document = override(document, assignment)
        return validate(cls, document)

    def to_yaml(self) -> str:
        """The recipe with every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def recipe_names() -> list[str]:
    """The bundled recipes."""
    return bundled_names(RECIPE_FOLDERS)
