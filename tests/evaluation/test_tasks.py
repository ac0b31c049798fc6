"""From a suite's YAML to items: sources, formats, shots, slices, and what is refused."""

import copy
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_kit.data.rows import Message
from lora_kit.data.supervision import IGNORE_INDEX
from lora_kit.evaluation.item import Outcome, Task
from lora_kit.evaluation.requests import ChoiceRequest, GenerationRequest, LossRequest
from lora_kit.evaluation.suite import SUITE_FOLDERS, Suite
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.tasks import build_task, selected_clusters
from lora_kit.metrics.load import load_metric
from lora_kit.recipe.bundled import bundled_names
from lora_kit.runtime.errors import DataError, EvaluationError, RecipeError

QUIZ = [
    {
        "id": f"q{n}",
        "question": f"{n}+1?",
        "choices": [str(n + 1), str(n)],
        "answer": 0,
        "set": n % 2,
    }
    for n in range(12)
]
LABELLED = [{"text": f"It is {word}.", "label": word} for word in ("good", "bad", "good", "odd")]


def spec(**fields: Any) -> TaskSpec:
    return TaskSpec.model_validate({"name": "t", **fields})


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def build(tokenizer: Any, **fields: Any) -> Task:
    return build_task(spec(**fields), tokenizer, 0)


def text(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids)))


def save_as(kind: str, folder: Path) -> str:
    import datasets

    table = datasets.Dataset.from_list(QUIZ)
    path = folder / f"quiz.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(QUIZ[0]))
            writer.writeheader()
            writer.writerows({**row, "choices": json.dumps(row["choices"])} for row in QUIZ)
    elif kind == "json":
        path.write_text(json.dumps(QUIZ))
    elif kind == "parquet":
        table.to_parquet(str(path))
    elif kind == "saved":
        datasets.DatasetDict({"test": table}).save_to_disk(str(path))
    else:
        lines(path, QUIZ)
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "saved"])
def test_a_quiz_is_the_same_from_any_table(tokenizer: Any, tmp_path: Path, kind: str) -> None:
    task = build(tokenizer, kind="multiple_choice", source=save_as(kind, tmp_path), slices=["set"])
    assert [item.id for item in task.items] == [f"q{n}" for n in range(12)]
    assert task.items[3].reference == "4"
    assert task.items[3].slices == {"set": "1"}
    assert isinstance(task.items[3].request, ChoiceRequest)
    assert text(tokenizer, task.items[3].request.prompt_ids) == "Question: 3+1?\nAnswer:"


def test_columns_template_and_cluster_are_the_users(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"ctx": f"c{n}", "endings": ["a", "b"], "gold": "b", "doc": n // 2} for n in range(4)]
    task = build(
        tokenizer,
        kind="multiple_choice",
        source=lines(tmp_path / "x.jsonl", rows),
        columns={"choices": "endings", "answer": "gold"},
        template="{ctx} =>",
        cluster="doc",
    )
    assert [item.cluster for item in task.items] == ["0", "0", "1", "1"]
    assert [item.answer for item in task.items] == [1] * 4
    assert task.items[0].prompt == "c0 =>"


def test_shots_are_items_that_are_not_evaluated(tokenizer: Any, tmp_path: Path) -> None:
    source = lines(tmp_path / "q.jsonl", QUIZ)
    task = build(tokenizer, kind="multiple_choice", source=source, shots=2)
    assert len(task.items) == 10
    (request,) = {type(item.request) for item in task.items}
    assert request is ChoiceRequest
    asked = {item.prompt for item in task.items}
    for item in task.items:
        assert isinstance(item.request, ChoiceRequest)
        shown, _, own = text(tokenizer, item.request.prompt_ids).rpartition("\n\n")
        assert own == item.prompt
        solved = shown.split("\n\n")
        assert len(solved) == 2
        for one in solved:
            question, _, answer = one.rpartition(" ")
            assert question not in asked
            assert answer == str(int(question.split()[1].split("+")[0]) + 1)
    again = build(tokenizer, kind="multiple_choice", source=source, shots=2, limit=10)
    assert [item.id for item in again.items] == [item.id for item in task.items]
    with pytest.raises(DataError, match="lower `shots`"):
        build(tokenizer, kind="multiple_choice", source=source, shots=12)


def test_the_same_items_are_chosen_with_and_without_shots(tokenizer: Any) -> None:
    plain, shown = (
        build(tokenizer, kind="loss", source="stdlib-docstrings", limit=5, shots=shots)
        for shots in (0, 2)
    )
    assert [item.id for item in plain.items] == [item.id for item in shown.items]
    for a, b in zip(plain.items, shown.items, strict=True):
        assert isinstance(a.request, LossRequest)
        assert isinstance(b.request, LossRequest)
        # Only the item's own answer counts, and it is the same tokens.
        scored = [
            [x for x in r.example.labels if x != IGNORE_INDEX] for r in (a.request, b.request)
        ]
        assert scored[0] == scored[1]
        assert b.request.length > a.request.length
    assert selected_clusters(plain.spec, 0) == [item.cluster for item in plain.items]


def test_a_choice_in_chat_form_follows_the_assistants_header(
    tokenizer: Any, tmp_path: Path
) -> None:
    source = lines(tmp_path / "q.jsonl", QUIZ[:1])
    task = build(tokenizer, kind="multiple_choice", source=source, chat=True, template="{question}")
    (item,) = task.items
    assert isinstance(item.request, ChoiceRequest)
    prompt = text(tokenizer, item.request.prompt_ids)
    assert prompt.endswith("<|im_start|>user\n0+1?<|im_end|>\n<|im_start|>assistant\n")
    assert text(tokenizer, item.request.branches[0].input_ids) == "1"


def test_labels_are_choices_of_every_row(tokenizer: Any, tmp_path: Path) -> None:
    source = lines(tmp_path / "l.jsonl", LABELLED)
    task = build(tokenizer, kind="classification", source=source)
    assert task.items[0].choices == ("bad", "good", "odd")
    assert [item.reference for item in task.items] == ["good", "bad", "good", "odd"]
    graded = task.grade(task.items[0], Outcome((-1.0, -2.0, -3.0), (False,) * 3))
    assert (graded.score, graded.output) == (0.0, "bad")
    with pytest.raises(DataError, match=r"l\.jsonl:4: label: not one of good, bad \(got 'odd'\)"):
        build(tokenizer, kind="classification", source=source, labels=["good", "bad"])


def test_the_ways_to_choose_differ_by_length(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"question": "?", "choices": ["yes", "a much longer answer"], "answer": 1}]
    source = lines(tmp_path / "q.jsonl", rows)
    outcome = Outcome((-3.0, -6.0), (False, False))
    found = {}
    for score in ("accuracy", "accuracy_per_byte", "accuracy_per_token", "loss"):
        task = build(tokenizer, kind="multiple_choice", source=source, score=score)
        found[score] = task.grade(task.items[0], outcome).score
    assert found["accuracy"] == 0.0
    assert found["accuracy_per_byte"] == 1.0
    assert found["accuracy_per_token"] == 1.0
    assert found["loss"] == pytest.approx(3.0486, abs=1e-4)
    none = build(tokenizer, kind="multiple_choice", source=source)
    assert none.grade(none.items[0], Outcome((float("nan"), -1.0))).score is None


def test_any_of_several_references_is_right(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"id": "a", "input": "Say one.", "targets": ["one", "1"]}]
    task = build(
        tokenizer,
        kind="generation",
        source=lines(tmp_path / "g.jsonl", rows),
        columns={"prompt": "input"},
        metric="exact_match",
    )
    (item,) = task.items
    assert isinstance(item.request, GenerationRequest)
    assert item.references == ("one", "1")
    assert [task.grade(item, Outcome(text=t)).score for t in ("1", "one", "two")] == [1, 1, 0]


def test_one_text_is_one_reference(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "Where?", "targets": "Paris"}]
    fields = {"kind": "generation", "metric": "exact_match"}
    task = build(tokenizer, source=lines(tmp_path / "g.jsonl", rows), **fields)
    assert task.items[0].references == ("Paris",)
    wrong = lines(tmp_path / "w.jsonl", [{"prompt": "Where?", "targets": [1]}])
    with pytest.raises(DataError, match="targets: not a text or a list of texts"):
        build(tokenizer, source=wrong, **fields)


def test_shots_are_of_other_clusters_than_the_items(tokenizer: Any) -> None:
    task = build(tokenizer, kind="multiple_choice", source="bias", limit=30, shots=3)
    assert len(task.items) == 30
    with pytest.raises(DataError, match="of clusters that are not evaluated"):
        build(tokenizer, kind="multiple_choice", source="bias", limit=420, shots=5)


def test_shots_of_another_place_come_before_the_item(tokenizer: Any) -> None:
    shot = (Message("user", "Which?"), Message("assistant", "This."))
    task = build_task(
        spec(kind="generation", metric="chrf", source="stdlib-docstrings", limit=1),
        tokenizer,
        0,
        [shot],
    )
    (item,) = task.items
    assert isinstance(item.request, GenerationRequest)
    shown = text(tokenizer, item.request.prompt_ids)
    assert shown.index("Which?") < shown.index("This.") < shown.index(item.prompt)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ('{"question": "?", "choices": ["a"], "answer": 0}', "at least two non-empty texts"),
        ('{"question": "?", "choices": ["a", "b"], "answer": 2}', "0 to 1"),
        ('{"question": "?", "choices": ["a", "b"], "answer": "c"}', "'c'"),
        ('{"question": "?"}', '"choices"'),
        ('{"choices": ["a", "b"], "answer": 0}', "no field 'question'"),
        ("[1]", "a row must be an object (got list)"),
        ("{", "not valid JSON"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(
    tokenizer: Any, tmp_path: Path, row: str, part: str
) -> None:
    (tmp_path / "quiz.jsonl").write_text(row + "\n")
    with pytest.raises(DataError, match=r"quiz\.jsonl:1") as caught:
        build(tokenizer, kind="multiple_choice", source=str(tmp_path / "quiz.jsonl"))
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        (
            {"kind": "instructions", "source": "python-reference"},
            "name a built-in source (instructions, safety, tool-calls, structured-output), a file",
        ),
        (
            {"kind": "instructions", "source": "safety", "subset": "all"},
            "subset: unknown for safety (got all). Fix: use one of coherence, harmful, harmless",
        ),
        (
            {"kind": "instructions", "source": "instructions", "subset": "harmful"},
            "subset: unknown for instructions (got harmful). Fix: remove it",
        ),
        ({"kind": "generation", "source": "python-reference", "metric": "chrf"}, "needs a prompt"),
        (
            {"kind": "loss", "source": "python-reference", "shots": 1, "limit": 3},
            "Fix: remove `shots`",
        ),
        ({"kind": "loss", "source": "nowhere"}, "stdlib-docstrings"),
        (
            {"kind": "loss", "source": "python-reference", "split": "dev"},
            "split: unknown for python-reference (got dev)",
        ),
        ({"kind": "multiple_choice", "source": "nowhere"}, "general-knowledge"),
        ({"kind": "multiple_choice", "source": "nowhere.csv"}, "no such file"),
        ({"kind": "classification", "source": "nowhere"}, "unknown source (got nowhere)"),
        (
            {"kind": "multiple_choice", "source": "reasoning", "slices": ["x"]},
            "defines its own (got ['x']). Fix: remove slices",
        ),
    ],
)
def test_a_source_that_does_not_fit_its_kind_is_refused(
    tokenizer: Any, fields: dict[str, Any], part: str
) -> None:
    with pytest.raises(DataError) as caught:
        build(tokenizer, **fields)
    assert part in str(caught.value)


def test_fields_that_are_not_there_are_named(tokenizer: Any, tmp_path: Path) -> None:
    source = lines(tmp_path / "q.jsonl", QUIZ)
    for fields, part in (
        ({"slices": ["group"]}, "no field 'group' for `slices` of task t"),
        ({"cluster": "doc"}, "no field 'doc' for `cluster` of task t"),
        ({"columns": {"question": "ctx"}}, "no column 'ctx'"),
        ({"template": "{what}?"}, "no field 'what' for `template` of task t"),
    ):
        with pytest.raises(DataError) as caught:
            build(tokenizer, kind="multiple_choice", source=source, **fields)
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"kind": "loss", "score": "accuracy"}, "has no `score: accuracy`"),
        ({"kind": "loss", "metric": "chrf"}, "takes no `metric`"),
        ({"kind": "generation"}, "takes a `metric`"),
        ({"kind": "multiple_choice", "score": "macro_f1"}, "macro_f1"),
        ({"kind": "multiple_choice", "labels": ["a", "b"]}, "labels"),
        ({"kind": "classification", "labels": ["a", "a"]}, "none twice"),
        ({"kind": "multiple_choice", "lower_is_better": True}, "lower_is_better"),
        ({"kind": "multiple_choice", "margin": 5}, "write 0.05 for 5 points"),
    ],
)
def test_a_task_that_cannot_work_is_refused(fields: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        spec(source="x", **fields)


def test_chrf_is_sacrebleus_and_exact_match_is_exact() -> None:
    from sacrebleu.metrics import CHRF

    score = load_metric("chrf")
    expected = CHRF().sentence_score("Return the name.", ["Returns a name."]).score
    assert score("Return the name.", ["Returns a name."]) == pytest.approx(expected)
    exact = load_metric("exact_match")
    assert (exact(" yes ", ["no", "yes"]), exact("Yes", ["yes"])) == (1.0, 0.0)


def test_an_unknown_metric_names_the_bundled_ones_and_the_hub() -> None:
    with pytest.raises(EvaluationError, match=r"one of chrf, exact_match, .*hub:no_such_metric"):
        load_metric("no_such_metric")


def test_a_metric_of_the_hub_is_asked_for_by_that_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EvaluationError, match="hub:no_such_metric: `evaluate` cannot load it"):
        load_metric("hub:no_such_metric")


@pytest.mark.parametrize("value", ["np.float32(0.5)", "np.int64(3)", "np.float64(0.25)", "2"])
def test_a_score_of_any_numeric_type_is_taken(value: str, tmp_path: Path) -> None:
    module = tmp_path / "half.py"
    module.write_text(
        "import datasets\nimport evaluate\nimport numpy as np\n"
        "TEXT = datasets.Value('string')\n"
        "class Half(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        features = datasets.Features({'predictions': TEXT, 'references': TEXT})\n"
        "        return evaluate.MetricInfo('', '', features=features)\n"
        "    def _compute(self, predictions, references):\n"
        f"        return {{'half': {value}}}\n"
    )
    score = load_metric(str(module))("a", ["b"])
    assert type(score) is float
    assert score == eval(value, {"np": np})


def test_a_pair_is_a_question_whose_order_of_choices_gives_nothing_away(
    tmp_path: Path, tokenizer: Any
) -> None:
    pairs = [
        {"prompt": f"What is {n}?", "chosen": "A number.", "rejected": "A word."} for n in range(40)
    ]
    source = lines(tmp_path / "pairs.jsonl", pairs)
    fields = {"kind": "multiple_choice", "chat": True, "template": "{prompt}"}
    task = build(tokenizer, source=source, **fields)
    assert {item.reference for item in task.items} == {"A number."}
    assert 8 < sum(item.answer == 0 for item in task.items) < 32
    item = task.items[0]
    assert isinstance(item.request, ChoiceRequest)
    assert text(tokenizer, item.request.prompt_ids).endswith("assistant\n")
    likely = tuple(-float(choice != "A number.") for choice in item.choices)
    assert task.grade(item, Outcome(log_likelihoods=likely)).score == 1.0
    built_in = build(tokenizer, source="stdlib-docstring-pairs", limit=20, **fields)
    assert len({item.cluster for item in built_in.items}) > 5
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    row = {"prompt": [*turns, turns[0]], "chosen": "c", "rejected": "d"}
    talk = lines(tmp_path / "talk.jsonl", [row])
    with pytest.raises(DataError, match="one turn of the user"):
        build(tokenizer, source=talk, **fields)


def test_the_bundled_suites_load_and_core_retention_has_a_thousand_items() -> None:
    suites = {name: Suite.load(name) for name in bundled_names(SUITE_FOLDERS)}
    assert {"docstrings", "core-retention", "hub-retention", "bias"} <= set(suites)
    assert {"docstring-pairs", "sums"} <= set(suites)
    assert {"safety", "tool-calls", "structured-output"} <= set(suites)
    core = suites["core-retention"]
    counts = {task.name: len(selected_clusters(task, core.seed) or ()) for task in core.tasks}
    assert sum(counts.values()) >= 1000
    assert counts == {task.name: task.limit for task in core.tasks}
    for suite in suites.values():
        for task in suite.tasks:
            assert bool(task.rationale) == (suite.role == "retention")


def test_an_unknown_field_of_a_suite_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("name: s\nrole: gain\ntasks:\n  - {name: t, kind: loss, source: x, shot: 3}\n")
    with pytest.raises(RecipeError, match=r"tasks\.0\.shot.*shots"):
        Suite.load(path)


def test_tools_of_a_row_stand_in_its_prompt(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = "{{ tools | tojson }}\n" + tokenizer.chat_template
    tool = {"type": "function", "function": {"name": "tides", "parameters": {"type": "object"}}}
    source = lines(tmp_path / "t.jsonl", [{"prompt": "a", "completion": "b", "tools": [tool]}] * 2)
    asked = {"kind": "generation", "metric": "chrf", "max_new_tokens": 4}
    (item, *_) = build(tokenizer, source=source, **asked).items
    assert text(tokenizer, item.request.prompt_ids).startswith('[{"type": "function"')
