"""Adapter to verdict."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from lora_kit.arms import example_rows, loaded_arms
from lora_kit.backbone_spec import BackboneSpec
from lora_kit.class_arms import class_facts, loaded_class_arms
from lora_kit.data.rows import Row
from lora_kit.errors import RecipeError
from lora_kit.evaluation.engine.arm import LoadedArms
from lora_kit.evaluation.harness import (
    Evaluation,
    Measurement,
    run_suites,
)
from lora_kit.evaluation.reporting.report import ReportFacts
from lora_kit.evaluation.suite import load_suites
from lora_kit.launch import require_whole
from lora_kit.recipe import ArmName
from lora_kit.reward_arms import loaded_reward_arms, reward_facts
from lora_kit.session import Session, Subject, open_subject
from lora_kit.trained_rows import same_rows


def evaluate(
    target: Path | Session,
    suites: Sequence[str] | None = None,
    backbone: BackboneSpec | None = None,
    output: Path | None = None,
    arms: Sequence[str] = (),
    fresh: bool = False,
) -> Evaluation:
    """Evaluate a run, or any PEFT adapter directory, against its base.

    What was measured before and has not changed is not measured again, be it that an evaluation was
    killed, or that an arm is added.

    Args:
        target: a run directory, an adapter directory, or an open session.
        suites: bundled names or paths; by default those of the run's recipe.
        backbone: of an adapter; what is set in it comes before what the adapter says.
        output: where the results go; by default `evaluation/` in the run or the adapter, and
            `evaluation-SUITE/` for other suites than the recipe's, so that a run keeps the verdict
            that its release stands on.
        arms: besides those of the run's recipe (by default `base` and `adapter`).
        fresh: measure everything again.

    Raises:
        LoraKitError: if the target is neither, or anything in it is refused.
    """
    require_whole("evaluate")
    chosen = load_suites(suites) if suites else None
    unknown = sorted(set(arms) - set(get_args(ArmName)))
    if unknown:
        raise RecipeError(f"arm {unknown[0]}: possible: {', '.join(get_args(ArmName))}")
    subject = open_subject(target, backbone)
    directory = output or subject.output
    if chosen and not output:
        directory = directory.with_name("-".join(["evaluation", *(s.name for s in chosen)]))
    names = list(dict.fromkeys([*subject.spec.arms, *arms]))
    models, facts = _answering(subject, names)
    return run_suites(
        Measurement(
            backbone=subject.backbone,
            adapter=subject.adapter,
            suites=chosen or load_suites(subject.spec.suites),
            models=models,
            directory=directory,
            facts=ReportFacts(
                subject.title,
                {
                    **subject.facts,
                    **facts,
                    "Arms": ", ".join(names),
                    "Date": datetime.now(UTC).date().isoformat(),
                },
            ),
            shots=subject.spec.shots if "fewshot" in names else 0,
            training=_shown(subject.session, names),
            retrieval="retrieval" in names,
            fresh=fresh,
        )
    )


def _shown(session: Session | None, names: Sequence[str]) -> Sequence[Row]:
    """Rows of the training that baselines answer by."""
    for arm in ("fewshot", "retrieval"):
        if session and arm in names:
            same_rows(session, arm)
            return example_rows(session.recipe)
    return ()


def _answering(subject: Subject, names: Sequence[str]) -> tuple[list[LoadedArms], dict[str, str]]:
    """The arms that are models, and what the report says of them besides."""
    head = subject.backbone.head
    if head is None:
        return loaded_arms(subject, names), {}
    if head.is_reward:
        return loaded_reward_arms(subject, names), reward_facts(subject)
    return loaded_class_arms(subject, names), class_facts(subject)
