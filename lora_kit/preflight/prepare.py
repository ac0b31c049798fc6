"""Prepare a training up to step 1, shared by `lora-kit plan` and `lora-kit train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_kit.adapter.attach import attach
from lora_kit.backbone.load import Backbone
from lora_kit.data.audit.audit import audit
from lora_kit.data.audit.findings import Audit
from lora_kit.data.dataset import prepare, validation_rows
from lora_kit.data.labelled import supervise_inputs
from lora_kit.data.row_sets import Rows
from lora_kit.data.training_data import TrainingData
from lora_kit.data.training_rows import TrainingRows
from lora_kit.data.units import PreparedUnits
from lora_kit.evaluation.audited import audited_items
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.llm_judge.preferences import check_judges
from lora_kit.preflight.checks import CheckResult, run_checks
from lora_kit.preflight.context import PreflightContext
from lora_kit.recipe.objective import TEXT_HEADS
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.launch import Launch
from lora_kit.training.retention.texts import RetentionTexts, refuse_items
from lora_kit.training.target_texts import TargetTexts

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class PreparedTraining:
    """Inputs of a training, after all checks and the data audit.

    Attributes:
        model: the backbone with its adapter attached.
        data: training rows and held-out rows, tokenized.
        texts: texts used by the retention methods.
        checked: names and warnings of the checks that ran.
        audit: findings in the rows; problems are not refused yet.
        target: texts of `training.domain_alignment`, if the recipe has it.
    """

    model: PeftModel
    data: TrainingData
    texts: RetentionTexts
    checked: CheckResult
    audit: Audit
    target: TargetTexts | None


def prepare_training(
    recipe: Recipe,
    launch: Launch,
    backbone: Backbone,
    sources: Rows,
    read: TrainingRows,
    work: Sequence[Work],
) -> PreparedTraining:
    """Tokenize the rows, attach the adapter, run the checks and audit the data.

    Args:
        recipe: recipe of the training.
        launch: launch of the training, which need not be that of this process.
        backbone: loaded backbone; the adapter is attached to it in place.
        sources: rows of `data.train`.
        read: rows that are trained on, replay included.
        work: tokenized items of the recipe's suites, searched for in the training rows.

    Raises:
        LoraKitError: from the first check that fails.
    """
    check_judges(work)
    tokenizer, objective = backbone.tokenizer, recipe.training.objective
    outputs = backbone.head.outputs if backbone.head else None
    held_out_rows = validation_rows(recipe.data, recipe.seed, objective)
    data = prepare(read.rows, tokenizer, recipe.data, read.replay, objective, outputs)
    held_out = prepare(held_out_rows, tokenizer, recipe.data, outputs=outputs)
    texts, target = RetentionTexts.read(recipe, tokenizer), TargetTexts.read(recipe, tokenizer)
    model = attach(backbone, recipe.adapter, recipe.seed)
    context = PreflightContext(
        recipe,
        launch,
        backbone=backbone,
        model=model,
        examples=data.examples,
        held_out=held_out.examples,
        texts=texts,
        units=data.units if isinstance(data, PreparedUnits) else (),
    )
    checked = run_checks(context)
    items, limits = audited_items(work), recipe.data.audit
    examples = supervise_inputs(data.examples) if objective in TEXT_HEADS else data.examples
    findings = audit(read.rows, examples, items, held_out_rows, tokenizer, limits)
    findings = replace(findings, label_errors=read.label_errors)
    refuse_items(texts, items, limits.leakage)
    own = read.sources_of(sources)
    training_data = TrainingData(
        own, read.rows, read.replay, data, held_out_rows, held_out, read.weights
    )
    return PreparedTraining(model, training_data, texts, checked, findings, target)
