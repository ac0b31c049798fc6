"""Adapter -> verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import get_args

from lora_kit.data.rows import Row
from lora_kit.data.training_data import TrainingData
from lora_kit.evaluation.agreement import OtherEngine
from lora_kit.evaluation.arm_names import FILE_SEPARATOR, is_file_arm
from lora_kit.evaluation.arms.embedding import embedding_facts, loaded_embedding_arms
from lora_kit.evaluation.arms.files import (
    CONTROL_KINDS,
    KINDS,
)
from lora_kit.evaluation.arms.masked import (
    loaded_masked_arms,
    masked_facts,
    pseudo_perplexities,
)
from lora_kit.evaluation.arms.models import loaded_arms, merged_facts
from lora_kit.evaluation.arms.quantized import loaded_quantized, quantized_facts
from lora_kit.evaluation.arms.reward_model import loaded_reward_arms, reward_facts
from lora_kit.evaluation.arms.text_heads import head_facts, loaded_head_arms
from lora_kit.evaluation.arms.vllm import Vllm, answered_by_vllm, loaded_vllm_arms
from lora_kit.evaluation.engine.arm import LoadedArms
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.engine.work import Work, suites_of
from lora_kit.evaluation.harness import (
    EvaluatedBackbone,
    Evaluation,
    EvaluationPlan,
    run_evaluation,
)
from lora_kit.evaluation.llm_judge.preferences import judged_tasks
from lora_kit.evaluation.reporting.report import ReportFacts
from lora_kit.evaluation.stopping import Stopping
from lora_kit.evaluation.suite import Suite, load_suites
from lora_kit.evaluation.thoughts import Thinking
from lora_kit.pipeline.plain_arm import plain_arm
from lora_kit.pipeline.shipped_arms import SERVED_ARM, TRANSFORMERS, Programs, ShippedArms
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.sections import (
    FEWSHOT,
    PLAIN,
    PROBE,
    RETRIEVAL,
    SCRATCH,
    ArmName,
    EngineName,
    EvaluationSpec,
    StoppingName,
)
from lora_kit.runs.session import (
    Session,
    Subject,
    close_session,
    evaluation_gpus,
    open_subject,
)
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import EvaluationError, RecipeError
from lora_kit.runtime.launch import needs_one_process
from lora_kit.runtime.processes import continue_alone
from lora_kit.runtime.vllm import find_vllm
from lora_kit.training.head_rows.label_errors import label_error_facts
from lora_kit.training.rows_of_run import require_trained_on, rows_of_run
from lora_kit.training.scratch import scratch_arm

# Arms that are shown rows of the training, and all arms that learn from them.
EXAMPLE_ARMS = {FEWSHOT, RETRIEVAL}
LEARNING_ARMS = EXAMPLE_ARMS | {SCRATCH, PROBE}


def evaluate(
    target: Path | Session,
    suites: Sequence[str] | None = None,
    backbone: BackboneSpec | None = None,
    output: Path | None = None,
    arms: Sequence[str] = (),
    no_cache: bool = False,
    work: Sequence[Work] | None = None,
    gpus: int | None = None,
    stopping: StoppingName | None = None,
    programs: Programs = TRANSFORMERS,
    thinking: int | None = None,
) -> Evaluation:
    """Evaluate a run, or any PEFT adapter directory, against its base.

    Under FSDP and ZeRO-3, and on GPUs with `evaluation.gpus` above 1, the main process evaluates
    alone and the other processes of the launch end here, with status 0.

    Results that exist and still apply are reused, after an interruption or when an arm is added.

    Args:
        target: a run directory, an adapter directory, or an open session.
        suites: bundled names or paths; by default those of the run's recipe.
        backbone: backbone of an adapter; its fields override what the adapter records.
        output: directory of the results; by default `evaluation/` in the run or the adapter, and
            `evaluation-SUITE/` or `evaluation-ENGINE/` for other suites, or another engine, than
            the recipe's, so that a run keeps the verdict for its release.
        arms: further arms besides those of the run's recipe (by default `base` and `adapter`),
            exported files as `gguf=FILE`, the base in the same file type as `base-gguf=FILE`, and
            a server's model as `served=URL`.
        no_cache: if true, ignore existing results.
        work: tokenized items of the recipe's suites, if an earlier stage has prepared them.
        gpus: overrides the recipe's `evaluation.gpus`; ignored for an open session.
        stopping: overrides the recipe's `evaluation.stopping`.
        programs: programs that answer in place of transformers.
        thinking: overrides the recipe's `evaluation.thinking`: tokens of a thought, 0 for none.

    Raises:
        LoraKitError: if the target is neither a run nor an adapter, or is refused.
    """
    chosen = load_suites(suites) if suites else None
    arms, shipped = _split_arms(arms, programs)
    given = None if isinstance(target, Session) else gpus
    if needs_one_process(given or evaluation_gpus(target)):
        close_session(target)
        continue_alone()
    subject = open_subject(target, backbone, gpus)
    engine = programs.engine or subject.spec.engine
    vllm = _vllm(engine, programs)
    cut = Stopping.of(subject.spec if stopping is None else _stopped(subject.spec, stopping))
    own_arms = subject.spec.arms if vllm is None else answered_by_vllm(subject.spec.arms)
    names = list(dict.fromkeys([*own_arms, *arms]))
    rows = _training_rows(subject, names)
    is_shown = subject.session is not None and not EXAMPLE_ARMS.isdisjoint(names)
    shown = rows().sources if is_shown else ()
    own = Thinking.of(subject.spec)
    thoughts = own if thinking is None else Thinking(thinking)
    if work is None or chosen or (cut, thoughts) != (Stopping.of(subject.spec), own):
        work = _planned_work(subject, chosen, FEWSHOT in names, shown, cut, thoughts)
    if vllm is None:
        models, facts = _answering(subject, names, rows)
    else:
        models, facts = loaded_vllm_arms(subject, names, work, vllm), {"Engine": vllm.version}
    judged = judged_tasks(work, subject.close)
    other = next(name for name in get_args(EngineName) if name != engine)
    models += shipped.loaded(subject, work)
    facts |= label_error_facts(subject.session.run if subject.session else None)
    facts |= {**shipped.facts, **thoughts.facts, "Arms": ", ".join([*names, *shipped.names])}
    plan = EvaluationPlan(
        backbone=EvaluatedBackbone.of(subject.backbone),
        adapter=subject.adapter,
        suites=suites_of(work),
        models=models,
        directory=output or _directory(subject, chosen, engine, thoughts),
        facts=ReportFacts.dated(subject.title, {**subject.facts, **facts}),
        training=shown,
        retrieval=RETRIEVAL in names,
        no_cache=no_cache,
        stopping=cut,
        other=OtherEngine(other, _directory(subject, chosen, other, thoughts)),
        judged=judged,
    )
    is_masked = subject.backbone.head is not None and subject.backbone.head.kind == "mlm"
    evaluation = run_evaluation(plan, work)
    if is_masked:
        say("; ".join(pseudo_perplexities(evaluation.verdict)))
    return evaluation


def _split_arms(arms: Sequence[str], programs: Programs) -> tuple[list[str], ShippedArms]:
    """Tell arms by name from those that are files or served.

    Raises:
        RecipeError: if an arm is unknown.
    """
    files = [arm for arm in arms if is_file_arm(arm)]
    named = [arm for arm in arms if not is_file_arm(arm)]
    if unknown := sorted(set(named) - set(get_args(ArmName))):
        kinds = [f"{kind}{FILE_SEPARATOR}FILE" for kind in (*KINDS, *CONTROL_KINDS)]
        possible = ", ".join([*get_args(ArmName), *kinds, SERVED_ARM])
        raise RecipeError(f"arm {unknown[0]}: unknown. Fix: use {possible}")
    return named, ShippedArms.parse(files, programs)


def _vllm(engine: EngineName, programs: Programs) -> Vllm | None:
    """Find vLLM if it is the engine.

    Raises:
        RecipeError: if vLLM is named, and is not the engine.
        EvaluationError: if it cannot be found.
    """
    if engine == "vllm":
        return Vllm.of(find_vllm(programs.vllm, EvaluationError))
    if programs.vllm is not None:
        raise RecipeError(
            f"--vllm: has no effect without the engine (got {programs.vllm}). Fix: add --engine "
            "vllm"
        )
    return None


def _directory(
    subject: Subject, suites: Sequence[Suite] | None, engine: str, thinking: Thinking
) -> Path:
    """Return where results go: other suites, another engine or thoughts have their own place."""
    parts = [suite.name for suite in suites or ()]
    if engine != subject.spec.engine:
        parts.append(engine)
    if thinking != Thinking.of(subject.spec):
        parts.append("thinking" if thinking.tokens else "no-thinking")
    return subject.output.with_name("-".join(["evaluation", *parts]))


def _stopped(spec: EvaluationSpec, stopping: StoppingName) -> EvaluationSpec:
    return spec.model_copy(update={"stopping": stopping})


def _planned_work(
    subject: Subject,
    suites: Sequence[Suite] | None,
    with_shots: bool,
    shown: Sequence[Row],
    stopping: Stopping,
    thinking: Thinking,
) -> Sequence[Work]:
    """Tokenize the items of suites, by default the subject's, and name columns that are not used.

    Args:
        subject: subject of the evaluation.
        suites: other suites than the subject's.
        with_shots: true if an arm is shown examples.
        shown: training rows that examples are chosen from.
        stopping: cut of the items into looks.
        thinking: thinking before generated answers.
    """
    shots = subject.spec.shots if with_shots else 0
    chosen = suites or load_suites(subject.spec.suites)
    work = plan_work(chosen, subject.backbone, shots, shown, stopping, thinking)
    for one in work:
        if one.task.unused:
            say(f"{one.name}: columns that are not used: {', '.join(one.task.unused)}")
    return work


def _training_rows(subject: Subject, names: Sequence[str]) -> Callable[[], TrainingData]:
    """Return a function that reads the run's training rows when an arm first asks for them."""

    @cache
    def read() -> TrainingData:
        assert subject.session is not None  # an adapter alone has no such arm
        data = rows_of_run(subject.session)
        require_trained_on(subject.session, data, next(n for n in names if n in LEARNING_ARMS))
        return data

    return read


def _answering(
    subject: Subject, names: Sequence[str], rows: Callable[[], TrainingData]
) -> tuple[list[LoadedArms], dict[str, str]]:
    """Return the arms that are models, and what the report says of them."""
    head = subject.backbone.head
    if head is None:
        models = loaded_arms(subject, names)
        if subject.session and SCRATCH in names:
            # Merged models come last: the backbone's model is freed before one is loaded.
            models.insert(1, scratch_arm(subject.session, rows))
        models += loaded_quantized(subject, names)
        return models, {**merged_facts(subject, names), **quantized_facts(subject, names)}
    if head.kind == "reward":
        return loaded_reward_arms(subject, names), reward_facts(subject)
    if head.kind == "embedding":
        return [loaded_embedding_arms(subject, names)], embedding_facts(subject)
    if head.kind == "mlm":
        return loaded_masked_arms(subject, names), masked_facts(subject, names)
    models = loaded_head_arms(subject, names, rows)
    # Last, since they free the model of the other arms.
    if subject.session and SCRATCH in names:
        models.append(scratch_arm(subject.session, rows))
    if subject.session and PLAIN in names:
        models.append(plain_arm(subject.session))
    return models, head_facts(subject)
