"""The recipe: one YAML file that describes a whole run, validated whole before anything starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from lora_kit.adapter_spec import AdapterSpec
from lora_kit.backbone_spec import BackboneSpec, DType
from lora_kit.classification_spec import ClassificationSpec, refusals
from lora_kit.data_spec import DataSpec
from lora_kit.initialisations import refusal
from lora_kit.merge_fit import refusals_of_merging
from lora_kit.objective_fit import refuse_unused, with_section
from lora_kit.objective_spec import GrpoSpec, PreferenceSpec, RewardSpec
from lora_kit.retention_spec import RetentionSpec
from lora_kit.schema import (
    Count,
    Positive,
    Section,
    Whole,
    bundled_names,
    find_document,
    override,
    read_document,
    validate,
)
from lora_kit.training_spec import TrainingSpec
from lora_kit.virtual_tokens_fit import refusals_of_tokens

RECIPE_FOLDERS = ("recipes",)

Base = Literal["dequantized", "original", "both"]
ArmName = Literal[
    "base", "adapter", "merged", "merged-original", "fewshot", "retrieval", "scratch", "probe"
]
# Merged models that may be arms, each in the run's directory of its name; of equally good ones, the
# first ships.
MERGED_ARMS = ("merged", "merged-original")


class EvaluationSpec(Section):
    """What is measured."""

    suites: list[str] = Field(default_factory=lambda: ["core-retention"])
    """Bundled suites by name, or paths to suite files."""
    arms: list[ArmName] = Field(default=["base", "adapter"])
    """What is evaluated on the items: `base` and `adapter` always; `merged`: the merged model from
    disk, which a release asks for and `run` adds (`merged-original` with `merge.base: both`: the
    one on the checkpoint's weights); on gain suites other ways to the same end: `fewshot`: the base
    with examples in its prompt, `retrieval`: the answer of the most similar training row,
    `scratch`: the same adapter, rows and steps on weights that were never pretrained, without
    `retention`, which would find nothing to keep, `probe`: of a classifier, a logistic regression
    on the frozen backbone's features."""
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

    base: Base = "dequantized"
    """What the adapter is added to: `dequantized`: the weights that it was trained on, `original`:
    those of the checkpoint; `both`: each is verified and evaluated, and the better one ships."""
    dtype: DType = "auto"
    """What the merged weights are stored in; `auto`: what the backbone computes in, or float32
    where that would round the adapter's change away."""
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
    preference: PreferenceSpec | None = None
    """How pairs or judged answers are learned from; for dpo, kto and orpo."""
    reward: RewardSpec | None = None
    """How a reward model is learned; for reward."""
    grpo: GrpoSpec | None = None
    """Rewards and sampling; for grpo."""
    retention: RetentionSpec = RetentionSpec()
    classification: ClassificationSpec | None = None
    evaluation: EvaluationSpec = EvaluationSpec()
    merge: MergeSpec = MergeSpec()

    @model_validator(mode="before")
    @classmethod
    def _section_of_the_objective(cls, value: Any) -> Any:
        return with_section(value)

    @model_validator(mode="after")
    def _objective_with_what_it_uses(self) -> Recipe:
        refuse_unused(self)
        return self

    @model_validator(mode="after")
    def _two_bases_to_choose_from(self) -> Recipe:
        if self.merge.base == "both" and self.backbone.quantization == "none":
            raise ValueError(
                "merge.base: both, but backbone.quantization: none leaves the weights as they are: "
                "the two merges would be the same; use original"
            )
        return self

    @model_validator(mode="after")
    def _method_for_these_weights(self) -> Recipe:
        quantization = self.backbone.quantization
        why_not = self.adapter.why_not_on(quantization)
        if why_not:
            raise ValueError(
                f"adapter.method: {self.adapter.method} on {quantization} weights: it {why_not}; "
                "set backbone.quantization: none, or another method (lora)"
            )
        begun = refusal(self)
        if begun:
            raise ValueError(begun)
        factors = self.adapter.method == "lora" and not self.adapter.options.get("use_dora")
        if self.retention.consolidation is not None and not factors:
            raise ValueError(
                "retention.consolidation: holds the product of LoRA's two factors, which "
                f"adapter.method: {self.adapter.method} (or use_dora) does not train; use "
                "retention.anchor, which holds what the model says"
            )
        if self.training.keep_best and self.retention.budget is not None:
            raise ValueError(
                "training.keep_best and retention.budget each say which weights are kept: those of "
                "the lowest validation loss may be past the margin; leave one out"
            )
        if self.adapter.method == "adalora":
            for field, is_set in (
                ("training.keep_best", self.training.keep_best),
                ("training.unfreeze_steps", self.training.unfreeze_steps),
                ("retention.budget", self.retention.budget),
            ):
                if is_set:
                    raise ValueError(
                        f"{field}: adalora's ranks are those of the step that it has come to, "
                        "which earlier weights or blocks that wait do not go with; leave it out"
                    )
        if self.training.lora_plus is not None and self.adapter.method != "lora":
            raise ValueError(
                f"training.lora_plus: {self.adapter.method} has no second factor as LoRA has; "
                "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _validation_where_it_is_asked_for(self) -> Recipe:
        if self.training.validate_steps and not self.data.validation:
            raise ValueError(
                "training.validate_steps: there is nothing to measure the loss of; name a source "
                "in data.validation"
            )
        return self

    @model_validator(mode="after")
    def _goes_with_the_objective(self) -> Recipe:
        found = [*refusals(self), *refusals_of_tokens(self), *refusals_of_merging(self)]
        if found:
            raise ValueError(". ".join(found))
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
