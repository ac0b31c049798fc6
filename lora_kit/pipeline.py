"""The main path, from recipe to release: the calls that the commands make and a script can make."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from lora_kit.adapters import adapter_sha256, attach, coverage
from lora_kit.arms import example_rows, loaded_arms
from lora_kit.backbone import load, resolve
from lora_kit.console import say
from lora_kit.data.dataset import prepare, training_rows, validation_rows
from lora_kit.data.tokenization import tokenize
from lora_kit.errors import RecipeError, ReleaseError
from lora_kit.evaluation.engine.run import stop_token_ids
from lora_kit.evaluation.engine.work import plan_work
from lora_kit.evaluation.harness import (
    Evaluation,
    Measurement,
    check_verdict,
    read_verdict,
    run_suites,
)
from lora_kit.evaluation.reporting.report import ReportFacts
from lora_kit.evaluation.suite import load_suites
from lora_kit.evaluation.verdict import Verdict
from lora_kit.files import whole_directory, write_json, write_text
from lora_kit.gguf import file_sha256
from lora_kit.merging.stream import MergePlan, MergeResult, merge_stream
from lora_kit.merging.verify import Verification, verify_merged
from lora_kit.preflight.checks import Situation, run_checks
from lora_kit.processes import process_state
from lora_kit.recipe import ArmName, BackboneSpec, Recipe
from lora_kit.releasing.card import model_card
from lora_kit.releasing.gate import MERGE_RECORD, STATUS, clear
from lora_kit.releasing.manifest import MANIFEST, verify_manifest, write_manifest
from lora_kit.run import RunDirectory, peak_memory, shared_run_directory, start_record, versions
from lora_kit.session import Session, open_run, open_subject
from lora_kit.training.plot import plot_training
from lora_kit.training.trainer import TrainingResult
from lora_kit.training.trainer import train as train_adapter

COMPARED_ROWS = 24


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    session: Session
    result: TrainingResult


@dataclass(frozen=True)
class Merged:
    """A merged model and how it compares with what was measured."""

    directory: Path
    result: MergeResult
    verification: Verification


def train(recipe: Recipe, output: Path | None = None, overwrite: bool = False) -> Trained:
    """Train a recipe's adapter into a new run directory.

    Args:
        recipe: what to do.
        output: the run directory; by default `runs/NAME`, numbered if there is one.
        overwrite: whether `output` may hold an earlier run.

    Raises:
        LoraKitError: if anything is refused; nothing is trained then.
    """
    run = shared_run_directory(recipe, output, overwrite)
    suites = load_suites(recipe.evaluation.suites)
    backbone = load(resolve(recipe.backbone), recipe.backbone)
    # Read before the training, so that a mistake in them does not cost one.
    shots = recipe.evaluation.shots if "fewshot" in recipe.evaluation.arms else 0
    plan_work(suites, backbone, shots, example_rows(recipe) if shots else ())
    rows, replay = training_rows(recipe.data, recipe.seed)
    data = prepare(rows, backbone.tokenizer, recipe.data, replay)
    held_out = prepare(validation_rows(recipe.data, recipe.seed), backbone.tokenizer, recipe.data)
    model = attach(backbone, recipe.adapter, recipe.seed)
    covered = coverage(model)
    for warning in run_checks(
        Situation(recipe, backbone=backbone, model=model, examples=data.examples)
    ).warnings:
        say(warning)
    say(
        f"{run.root}: {data.counts.used} rows, {data.counts.tokens} tokens, "
        f"{data.counts.supervised_tokens} supervised, {data.counts.truncated} cut, "
        f"{data.counts.dropped} dropped; {covered.trainable_parameters:,} of "
        f"{covered.total_parameters:,} parameters are trained"
    )
    is_main = process_state().is_main_process
    if is_main:
        for stale in (run.evaluation, run.merged, run.scratch, run.release):
            # Of an earlier run that --overwrite gave up: its verdict is not this adapter's.
            shutil.rmtree(stale, ignore_errors=True)
        start_record(run, recipe, backbone, "train")
        run.update_record(
            data=data.counts.to_dict() | {"digest": data.digest},
            coverage=covered.to_dict(),
            suites={suite.name: suite.digest for suite in suites},
        )
    result = train_adapter(recipe, backbone, model, data, held_out, run)
    if is_main:
        validation = (result.validation_before, result.validation_after)
        plot_training(result.history, validation, run.training_plot)
        run.update_record(training=result.to_dict())
    return Trained(Session(run, recipe, backbone, model), result)


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
        backbone: of an adapter that another tool made; by default what the adapter says.
        output: where the results go; by default `evaluation/` in the run or the adapter, and
            `evaluation-SUITE/` for other suites than the recipe's, so that a run keeps the verdict
            that its release stands on.
        arms: besides those of the run's recipe (by default `base` and `adapter`).
        fresh: measure everything again.

    Raises:
        LoraKitError: if the target is neither, or anything in it is refused.
    """
    chosen = load_suites(suites) if suites else None
    unknown = sorted(set(arms) - set(get_args(ArmName)))
    if unknown:
        raise RecipeError(f"arm {unknown[0]}: possible: {', '.join(get_args(ArmName))}")
    subject = open_subject(target, backbone)
    directory = output or subject.output
    if chosen and not output:
        directory = directory.with_name("-".join(["evaluation", *(s.name for s in chosen)]))
    names = list(dict.fromkeys([*subject.spec.arms, *arms]))
    recipe = subject.session.recipe if subject.session else None
    return run_suites(
        Measurement(
            backbone=subject.backbone,
            adapter=subject.adapter,
            suites=chosen or load_suites(subject.spec.suites),
            models=loaded_arms(subject, names),
            directory=directory,
            facts=ReportFacts(
                subject.title,
                {
                    **subject.facts,
                    "Arms": ", ".join(names),
                    "Date": datetime.now(UTC).date().isoformat(),
                },
            ),
            shots=subject.spec.shots if "fewshot" in names else 0,
            training=example_rows(recipe)
            if recipe and {"fewshot", "retrieval"} & set(names)
            else (),
            retrieval="retrieval" in names,
            fresh=fresh,
        )
    )


def merge(target: Path | Session, output: Path | None = None) -> Merged:
    """Merge a run's adapter into its backbone and compare the result with what was measured.

    Args:
        target: a run directory or an open session.
        output: where the model goes; by default `merged/` in the run.

    Raises:
        LoraKitError: if the run cannot be merged.
    """
    session = target if isinstance(target, Session) else open_run(target)
    directory = output or session.run.merged
    backbone, recipe = session.backbone, session.recipe
    plan = MergePlan(
        base=backbone.files.directory,
        adapter=session.run.adapter,
        quantization=recipe.backbone.quantization,
        dtype=str(backbone.spec.dtype),
        quantized_modules=backbone.quantized_modules,
        into=recipe.merge.base,
        shard_bytes=int(recipe.merge.shard_size * 1e9),
        stop_token_ids=stop_token_ids(backbone),
    )
    # Before the merge: what cannot be compared is not worth writing.
    held_out = validation_rows(recipe.data, recipe.seed)
    rows = held_out or training_rows(recipe.data, recipe.seed)[0]
    examples = [
        tokenize(row, backbone.tokenizer, recipe.data.max_length) for row in rows[:COMPARED_ROWS]
    ]
    if output is None:
        shutil.rmtree(directory, ignore_errors=True)
    result = merge_stream(plan, directory)
    verification = verify_merged(backbone, session.model, directory, examples)
    write_json(
        directory / MERGE_RECORD,
        {
            "backbone": backbone.fingerprint.digest,
            "adapter": adapter_sha256(session.run.adapter),
            "files": {path.name: file_sha256(path) for path in sorted(directory.iterdir())},
            "into": plan.into,
            "dtype": plan.dtype,
            **result.to_dict(),
            "compared_on": "held-out rows" if held_out else "training rows",
            "verification": verification.to_dict(),
        },
    )
    say(
        f"{directory}: {result.merged} modules merged in {result.seconds:.1f} s; same most likely "
        f"token at {verification.top1_agreement:.1%}, KL {verification.mean_kl:.1e} nats "
        f"(base without adapter: {verification.control_mean_kl:.1e})"
    )
    return Merged(directory, result, verification)


def release(run_directory: Path, output: Path | None = None) -> Path:
    """Release a run that passed: merged model, adapter, evaluation, card and manifest.

    Args:
        run_directory: of a run that was evaluated and merged.
        output: the release directory; by default `release/` in the run.

    Returns:
        The release directory.

    Raises:
        ReleaseError: if the run did not pass, with the reasons.
    """
    run = RunDirectory(run_directory)
    recipe = run.load_recipe()
    clearance = clear(run)
    directory = output or run.release
    if output is not None and output.exists() and any(output.iterdir()):
        raise ReleaseError(f"{output}: is there already and not empty", status=2)
    with whole_directory(directory) as temporary:
        shutil.copytree(run.merged, temporary, dirs_exist_ok=True)
        for part in (run.adapter, run.evaluation):
            shutil.copytree(part, temporary / part.name)
        shutil.copy2(run.recipe, temporary / run.recipe.name)
        write_text(temporary / "README.md", model_card(recipe, clearance, run))
        write_manifest(
            temporary,
            {
                "name": recipe.name,
                "backbone": clearance.verdict["backbone"],
                "decision": clearance.verdict["decision"],
                "seed": recipe.seed,
                "versions": versions(),
            },
        )
    return directory


def verify(directory: Path) -> str:
    """Check a release against its manifest, or a run's verdict against its ledger.

    Returns:
        What was found to be in order.

    Raises:
        LoraKitError: naming what is not.
    """
    if (directory / MANIFEST).is_file():
        count = verify_manifest(directory)
        return f"{count} files are what was released, and the verdict follows from the ledger"
    run = RunDirectory(directory)
    run.load_recipe()
    check_verdict(run.evaluation)
    decision = read_verdict(run.evaluation)["decision"]
    return f"the verdict, {decision}, follows from the ledger"


@dataclass(frozen=True)
class Outcome:
    """A whole run.

    Attributes:
        verdict: of the evaluation.
        release: the release directory; `None` where the run did not pass.
        refusal: why it was not released; empty where it was.
        status: the exit status that says the same.
        peak_memory: resident bytes of this process at most.
    """

    directory: Path
    verdict: Verdict
    release: Path | None
    refusal: str
    status: int
    peak_memory: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "run": str(self.directory),
            "verdict": self.verdict.to_dict(),
            "release": str(self.release) if self.release else None,
            "refusal": self.refusal,
            "peak_memory": self.peak_memory,
        }


def run(recipe: Recipe, output: Path | None = None, overwrite: bool = False) -> Outcome:
    """Recipe to release: train, evaluate, merge, and release what passes.

    Raises:
        LoraKitError: if a stage refuses its input.
    """
    trained = train(recipe, output, overwrite)
    session = trained.session
    is_main, is_arm = process_state().is_main_process, "merged" in recipe.evaluation.arms
    if is_main and is_arm:
        merge(session)
    process_state().wait_for_everyone()
    verdict = evaluate(session).verdict
    released, refusal, status = None, "", STATUS[verdict.decision]
    if is_main:
        if not is_arm:
            merge(session)
        try:
            released = release(session.run.root)
        except ReleaseError as error:
            refusal, status = str(error), error.status
        session.run.update_record(
            finished=datetime.now(UTC).isoformat(timespec="seconds"), peak_memory=peak_memory()
        )
    process_state().wait_for_everyone()
    return Outcome(session.run.root, verdict, released, refusal, status, peak_memory())
