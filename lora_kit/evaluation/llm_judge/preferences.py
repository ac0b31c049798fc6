"""Scores of judge tasks: each arm's answers compared with those of the base, once all are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from lora_kit.evaluation.assembly import ResultPart
from lora_kit.evaluation.engine.journal import Journals
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.ledger import DRIFT, Entry
from lora_kit.evaluation.llm_judge.judgements import Judgement, Judgements
from lora_kit.evaluation.llm_judge.judges import OpenedJudge, check_judge, find_judge
from lora_kit.evaluation.llm_judge.labelled_pairs import (
    LabelledPair,
    measure_accuracy,
    read_labelled_pairs,
    to_label_path,
    write_pairs_to_label,
)
from lora_kit.evaluation.llm_judge.prompts import AnswerPair
from lora_kit.evaluation.llm_judge.reliability import AGREES, UNREAD
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.thoughts import answer_behind_thought
from lora_kit.runtime.processes import process_state
from lora_kit.statistics.judged_preference import JudgeAccuracy

# An answer of an arm: arm and item.
AnswerId = tuple[str, str]


@dataclass(frozen=True)
class JudgedTask:
    """A judge task, with what its judge is asked about besides the answers.

    Attributes:
        work: items of the task.
        judge: the judge, which is not loaded yet.
        labelled: labelled pairs; none if the judge is not calibrated.
    """

    work: Work
    judge: OpenedJudge
    labelled: Sequence[LabelledPair]


@dataclass(frozen=True)
class Preferences:
    """Judgements on all answers.

    Attributes:
        judged: judgement of each answer, by name of suite and task.
        accuracy: agreement of each calibrated judge with its labelled pairs, by the same name.
    """

    judged: Mapping[str, Mapping[AnswerId, Judgement]] = field(default_factory=dict)
    accuracy: Mapping[str, JudgeAccuracy] = field(default_factory=dict)

    def score(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Yield entries with the scores of judge tasks; those without an answer have none."""
        for entry in entries:
            found = self.judged.get(f"{entry.suite}/{entry.task}")
            if found is None or entry.arm == DRIFT or entry.score is None:
                yield entry
            elif entry.arm == "base":
                yield replace(entry, score=0.5)
            elif (judgement := found.get((entry.arm, entry.item))) is None:
                yield replace(entry, score=None)
            else:
                measures = {AGREES: judgement.agrees, UNREAD: judgement.unread}
                measures = {**entry.measures, **measures}
                yield replace(entry, score=judgement.score, measures=measures)

    def calibrated(self, suites: Sequence[Suite]) -> list[Suite]:
        """Return the suites with the accuracy of their judges."""

        def task(suite: Suite, spec: TaskSpec) -> TaskSpec:
            accuracy = self.accuracy.get(f"{suite.name}/{spec.name}")
            if spec.judge is None or accuracy is None:
                return spec
            judge = spec.judge.model_copy(update={"accuracy": accuracy})
            return spec.model_copy(update={"judge": judge})

        return [
            suite.model_copy(update={"tasks": [task(suite, spec) for spec in suite.tasks]})
            for suite in suites
        ]


def judged_tasks(work: Sequence[Work], free: Callable[[], None]) -> list[JudgedTask]:
    """Find the judges of all tasks and read their labelled pairs, before anything is computed.

    Args:
        work: all tasks.
        free: function that frees the evaluated model, called before a local judge is loaded.

    Raises:
        LoraKitError: if a judge is not there, or a labelled pair is invalid.
    """
    found = []
    for one in work:
        spec = one.task.spec
        if spec.judge is not None:
            path = spec.judge.calibration
            labelled = [] if path is None else read_labelled_pairs(path, spec.name)
            found.append(JudgedTask(one, find_judge(spec.judge, free), labelled))
    return found


def check_judges(work: Sequence[Work]) -> None:
    """Look for the judges of all tasks and read their labelled pairs, before a training.

    Raises:
        LoraKitError: if a judge is not there, or a labelled pair is invalid.
    """
    for spec in (one.task.spec for one in work):
        if spec.judge is not None:
            check_judge(spec.judge)
            if spec.judge.calibration is not None:
                read_labelled_pairs(spec.judge.calibration, spec.name)


def judge_answers(
    directory: Path, tasks: Sequence[JudgedTask], parts: Sequence[ResultPart], no_cache: bool
) -> Preferences:
    """Ask the judges about all answers and labelled pairs; the processes share the work.

    Args:
        directory: directory of the evaluation, whose journals hold all answers.
        tasks: judge tasks.
        parts: results of the evaluation.
        no_cache: if true, ask again what an earlier evaluation has asked.

    Returns:
        The same on all processes.

    Raises:
        LoraKitError: if a judge cannot be loaded, or does not answer.
    """
    if not tasks:
        return Preferences()
    state, judgements = process_state(), Judgements(directory)
    if no_cache and state.is_main_process:
        judgements.discard()
    state.wait_for_everyone()
    judged, accuracy = {}, {}
    for task in tasks:
        pairs = _answer_pairs(directory, task, parts)
        wanted = [*pairs.values(), *(one.pair for one in task.labelled)]
        asked = [one for one in wanted if one.first.strip() != one.second.strip()]
        judgements.ask(task.judge, asked, task.work.name)
        found = judgements.read(task.judge, wanted)
        judged[task.work.name] = {answer: found[pair] for answer, pair in pairs.items()}
        if task.labelled:
            accuracy[task.work.name] = measure_accuracy(task.labelled, found)
        elif state.is_main_process:
            own = {item: pair for (arm, item), pair in pairs.items() if arm == "adapter"}
            differing = {i: p for i, p in own.items() if p.first.strip() != p.second.strip()}
            write_pairs_to_label(to_label_path(directory, task.work.name), differing)
    return Preferences(judged, accuracy)


def _answer_pairs(
    directory: Path, task: JudgedTask, parts: Sequence[ResultPart]
) -> dict[AnswerId, AnswerPair]:
    """Return the answers of base and arm, in this order, of each arm and item with both."""
    own = [part for part in parts if part.name == task.work.name and part.arm != DRIFT]
    opens = {item.id: item.opens_thought for item in task.work.task.items}
    with closing(Journals(directory, [part.key for part in own])) as journals:
        texts = {
            part.arm: {
                entry.item: (entry.prompt, _answer(entry.output, opens[entry.item]))
                for entry in journals.entries(part.key)
                if entry.score is not None
            }
            for part in own
        }
    base = texts.pop("base")
    return {
        (arm, item): AnswerPair(request, base[item][1], answer)
        for arm, answers in texts.items()
        for item, (request, answer) in answers.items()
        if item in base
    }


def _answer(output: str, opens_thought: bool) -> str:
    """Return the answer behind a thought; an empty one if the thought does not end."""
    return answer_behind_thought(output, opens_thought) or ""
