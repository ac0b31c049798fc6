"""Conversion of lm-evaluation-harness tasks: documents, prompts and grading of lm-eval.

lm-eval builds the requests and grades the outcomes, so that scores equal those that lm-eval
reports. The outcomes come from the engine that evaluates all other tasks.
"""

from __future__ import annotations

import functools
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_kit.evaluation.cut_answers import grade_with_cuts
from lora_kit.evaluation.item import Item, Task
from lora_kit.evaluation.lm_eval.grading import grade_lm_eval, resolve_score_metric
from lora_kit.evaluation.lm_eval.requests import choice_request, generation_request
from lora_kit.evaluation.lm_eval.source import (
    explain_errors,
    lm_eval_environment,
    load_tasks,
    require_lm_eval,
)
from lora_kit.evaluation.requests import (
    ChoiceRequest,
    GenerationRequest,
    Request,
    prompt_and_answer_length,
)
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import EvaluationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_lm_eval(
    spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, seed: int, shots: int
) -> Task:
    """Build the items of a task, a group or a tag of lm-eval, or of a task's YAML file.

    Args:
        spec: task of kind `lm_eval`.
        tokenizer: tokenizer of the backbone.
        seed: seed of the selection of items, for a task with a limit.
        shots: solved examples before each item; 0 keeps the number of the lm-eval task.

    Raises:
        EvaluationError: if lm-eval has no such task, its data cannot be read, or it cannot be
            evaluated item by item.
    """
    place = f"task {spec.name}"
    require_lm_eval(place)
    notes: Counter[str] = Counter()
    with explain_errors(place), lm_eval_environment():
        tasks = load_tasks(spec)
        measure = resolve_score_metric(spec, tasks)
        for name, task in tasks.items():
            _set_shots(f"{place}: {name}", task, shots)
        items = [
            _item(spec, tasks, name, number, instances, tokenizer, notes)
            for name, numbers in _chosen(spec, tasks, seed).items()
            for number, instances in _requests(tasks[name], numbers)
        ]
    _refuse_long_items(spec, items)
    for note, count in sorted(notes.items()):
        say(f"{place}: {count} of {len(items)} items {note}")
    grade = grade_with_cuts(functools.partial(grade_lm_eval, tasks=tasks, measure=measure))
    return Task(spec, items, grade)


def _set_shots(place: str, task: Any, shots: int) -> None:
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    own = task.get_config("num_fewshot")
    if shots and own == 0:
        raise EvaluationError(
            f"{place}: shots: the lm-eval task takes none (got {shots}). Fix: remove `shots`"
        )
    task.set_config("num_fewshot", shots or own or 0)
    # lm-eval's default seed, so that shots and scores equal those that others report.
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)


def _chosen(spec: TaskSpec, tasks: Mapping[str, Any], seed: int) -> dict[str, list[int]]:
    """Return the numbers of the documents to evaluate, by task."""
    every = [(name, n) for name, task in tasks.items() for n in range(len(task.eval_docs))]
    if spec.limit is not None and spec.limit < len(every):
        picked = random.Random(f"{seed}/{spec.name}").sample(range(len(every)), spec.limit)
        every = [every[index] for index in sorted(picked)]
    numbers = defaultdict(list)
    for name, number in every:
        numbers[name].append(number)
    return numbers


def _requests(task: Any, numbers: Sequence[int]) -> list[tuple[int, list[Any]]]:
    """Return lm-eval's instances of each of these documents."""
    task.build_all_requests(samples=list(numbers))
    instances = defaultdict(list)
    for instance in task.instances:
        # doc_id is an index into `samples`, not into the task's documents.
        instances[numbers[instance.doc_id]].append(instance)
    return [(number, sorted(instances[number], key=lambda i: i.idx)) for number in numbers]


def _item(
    spec: TaskSpec,
    tasks: Mapping[str, Any],
    name: str,
    number: int,
    instances: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    notes: Counter[str],
) -> Item:
    task, doc, identifier = tasks[name], instances[0].doc, f"{name}/{number}"
    request = _request(identifier, instances, tokenizer, notes)
    choices, answer = _choices(task, doc, instances)
    target = task.doc_to_target(doc)
    targets = tuple(map(str, target if isinstance(target, list | tuple) else (target,)))
    slices = {field: _field(spec, "slices", doc, field) for field in spec.slices}
    if len(tasks) > 1:
        slices["subtask"] = name
    return Item(
        id=identifier,
        cluster=_field(spec, "cluster", doc, spec.cluster) if spec.cluster else identifier,
        prompt="\n".join(dict.fromkeys(str(instance.args[0]) for instance in instances)),
        reference=choices[answer] if answer is not None else "\n".join(targets),
        request=request,
        slices=slices,
        choices=choices,
        answer=answer,
        references=() if choices else targets,
        document=tuple(instances),
    )


def _request(
    identifier: str,
    instances: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    notes: Counter[str],
) -> ChoiceRequest | GenerationRequest:
    kinds = {instance.request_type for instance in instances}
    try:
        if kinds == {"loglikelihood"}:
            return choice_request([instance.args for instance in instances], tokenizer, notes)
        if kinds == {"generate_until"} and len(instances) == 1:
            if instances[0].repeats > 1:
                notes["are generated several times in lm-eval; here once, greedily"] += 1
            context, options = instances[0].args
            return generation_request(context, options, tokenizer, notes)
    except EvaluationError as error:
        raise EvaluationError(f"{identifier}: {error}") from error
    types = ", ".join(sorted(str(instance.request_type) for instance in instances))
    raise EvaluationError(
        f"{identifier}: an item needs either log-likelihoods or one generated text (got requests "
        f"{types}). Fix: use another task"
    )


def _choices(task: Any, doc: Any, instances: Sequence[Any]) -> tuple[tuple[str, ...], int | None]:
    """Return the texts of the choices and the index of the correct one, if it is unique."""
    if task.OUTPUT_TYPE != "multiple_choice":
        several = len(instances) > 1
        return tuple(str(i.args[1]).strip() for i in instances) if several else (), None
    choices = tuple(map(str, task.doc_to_choice(doc)))
    if task.config.process_results is not None:
        return choices, None  # only that function knows the correct choices
    answer = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    is_index = isinstance(answer, int) and 0 <= answer < len(choices)
    return choices, answer if is_index else None


def _field(spec: TaskSpec, option: str, doc: Any, field: str) -> str:
    if field not in doc:
        raise EvaluationError(
            f"task {spec.name}: {option}: no such field of the documents (got {field}). Fix: use "
            f"{', '.join(map(str, doc))}"
        )
    return str(doc[field])


def _refuse_long_items(spec: TaskSpec, items: Sequence[Item]) -> None:
    # lm-eval would cut the start of the prompt, and with it the shots and the instruction.
    lengths = [_length(item.request) for item in items]
    longer = sum(length > spec.max_length for length in lengths)
    if longer:
        raise EvaluationError(
            f"task {spec.name}: max_length: {longer} of {len(items)} items are longer than "
            f"{spec.max_length} tokens (got up to {max(lengths)}). Fix: write `max_length: "
            f"{max(lengths)}` if the backbone supports it, or use fewer shots"
        )


def _length(request: Request) -> int:
    """Return the number of tokens of the prompt and its longest choice."""
    prompt, answer = prompt_and_answer_length(request)
    return len(prompt) + (answer if isinstance(request, ChoiceRequest) else 0)
