"""Suites: questions, labels and tables as other tools write them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import REFUSED, Case, Place, jsonl, plan_of
from tests.bad_inputs.tables import classes, saved
from tests.bad_inputs.templates import ANSWER, USER, chat

PAIR = {"prompt": "Name a colour.", "completion": "Red."}
QUESTION = {"question": "Which is red?", "choices": ["blood", "grass"], "answer": 0}
OTHERS = [{"prompt": f"{word}?", "completion": word} for word in ("Up", "Red", "Seven", "Bread")]
LABELLED = "text,label\ngood,01\nbad,02\n"


def _suite(
    name: str,
    task: Mapping[str, Any],
    content: str | Sequence[object] | Callable[[Path], None],
    *says: str,
    file: str = "items.jsonl",
    status: int = REFUSED,
) -> Case:
    """Return the case of a plan with a suite of one file of items."""

    def write(place: Place) -> list[str]:
        items = place.folder / file
        if callable(content):
            content(items)
        elif isinstance(content, str):
            items.write_text(content)
        else:
            items.write_text("".join(f"{json.dumps(row)}\n" for row in content))
        arguments = plan_of(place, jsonl(place, *OTHERS))
        tasks = [{"name": "odd", "source": str(items), **task}]
        suite = {"name": "odd items", "role": "gain", "tasks": tasks}
        (place.folder / "suite.yaml").write_text(json.dumps(suite))
        return arguments

    return Case(name, write, says, status)


THOUGHTFUL = {
    "messages": [
        {"role": "user", "content": "How?"},
        {"role": "assistant", "content": "So.", "reasoning_content": "Hm."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Thus."},
    ]
}
GENERATION = {"kind": "generation", "metric": "chrf", "max_new_tokens": 4}

CHOICE, CLASSES, LOSS, INSTRUCTIONS = (
    {"kind": k} for k in ("multiple_choice", "classification", "loss", "instructions")
)

CASES = (
    _suite(
        "a choice that stands twice",
        CHOICE,
        [QUESTION, {**QUESTION, "choices": ["a", "b", "a"]}],
        "items.jsonl:2",
        "choices",
        "'a' twice",
    ),
    _suite(
        "choices that differ in white space",
        CHOICE,
        [{**QUESTION, "choices": ["a b", "a  b"]}],
        "items.jsonl:1",
        "'a b' twice",
    ),
    _suite(
        "a choice that stands twice in CSV",
        CHOICE,
        'question,choices,answer\nWhich?,"[""a"", ""a""]",0\n',
        "items.csv[0]",
        "'a' twice",
        file="items.csv",
    ),
    _suite(
        "an index in CSV that is too large",
        CHOICE,
        'question,choices,answer\nWhich?,"[""a"", ""b""]",2\n',
        "items.csv[0]",
        "0 to 1",
        file="items.csv",
    ),
    _suite(
        "an index in CSV with a leading zero",
        CHOICE,
        'question,choices,answer\nWhich?,"[""a"", ""b""]",01\n',
        "items.csv[0]",
        "'01'",
        file="items.csv",
    ),
    _suite(
        "labels of a suite that differ in a space",
        CLASSES,
        [{"text": "a", "label": "pos"}, {"text": "b", "label": "pos "}],
        "task odd",
        "'pos '",
    ),
    _suite(
        "a label that is written otherwise than in the task",
        {**CLASSES, "labels": ["1", "2"]},
        LABELLED,
        "items.csv[0]",
        "'01'",
        file="items.csv",
    ),
    _suite(
        "a label that is no index",
        {**CLASSES, "labels": ["bad", "good"]},
        [{"text": "a", "label": 2}],
        "items.jsonl:1",
        "0 to 1",
    ),
    _suite("a null label", CLASSES, [{"text": "a", "label": None}], "items.jsonl:1", "got None"),
    _suite(
        "a null cluster",
        {**LOSS, "cluster": "document"},
        [{**PAIR, "document": None}],
        "items.jsonl:1",
        "document",
    ),
    _suite(
        "a null slice",
        {**LOSS, "slices": ["part"]},
        [{**PAIR, "part": "a"}, {**PAIR, "part": None}],
        "items.jsonl:2",
        "part",
    ),
    _suite(
        "a comma too many in a suite",
        LOSS,
        "prompt,completion\nWhy,so?,Because.\n",
        "items.csv:2",
        "got 3 fields",
        file="items.csv",
    ),
    _suite(
        "a key that stands twice in a suite",
        LOSS,
        '{"prompt": "a", "completion": "b", "prompt": "c"}\n',
        "items.jsonl:1",
        "'prompt' 2 times",
    ),
    _suite(
        "half of a surrogate pair in a choice",
        CHOICE,
        [{**QUESTION, "choices": ["a", "\ud800"]}],
        "items.jsonl:1",
        "choices[1]",
    ),
    _suite(
        "reasoning in an item that the template does not write",
        LOSS,
        [PAIR, THOUGHTFUL],
        "items.jsonl:2",
        "`reasoning_content` of turn 1",
    ),
    _suite(
        "reasoning in a prompt that the template does not write",
        GENERATION,
        [PAIR, THOUGHTFUL],
        "items.jsonl:2",
        "`reasoning_content` of turn 1",
    ),
    _suite(
        "tools of an item that the template does not write",
        GENERATION,
        [{**PAIR, "tools": [{"type": "function", "function": {"name": "f"}}]}],
        "items.jsonl:1",
        "got `tools`",
    ),
    _suite(
        "columns of questions that the template does not use",
        CHOICE,
        [{**QUESTION, "context": "On a meadow.", "hint": ""}] * 3,
        "context of task odd items/odd (3 items)",
        status=0,
    ),
    _suite(
        "columns of a suite that nothing uses",
        GENERATION,
        [{**PAIR, "reasoning": "It is."}],
        "reasoning of task odd items/odd (1 item)",
        status=0,
    ),
    _suite(
        "an image beside a question",
        CHOICE,
        [{**QUESTION, "image": "meadow.png"}],
        "items.jsonl:1",
        "column `image`",
    ),
    _suite("NaN in a suite", LOSS, [{**PAIR, "n": float("nan")}], "items.jsonl:1", "NaN"),
    _suite(
        "examples that ask the same as the item",
        {**CHOICE, "shots": 1},
        [QUESTION, {**QUESTION, "question": "Which  is red? "}],
        "task odd",
        "with other prompts",
    ),
    _suite(
        "numbers as answers of a loss task in CSV",
        LOSS,
        "prompt,completion\nHow many?,7\nHow much?,8\n",
        "odd",
        file="items.csv",
        status=0,
    ),
    # Rows as exports have them.
    _suite(
        "a loss task of classes",
        LOSS,
        saved(
            None,
            [{"text": "good", "label": 1}, {"text": "bad", "label": 0}],
            classes("label", "text"),
        ),
        file="rows",
        status=0,
    ),
    _suite(
        "a loss task of classes as completions",
        LOSS,
        saved(
            None,
            [{"prompt": "good?", "completion": 1}, {"prompt": "bad?", "completion": 0}],
            classes("completion", "prompt"),
        ),
        file="rows",
        status=0,
    ),
    _suite(
        "a completion that is none of the references",
        GENERATION,
        [{**PAIR, "references": ["Blue."]}],
        "items.jsonl:1",
        "references",
    ),
    _suite(
        "a last turn that is none of the references",
        GENERATION,
        [{"messages": [USER, ANSWER], "references": ["Blue."]}],
        "items.jsonl:1",
        "references",
    ),
    _suite(
        "references and targets",
        GENERATION,
        [{"prompt": "Name a colour.", "references": ["Blue."], "targets": ["Red."]}],
        "items.jsonl:1",
        "targets",
    ),
    _suite(
        "null references beside targets",
        GENERATION,
        [{"prompt": "Name a colour.", "references": None, "targets": ["Red."]}],
        status=0,
    ),
    _suite(
        "reasoning in a pair",
        CHOICE,
        [
            {
                "prompt": "p",
                "chosen": [{**ANSWER, "reasoning_content": "Since."}],
                "rejected": [{"role": "assistant", "content": "Mud."}],
            }
        ],
        "items.jsonl:1",
        "reasoning_content",
    ),
    _suite(
        "tool calls in a pair",
        CHOICE,
        [
            {
                "prompt": "p",
                "chosen": [
                    {
                        "role": "assistant",
                        "content": "",
                        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
                    }
                ],
                "rejected": [{"role": "assistant", "content": "Mud."}],
            }
        ],
        "items.jsonl:1",
        "tool_calls",
    ),
    _suite(
        "a pair and a question in one row",
        CHOICE,
        [{**QUESTION, "prompt": "Other?", "chosen": "Red.", "rejected": "Mud."}],
        "choices of task",
        status=0,
    ),
    _suite(
        "a text of a class that is a number",
        CLASSES,
        [{"text": 7, "label": "x"}, {"text": "b", "label": "y"}],
        "items.jsonl:1",
        "text",
    ),
    _suite(
        "a blank text of a class",
        CLASSES,
        [{"text": " ", "label": "x"}, {"text": "b", "label": "y"}],
        "items.jsonl:1",
        "text",
    ),
    _suite(
        "a blank question", CHOICE, [{**QUESTION, "question": "  "}], "items.jsonl:1", "question"
    ),
    _suite(
        "a question that is true",
        CHOICE,
        [{**QUESTION, "question": True}],
        "items.jsonl:1",
        "question",
    ),
    _suite(
        "a blank prompt of instructions",
        INSTRUCTIONS,
        [{"prompt": "  ", "checks": [{"kind": "max_words", "value": 3}]}],
        "items.jsonl:1",
        "prompt",
    ),
    _suite(
        "a schema in a check that is invalid",
        INSTRUCTIONS,
        [{"prompt": "Go.", "checks": [{"kind": "json_schema", "value": {"type": "objekt"}}]}],
        "items.jsonl:1",
        "json_schema: type",
        "'objekt'",
    ),
    _suite(
        "a schema in a check with an address",
        INSTRUCTIONS,
        [{"prompt": "Go.", "checks": [{"kind": "json_schema", "value": {"$ref": "http://a.b/c"}}]}],
        "items.jsonl:1",
        "json_schema: $ref",
        "'http://a.b/c'",
    ),
    _suite(
        "a call of a function that is not given",
        INSTRUCTIONS,
        [
            {
                "prompt": "Go.",
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "checks": [{"kind": "calls", "value": {"name": "g", "arguments": {}}}],
            }
        ],
        "items.jsonl:1",
        "calls: no function of `tools`",
        "'g'",
    ),
    _suite(
        "a blank cluster",
        {**LOSS, "cluster": "doc"},
        [{**PAIR, "doc": ""}, {**PAIR, "prompt": "b", "doc": ""}],
        "items.jsonl:1",
        "doc",
    ),
    _suite(
        "a field of an item's turn that is a number",
        GENERATION,
        chat({**USER, "age": 5}, ANSWER),
        "turns.age",
        status=0,
    ),
    _suite(
        "a field of an item's turn that is a text",
        GENERATION,
        chat({**USER, "name": "Ann"}, ANSWER),
        "turns.name",
        status=0,
    ),
    _suite(
        "an item's only answer switched off",
        LOSS,
        chat(USER, {**ANSWER, "loss": False}),
        "items.jsonl:1",
        "switched off",
    ),
    _suite(
        "a question of two columns",
        {**CHOICE, "columns": {"question": "stem"}},
        [{**QUESTION, "stem": "Which is warm?"}],
        "question (columns.question names stem) of",
        status=0,
    ),
)
