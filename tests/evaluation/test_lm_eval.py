import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_kit.backbone.load import Backbone
from lora_kit.evaluation.diagnostics import secondary_metrics
from lora_kit.evaluation.engine.scoring import until_stop_text
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.item import Item, Outcome, Task
from lora_kit.evaluation.lm_eval.requests import encode_pairs
from lora_kit.evaluation.lm_eval.source import lm_eval_environment
from lora_kit.evaluation.lm_eval.tasks import build_lm_eval
from lora_kit.evaluation.pairs import pair
from lora_kit.evaluation.requests import ChoiceRequest, GenerationRequest
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.runtime.errors import EvaluationError
from lora_kit.statistics.looks import Looks
from tests.evaluation.imported.logging_lm_eval import CHOICE

pytest.importorskip("lm_eval")

QUESTIONS = [
    {"question": "How many legs does a horse have?", "choices": ["two", "four"], "answer": 1},
    {"question": "Which is a colour?", "choices": ["green", "seven", "a cat"], "answer": 0},
    {"question": "Où est la tour Eiffel ? ", "choices": ["à Paris", "à Rome"], "answer": 0},
    {"question": "What is frozen water?", "choices": ["ice", "steam", "dust"], "answer": 0},
    {"question": "Two and two is", "choices": ["3", "4", "5", "many"], "answer": 1},
]
SENTENCES = [
    {
        "before": "Ann thanked Eve because ",
        "names": ["Ann", "Eve"],
        "after": "had helped.",
        "is": 1,
    },
    {"before": "The cup broke when the ", "names": ["cat", "rug"], "after": "jumped.", "is": 0},
]
SUMS = [
    {"sum": "2 + 3", "value": "5"},
    {"sum": "10 + 11", "value": "21"},
]
SENTENCE = CHOICE | {
    "doc_to_text": "{{is}}",
    "doc_to_choice": "{{[before + names[0], before + names[1]]}}",
    "doc_to_target": "{{after}}",
}
ADDITION = {
    "output_type": "generate_until",
    "doc_to_text": "What is {{sum}}?",
    "doc_to_target": "{{value}}",
    "generation_kwargs": {"until": ["\n", "What"], "max_gen_toks": 7},
    "filter_list": [
        {
            "name": "number",
            "filter": [
                {"function": "regex", "regex_pattern": "(\\d+)"},
                {"function": "take_first"},
            ],
        },
        {"name": "whole", "filter": [{"function": "take_first"}]},
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a task's YAML and JSON lines and returns the path."""

    def written(
        name: str, fields: dict[str, Any], rows: Sequence[dict[str, Any]], **more: Any
    ) -> Path:
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        dataset = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
        path = tmp_path / f"{name}.yaml"
        path.write_text(
            yaml.safe_dump({"task": name, "test_split": "test"} | dataset | fields | more)
        )
        return path

    return written


def spec_of(source: object, **fields: Any) -> TaskSpec:
    return TaskSpec.model_validate({"name": "t", "kind": "lm_eval", "source": str(source)} | fields)


def build(source: object, tokenizer: Any, shots: int = 0, seed: int = 0, **fields: Any) -> Task:
    return build_lm_eval(spec_of(source, **fields), tokenizer, seed, shots)


def with_start_token(tokenizer: Any) -> Any:
    """Return the tokenizer with a start token before every text."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    start = (other.bos_token, other.bos_token_id)
    other.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start[0]} $A", special_tokens=[start]
    )
    assert other("a")["input_ids"][0] == other.bos_token_id
    return other


def peer(backbone: Backbone, tokenizer: Any) -> Any:
    """Hugging Face model of lm-eval that records the token ids of its requests."""
    from lm_eval.models.huggingface import HFLM

    class Recording(HFLM):  # type: ignore[misc]
        asked: dict[tuple[str, str], tuple[list[int], list[int]]]

        def _loglikelihood_tokens(self, requests: Any, **options: Any) -> Any:
            self.asked = {texts: (context, rest) for texts, context, rest in requests}
            return super()._loglikelihood_tokens(requests, **options)

    return Recording(pretrained=backbone.model, tokenizer=tokenizer, batch_size=4)


def evaluate(model: Any, path: Path, shots: int | None = None) -> list[dict[str, Any]]:
    """Return the samples that lm-eval logs for each document."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    results = lm_eval.simple_evaluate(
        model=model,
        tasks=[str(path)],
        num_fewshot=shots,
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    assert results is not None
    samples: list[dict[str, Any]] = results["samples"][path.stem]
    return samples


def choice_ids(item: Item) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return context and continuation of each branch, split as in lm-eval."""
    assert isinstance(item.request, ChoiceRequest)
    prompt = item.request.prompt_ids
    rows = [((*prompt, *branch.input_ids), branch.scored) for branch in item.request.branches]
    return [(row[:-scored], row[-scored:]) for row, scored in rows]


@pytest.mark.parametrize("start_token", [False, True])
@pytest.mark.parametrize(
    ("fields", "rows", "shots"),
    [(CHOICE, QUESTIONS, 0), (CHOICE, QUESTIONS, 2), (SENTENCE, SENTENCES, 0)],
)
def test_choices_are_the_tokens_and_the_scores_of_lm_eval(
    fields: dict[str, Any],
    rows: list[dict[str, Any]],
    shots: int,
    start_token: bool,
    tiny_backbone: Backbone,
    write: Write,
) -> None:
    tokenizer = tiny_backbone.tokenizer
    tokenizer = with_start_token(tokenizer) if start_token else tokenizer
    path = write("task", fields, rows)
    model = peer(tiny_backbone, tokenizer)
    samples = evaluate(model, path, shots)
    for metric in ("acc", "acc_norm"):
        task = build(path, tokenizer, shots, metric=metric)
        assert [item.id for item in task.items] == [f"task/{n}" for n in range(len(rows))]
        for item, sample in zip(task.items, samples, strict=True):
            asked = [model.asked[texts] for texts in sample["arguments"]]
            assert choice_ids(item) == [(tuple(a), tuple(b)) for a, b in asked]
            responses = [responses[0] for responses in sample["resps"]]
            log_likelihoods, greedy = zip(*responses, strict=True)
            graded = task.grade(item, Outcome(log_likelihoods, greedy))
            assert graded.score == sample[metric]
            (other,) = {"acc", "acc_norm"} - {metric}
            assert graded.measures == {other: sample[other]}
            assert item.answer is not None
            assert (graded.output == item.choices[item.answer]) == bool(graded.score)


def test_contexts_that_differ_share_their_start(tokenizer: Any, write: Write) -> None:
    item = build(write("task", SENTENCE, SENTENCES), tokenizer).items[0]
    assert isinstance(item.request, ChoiceRequest)
    # The spaces before a word belong to its token.
    assert tokenizer.decode(item.request.prompt_ids) == "Ann thanked Eve because"
    branches = [tokenizer.decode(branch.input_ids) for branch in item.request.branches]
    assert branches == [" Ann had helped.", " Eve had helped."]
    assert {branch.scored for branch in item.request.branches} == {
        len(tokenizer(" had helped.")["input_ids"])
    }
    assert item.choices[1] == item.reference == "Ann thanked Eve because Eve"
    assert item.prompt == "Ann thanked Eve because Ann\nAnn thanked Eve because Eve"


@pytest.mark.parametrize("start_token", [False, True])
def test_pairs_are_encoded_as_by_the_hugging_face_model(
    start_token: bool, tiny_backbone: Backbone
) -> None:
    from lm_eval.api.instance import Instance

    tokenizer = tiny_backbone.tokenizer
    tokenizer = with_start_token(tokenizer) if start_token else tokenizer
    start = tokenizer.bos_token
    pairs = [
        ("Is water wet?", " yes"),
        ("Is water wet? ", "yes"),
        ("Is water wet?\n\n", "yes"),
        ("Is wat", "er wet?"),
        ("", " yes"),
        ("", f"{start}yes"),
        (f"{start}user\nhello", " you"),
    ]
    model = peer(tiny_backbone, tokenizer)
    instances = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    model.loglikelihood(instances, disable_tqdm=True)
    assert encode_pairs(pairs, tokenizer) == [model.asked[pair] for pair in pairs]


def test_a_continuation_that_melts_into_its_context_is_refused(tokenizer: Any) -> None:
    with pytest.raises(EvaluationError, match=r"without a token of its own \(got 'er' after"):
        encode_pairs([("Wat", "er")], tokenizer)


def test_contexts_without_a_common_start_get_one_and_it_is_said(
    tokenizer: Any, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [SENTENCES[0] | {"before": ""}, SENTENCES[1]]
    item = build(write("task", SENTENCE, rows), tokenizer).items[0]
    assert isinstance(item.request, ChoiceRequest)
    assert item.request.prompt_ids == (tokenizer.bos_token_id,)
    assert "1 of 2 items have contexts without a common start" in capsys.readouterr().err


def test_generated_text_is_filtered_and_graded_as_by_lm_eval(
    tiny_backbone: Backbone, write: Write
) -> None:
    path = write("task", ADDITION, SUMS)
    samples = evaluate(peer(tiny_backbone, tiny_backbone.tokenizer), path)
    task = build(path, tiny_backbone.tokenizer)
    for item in task.items:
        by_filter = {s["filter"]: s for s in samples if f"task/{s['doc_id']}" == item.id}
        text = by_filter["whole"]["resps"][0][0]
        graded = task.grade(item, Outcome(text=text))
        assert graded.output == text
        assert graded.score == by_filter["number"]["exact_match"]
        assert graded.measures["exact_match,whole"] == by_filter["whole"]["exact_match"]


@pytest.mark.parametrize("metric", [None, "exact_match,whole"])
def test_the_score_is_no_secondary_metric(metric: str | None, tokenizer: Any, write: Write) -> None:
    path = write("task", ADDITION, SUMS)
    task = build(path, tokenizer, metric=metric)
    work = Work(Suite(name="s", role="gain", tasks=[task.spec]), task, (), "")
    entries = {
        item.id: work.entry("base", item, task.grade(item, outcome), outcome)
        for item in task.items
        for outcome in [Outcome(text="5", cut_off=(True,))]
    }
    look = Looks.fixed(0.025).look(1)
    found = secondary_metrics(pair(entries, entries, task.spec, "here"), task.spec, look)
    other = "exact_match,whole" if metric is None else "exact_match,number"
    assert [(one.name, one.base) for one in found] == [("cut_off_answers", 1.0), (other, 0.5)]


def test_a_generation_ends_at_the_stops_of_the_task(tokenizer: Any, write: Write) -> None:
    task = build(write("task", ADDITION, SUMS), tokenizer, metric="exact_match,whole")
    item = task.items[0]
    assert item.request == GenerationRequest(
        tuple(tokenizer("What is 2 + 3?")["input_ids"]), 7, ("\n", "What")
    )
    assert item.references == ("5",)
    text = until_stop_text("5\nWhat is 3 + 3?", item.request.stop)
    assert task.grade(item, Outcome(text=text)).score == 1
    graded = task.grade(item, Outcome(text="It is 5. What"))
    assert graded.score == 0
    assert graded.measures == {"exact_match,number": 1.0}


def test_an_outcome_can_be_graded_again(tokenizer: Any, write: Write) -> None:
    task = build(write("task", ADDITION, SUMS), tokenizer)
    scores = [task.grade(task.items[0], Outcome(text=text)).score for text in ("5", "6", "5")]
    assert scores == [1, 0, 1]


def test_sampling_is_replaced_by_greedy_generation_and_that_is_said(
    tokenizer: Any, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"generation_kwargs": {"until": [], "do_sample": True, "temperature": 0.7}}
    task = build(write("task", ADDITION | options, SUMS, repeats=3), tokenizer)
    assert task.grade(task.items[0], Outcome(text="5")).score == 1
    said = capsys.readouterr().err
    assert "2 of 2 items use sampling or beam search in lm-eval" in said
    assert "2 of 2 items are generated several times in lm-eval" in said


def test_a_limit_picks_the_same_documents_each_time(tokenizer: Any, write: Write) -> None:
    path = write("task", CHOICE, QUESTIONS)
    whole = {item.id: item.prompt for item in build(path, tokenizer).items}
    picked = [
        {item.id: item.prompt for item in build(path, tokenizer, seed=seed, limit=3).items}
        for seed in (3, 3, 5)
    ]
    assert picked[0] == picked[1] != picked[2]
    assert all(len(some) == 3 and some.items() <= whole.items() for some in picked)


@pytest.mark.slow
def test_the_tasks_of_a_group_are_pooled(tokenizer: Any, write: Write, tmp_path: Path) -> None:
    write("horses", CHOICE, QUESTIONS[:3])
    write("water", CHOICE, QUESTIONS[3:])
    group = tmp_path / "quiz.yaml"
    group.write_text(yaml.safe_dump({"group": "quiz", "task": ["horses", "water"]}))
    task = build(group, tokenizer)
    assert Counter(item.slices["subtask"] for item in task.items) == {"horses": 3, "water": 2}
    assert [item.id for item in task.items][3:] == ["water/0", "water/1"]
    assert len({item.cluster for item in task.items}) == 5
    item = task.items[4]
    graded = task.grade(item, Outcome((-9.0, -1.0, -2.0, -3.0), (False,) * 4))
    assert (graded.score, graded.output) == (1, "4")


def test_clusters_and_slices_are_fields_of_the_documents(tokenizer: Any, write: Write) -> None:
    rows = [row | {"page": n // 2} for n, row in enumerate(QUESTIONS)]
    path = write("task", CHOICE, rows)
    task = build(path, tokenizer, cluster="page", slices=["answer"])
    assert [item.cluster for item in task.items] == ["0", "0", "1", "1", "2"]
    assert task.items[0].slices == {"answer": "1"}
    with pytest.raises(
        EvaluationError, match=r"cluster: no such field .*\(got chapter\)\. Fix: use question,"
    ):
        build(path, tokenizer, cluster="chapter")


def test_a_task_with_a_fixed_number_of_shots_takes_no_other(tokenizer: Any, write: Write) -> None:
    path = write("task", CHOICE, QUESTIONS, num_fewshot=1)
    assert build(path, tokenizer).items[0].prompt.count("Question:") == 2
    assert build(path, tokenizer, shots=3).items[0].prompt.count("Question:") == 4
    with pytest.raises(EvaluationError, match="shots: the lm-eval task takes none"):
        build(write("none", CHOICE, QUESTIONS, num_fewshot=0), tokenizer, shots=3)


@pytest.mark.parametrize(
    ("changed", "options", "reason"),
    [
        ({}, {"metric": "f1"}, "(got 'f1'). Fix: use acc, acc_norm"),
        ({}, {"metric": "acc,strict"}, "(got 'strict'). Fix: use none"),
        ({}, {"lower_is_better": True}, "write `lower_is_better: false`"),
        (
            {},
            {"max_length": 12},
            "2 of 5 items are longer than 12 tokens (got up to 16)",
        ),
        (
            {"metric_list": [CHOICE["metric_list"][0] | {"metric": "made_up"}]},
            {},
            "code from a hub, which is not run (got made_up)",
        ),
        (
            {"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": False}]},
            {},
            "write `lower_is_better: true`",
        ),
        (
            {"metric_list": [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}]},
            {},
            "not a mean of item scores",
        ),
        ({"output_type": "loglikelihood_rolling", "metric_list": None}, {}, "kind: loss"),
        ({"unsafe_code": True}, {}, "runs generated code, which is not supported"),
        ({"dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}}, {}, "connect to a network"),
        ({"doc_to_text": "{{question.nothing()}}"}, {}, "cannot run the task (got UndefinedError"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_the_reason(
    changed: dict[str, Any], options: dict[str, Any], reason: str, tokenizer: Any, write: Write
) -> None:
    path = write("task", CHOICE, QUESTIONS, **changed)
    with pytest.raises(EvaluationError, match="task t: ") as refused:
        build(path, tokenizer, **options)
    assert reason in str(refused.value)


def test_mutual_information_is_left_out(tokenizer: Any, write: Write) -> None:
    metrics = [{"metric": "acc_mutual_info"}, *CHOICE["metric_list"]]  # type: ignore[misc]
    path = write("task", CHOICE, QUESTIONS, metric_list=metrics)
    task = build(path, tokenizer)
    assert set(task.grade(task.items[0], Outcome((-1.0, -2.0), (True, False))).measures) == {
        "acc_norm"
    }
    with pytest.raises(
        EvaluationError, match=r"\(got 'acc_mutual_info'\)\. Fix: use acc, acc_norm"
    ):
        build(path, tokenizer, metric="acc_mutual_info")


def test_nothing_but_errors_is_printed(
    tokenizer: Any, write: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    build(write("task", CHOICE, QUESTIONS, num_fewshot=1), tokenizer)
    assert capfd.readouterr() == ("", "")


def test_a_task_gets_no_code_from_a_hub_and_leaves_the_generators_alone() -> None:
    import evaluate

    load, state = evaluate.load, random.getstate()
    with lm_eval_environment():
        with pytest.raises(EvaluationError, match="rouge: a metric that is code from a hub"):
            evaluate.load("rouge")
        random.random()
    assert evaluate.load is load
    assert random.getstate() == state


@pytest.mark.slow
def test_an_unknown_task_names_those_near_it(tokenizer: Any) -> None:
    with pytest.raises(
        EvaluationError, match=r"source: .*\(got helaswag\)\. Fix: use one of hellaswag"
    ):
        build("helaswag", tokenizer)
    with pytest.raises(EvaluationError, match="no such file"):
        build("mine.yaml", tokenizer)


def test_without_lm_eval_the_error_says_what_to_install(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(EvaluationError, match=r"pip install 'lora-kit\[lm-eval\]'"):
        build("hellaswag", tokenizer)


def test_every_task_of_the_bundled_suite_is_one_of_lm_eval() -> None:
    import lm_eval.tasks

    suite = Suite.load("hub-retention")
    assert {task.kind for task in suite.tasks} == {"lm_eval"}
    # Only the folders of these tasks: reading the package's 15,000 files takes 8 s.
    folder = Path(lm_eval.tasks.__file__).parent
    folders = {str(folder / task.source.partition("_")[0]) for task in suite.tasks}
    manager = lm_eval.tasks.TaskManager(include_path=sorted(folders), include_defaults=False)
    assert {task.source for task in suite.tasks} <= set(manager.all_tasks)
    assert all(task.rationale for task in suite.tasks)
