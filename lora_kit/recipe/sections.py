"""All sections of a recipe in one model, without the rules between them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.backbone import BackboneSpec, DType
from lora_kit.recipe.classification import ClassificationSpec
from lora_kit.recipe.data import CHANGES, DataSpec
from lora_kit.recipe.embedding import EmbeddingSpec
from lora_kit.recipe.mlm import MlmSpec
from lora_kit.recipe.multi_label import MultiLabelSpec
from lora_kit.recipe.objective import (
    OF_TEXTS,
    ON_POLICY,
    PREFERENCE,
    TEXT_HEADS,
    GrpoSpec,
    HeadObjective,
    PreferenceSpec,
    RewardSpec,
    SdftSpec,
)
from lora_kit.recipe.regression import RegressionSpec
from lora_kit.recipe.retention import RetentionSpec
from lora_kit.recipe.section import Count, Distinct, Positive, Section, Whole
from lora_kit.recipe.sweep import SweepSpec
from lora_kit.recipe.token_classification import TokenClassificationSpec
from lora_kit.recipe.training import TrainingSpec

MergeBase = Literal["dequantized", "original", "both"]
EngineName = Literal["transformers", "vllm"]
StoppingName = Literal["none", "sequential"]
ArmName = Literal[
    "base",
    "adapter",
    "merged",
    "merged-original",
    "nf4",
    "int8",
    "fewshot",
    "retrieval",
    "scratch",
    "probe",
    "plain",
]
# Merged models that may be arms, each in the run's directory of its name; of equally good ones, the
# first ships.
MERGED_ARMS = ("merged", "merged-original")
# The merged model, quantized by bitsandbytes when it is loaded.
QUANTIZED_ARMS: tuple[Literal["nf4", "int8"], ...] = ("nf4", "int8")
FEWSHOT: Literal["fewshot"] = "fewshot"
RETRIEVAL: Literal["retrieval"] = "retrieval"
SCRATCH: Literal["scratch"] = "scratch"
PROBE: Literal["probe"] = "probe"
PLAIN: Literal["plain"] = "plain"
# Fields without which that arm is trained.
NOT_PLAIN = (*(f"data.{name}" for name in CHANGES), "training.domain_alignment")
# Arms that need the recipe and the data of a run.
RUN_ONLY_ARMS = (*MERGED_ARMS, *QUANTIZED_ARMS, SCRATCH, RETRIEVAL, PROBE, PLAIN)
# Arms that work with a head, by objective; the others need a language model, or merge one.
HEAD_ARMS: dict[HeadObjective, tuple[ArmName, ...]] = {
    **dict.fromkeys(TEXT_HEADS, ("base", "adapter", RETRIEVAL, SCRATCH, PROBE, PLAIN)),
    "token-classification": ("base", "adapter", SCRATCH, PROBE),
    "reward": ("base", "adapter", RETRIEVAL),
    "embedding": ("base", "adapter", RETRIEVAL),
    "mlm": ("base", "adapter", "merged"),
}


class EvaluationSpec(Section):
    """Suites and arms of the evaluation."""

    suites: Distinct[str] = Field(default_factory=lambda: ["core-retention"], min_length=1)
    """Bundled suites by name, or paths of suite files."""
    arms: Distinct[ArmName] = Field(default=["base", "adapter"])
    """Models and baselines that answer the items. `base` and `adapter` are required. `merged`: the
    merged model as it is on disk, required for a release and added by `run` (`merged-original` with
    `merge.base: both`: merged into the checkpoint's weights). `nf4`, `int8`: the merged model
    quantized as it is loaded, with the base quantized alike as control. On gain suites only:
    `fewshot`: the base with examples in its prompt; `retrieval`: the answer of the most similar
    training row, or, for embeddings, the texts compared by TF-IDF; `scratch`: the same adapter,
    rows and steps on randomly initialised weights, without `retention` (but initialised from the
    texts of `retention.corda`); `probe`: for a head that reads a text, a linear model (for classes
    a logistic regression) of the frozen backbone's features; `plain`: as many steps of the same
    training without `data.unlabeled`, `data.reweight`, `data.augmentation` and
    `training.domain_alignment`."""
    shots: Count = 5
    """Training rows in the prompt of the arm `fewshot`."""
    gpus: Count = 1
    """GPUs over which one process spreads the model's blocks to evaluate, merge and rescale it; for
    models that are larger than one GPU. Above 1, the other processes of a launch end after the
    training. Without effect on a CPU."""
    engine: EngineName = "transformers"
    """Program that answers for base, adapter and merged models. `vllm`: vLLM's server, started on
    this machine; it applies the adapter without a merge."""
    thinking: bool = False
    """Let the model think before it generates an answer, by its chat template's own switch
    (`enable_thinking`). The answer is what follows the end of the thought; a thought that does not
    end counts as a wrong answer. Choices and losses are measured without thoughts."""
    thinking_tokens: Count = 1024
    """`thinking`: largest number of tokens of a thought, on top of the task's `max_new_tokens`."""
    stopping: StoppingName = "sequential"
    """`sequential`: the items of a task are asked in looks, and no further once the task is
    decided or can hardly be decided any more; the risk of a wrong decision stays that of the
    suite's `alpha`. `none`: all items are asked."""
    looks: Annotated[Count, Field(le=20)] = 5
    """`sequential`: largest number of looks at a task; fewer where a look would have fewer than 40
    clusters of items, or 12 of a loss or `chrf`."""
    spending: Annotated[float, Field(ge=-20, le=4, allow_inf_nan=False)] = -4.0
    """`sequential`: shape of the error spending, gamma of Hwang, Shih & DeCani (1990). The lower,
    the less early looks decide, and the less power is lost."""

    @model_validator(mode="after")
    def _tokens_for_thoughts(self) -> EvaluationSpec:
        default = EvaluationSpec.model_fields["thinking_tokens"].default
        if not self.thinking and self.thinking_tokens != default:
            raise ValueError(
                "`thinking_tokens` has no effect without `thinking`. Fix: set `thinking: true`, or "
                "remove it"
            )
        return self

    @field_validator("arms")
    @classmethod
    def _require_both_arms(cls, arms: list[str]) -> list[str]:
        if not {"base", "adapter"} <= set(arms):
            raise ValueError("a verdict compares `base` with `adapter`. Fix: name both")
        return arms


class MergeSpec(Section):
    """Merge of the adapter into its backbone."""

    base: MergeBase = "dequantized"
    """Weights that the adapter is added to. `dequantized`: those it was trained on; `original`:
    those of the checkpoint; `both`: each merge is verified and evaluated, and the better one
    ships, selected on half of the items and proved on the other half."""
    dtype: DType = "auto"
    """Dtype of the merged weights. `auto`: the dtype of computation, or float32 where that would
    round the adapter's change away."""
    shard_size: Positive = 2.0
    """Largest weight file, in GB (10^9 bytes)."""


class RecipeSections(Section):
    """A whole run, section by section."""

    placeholders: ClassVar[Mapping[str, Any]] = {
        "name": "x",
        "backbone.model": "x",
        "data.train": [{"source": "x"}],
    }

    name: str
    """Name of the run directory; letters, digits, `.`, `_` and `-`."""
    seed: Annotated[Whole, Field(lt=2**32)] = 0
    """Seed of every random choice."""
    backbone: BackboneSpec
    adapter: AdapterSpec = AdapterSpec()
    data: DataSpec
    training: TrainingSpec = TrainingSpec()
    preference: PreferenceSpec | None = None
    """Learning from pairs or judged answers; for the objectives dpo, kto and orpo."""
    reward: RewardSpec | None = None
    """Learning a reward model; for the objective reward."""
    grpo: GrpoSpec | None = None
    """Rewards and sampling; for the objective grpo."""
    sdft: SdftSpec | None = None
    """Sampling, divergence and the teacher's prompt; for the objective sdft."""
    retention: RetentionSpec = RetentionSpec()
    classification: ClassificationSpec | None = None
    regression: RegressionSpec | None = None
    multi_label: MultiLabelSpec | None = None
    token_classification: TokenClassificationSpec | None = None
    embedding: EmbeddingSpec | None = None
    mlm: MlmSpec | None = None
    evaluation: EvaluationSpec = EvaluationSpec()
    merge: MergeSpec = MergeSpec()
    sweep: SweepSpec | None = None
    """Search for better values of some fields, by `lora-kit sweep`."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_objective(cls, value: Any) -> Any:
        return _with_objective_defaults(value) if isinstance(value, dict) else value

    @property
    def left_out_of_plain(self) -> tuple[str, ...]:
        """Dotted names of the fields that are set, and that the arm `plain` is trained without."""
        changed = tuple(f"data.{name}" for name in self.data.changed)
        aligned = ("training.domain_alignment",) if self.training.domain_alignment else ()
        return changed + aligned

    @field_validator("name")
    @classmethod
    def _require_file_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(
                "names a directory. Fix: use letters, digits, `.`, `_` and `-`, and begin with a "
                "letter or digit"
            )
        return name

    def to_yaml(self) -> str:
        """Return the recipe as YAML with every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _with_objective_defaults(value: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe as it was written with what its objective implies, unless it is given."""
    training = value.get("training")
    if isinstance(training, dict):
        objective = training.get("objective")
    else:
        objective = getattr(training, "objective", None)
    if objective in OF_TEXTS:
        return _with_text_defaults(value)
    section = "preference" if objective in PREFERENCE else objective
    if section not in ("preference", "reward", *ON_POLICY) or value.get(section) is not None:
        return value
    return {**value, section: {}}


def _with_text_defaults(value: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe that trains on texts with `format: text` and `overflow: split`."""
    data = value.get("data")
    if not isinstance(data, dict):
        return value
    texts: dict[str, Any] = {"overflow": "split", **data}
    for part in ("train", "validation"):
        if isinstance(sources := data.get(part), list):
            texts[part] = [
                {"format": "text", **one} if isinstance(one, dict) else one for one in sources
            ]
    return {**value, "data": texts}
