"""Rows, templates, tables and suites as exports of other tools have them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import REFUSED, Case, Place, jsonl, plan_of
from tests.bad_inputs.tokenizers import PLAIN, TOOL, changed_tokenizer

USER = {"role": "user", "content": "Name a colour."}
ANSWER = {"role": "assistant", "content": "Red."}
MORE = {"role": "user", "content": "Another?"}
PAIR = {"prompt": "Name a colour.", "completion": "Red."}
DPO = {"training": {"batch_size": 2, "objective": "dpo"}}
KTO = {"training": {"batch_size": 2, "objective": "kto"}}
FULL = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTION = {"question": "Which is red?", "choices": ["blood", "grass"], "answer": 0}


def template(place: Place, text: Any) -> Path:
    def change(config: Any, tokens: Any, model: Any) -> None:
        if text is None:
            del config["chat_template"]
        else:
            config["chat_template"] = text

    return changed_tokenizer(place, change)


def plan(
    name: str,
    rows: Sequence[object],
    *says: str,
    status: int = REFUSED,
    text: Any = "",
    source: Any = None,
    data: Any = None,
    **sections: Any,
) -> Case:
    """Return a plan of rows; `text` is the template (None: no template), `data` further fields."""

    def write(place: Place) -> list[str]:
        model = None if text == "" else template(place, text)
        arguments = plan_of(place, jsonl(place, *rows), model, source, **sections)
        if data:
            path = place.folder / "recipe.yaml"
            recipe = json.loads(path.read_text())
            recipe["data"].update(data)
            path.write_text(json.dumps(recipe))
        return arguments

    return Case(name, write, says, status)


def file(name: str, where: str, content: Any, *says: str, status: int = REFUSED, **k: Any) -> Case:
    """Return a plan of a file, or of a folder if `content` is a mapping or a function."""

    def write(place: Place) -> list[str]:
        path = place.folder / where
        if callable(content):
            content(path)
        elif isinstance(content, dict):
            for inner, text in content.items():
                (path / inner).parent.mkdir(parents=True, exist_ok=True)
                (path / inner).write_text(text)
        else:
            path.write_text(content)
        return plan_of(place, path, **k)

    return Case(name, write, says, status)


def suite(
    name: str,
    task: Any,
    content: Any,
    *says: str,
    where: str = "items.jsonl",
    status: int = REFUSED,
) -> Case:
    def write(place: Place) -> list[str]:
        path = place.folder / where
        if callable(content):
            content(path)
        elif isinstance(content, str):
            path.write_text(content)
        else:
            path.write_text("".join(f"{json.dumps(row)}\n" for row in content))
        rows = [{"prompt": f"{w}?", "completion": w} for w in ("Up", "Red", "Seven", "Bread")]
        arguments = plan_of(place, jsonl(place, *rows))
        tasks = [{"name": "odd", "source": str(path), **task}]
        text = json.dumps({"name": "odd items", "role": "gain", "tasks": tasks})
        (place.folder / "suite.yaml").write_text(text)
        return arguments

    return Case(name, write, says, status)


def called(call: Any, *says: str, name: str, status: int = REFUSED, text: Any = FULL) -> Case:
    turns = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "ok"},
        ANSWER,
    ]
    return plan(name, [{"messages": turns, "tools": [TOOL]}], *says, status=status, text=text)


def saved(
    kind: Any, rows: Sequence[Any] = (PAIR, PAIR), features: Any = None
) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import datasets

        data = datasets.Dataset.from_list(list(rows), features=features and features(datasets))
        if isinstance(kind, list):
            data = data.with_format(None, columns=kind)
        elif kind:
            data = data.with_format(kind)
        data.save_to_disk(str(path))

    return write


def classes(field: str, first: str) -> Callable[[Any], Any]:
    def features(datasets: Any) -> Any:
        return datasets.Features(
            {first: datasets.Value("string"), field: datasets.ClassLabel(names=["neg", "pos"])}
        )

    return features


def shards(*tables: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        path.mkdir()
        for number, table in enumerate(tables):
            pyarrow.parquet.write_table(pyarrow.table(table), path / f"{'abc'[number]}.parquet")

    return write


def chat(*turns: Any) -> list[Any]:
    """Return one row of a conversation."""
    return [{"messages": list(turns)}]


def rewriting(name: str, filter_: str, row: Any) -> Case:
    text = PLAIN.replace("{{ m.content }}", "{{ m.content" + filter_ + " }}")
    return plan(name, [row], "chat template changes the text", text=text)


LONG = {
    "messages": [
        {
            "role": "user",
            "content": " Name a <b>colour</b>, and say why it is so & no other.\nTwo.",
        },
        {
            "role": "assistant",
            "content": "  Red <i>is</i> the colour of blood & roses.\nAnd wine. ",
        },
    ]
}
THOUGHT = {"role": "assistant", "content": "<think>\nWarm colours first.\n</think>\n\nRed."}
R1 = PLAIN.replace(
    "{{ m.content }}",
    "{% set c = m.content %}{% if m.role == 'assistant' and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1] %}{% endif %}{{ c }}",
)
HEADER, LINE = "prompt,completion\n", "Name a colour.,Red.\n"
CHOICE, CLASSES, LOSS, INSTRUCTIONS = (
    {"kind": k} for k in ("multiple_choice", "classification", "loss", "instructions")
)
GENERATION = {"kind": "generation", "metric": "chrf", "max_new_tokens": 4}
LISTED = 0

CASES = (
    # 1. The template removes or changes text: the row is trained otherwise than written.
    plan(
        "reasoning in the text that an R1 template removes",
        chat(USER, THOUGHT),
        "rows.jsonl:1",
        "chat template",
        text=R1,
    ),
    rewriting(
        "a template that takes what follows </think> of every turn",
        ".split('</think>')[-1]",
        {"messages": [{"role": "user", "content": "What does </think> do?"}, ANSWER]},
    ),
    rewriting("a template that truncates", "[:20]", LONG),
    rewriting("a template that takes the first line", ".split('\\n')[0]", LONG),
    rewriting("a template that removes tags", " | striptags", LONG),
    rewriting("a template that upper-cases", " | upper", LONG),
    rewriting("a template that title-cases", " | title", LONG),
    rewriting("a template that escapes HTML", " | e", LONG),
    rewriting("a template that translates a word", " | replace('Red', 'Rot')", LONG),
    rewriting("a template that wraps lines", " | wordwrap(10)", LONG),
    # 2. Rejected answers trained on as good ones.
    plan(
        "KTO rows under sft",
        [{**PAIR, "label": True}, {"prompt": "Name a sea.", "completion": "Mud.", "label": False}],
        "rows.jsonl:2",
        "label: false",
    ),
    # 3. Fields of turns that hold no text.
    *(
        plan(
            f"a field of a turn: {name}",
            chat(USER, {**ANSWER, name: value}),
            f"turns.{name}",
            status=LISTED,
        )
        for name, value in (
            ("quality", 5),
            ("trainable", False),
            ("loss_weight", 0.0),
            ("mask", [1, 0]),
            ("rating", {"stars": 5}),
        )
    ),
    plan(
        "numbers in the turns of a pair",
        [
            {
                "prompt": "a",
                "chosen": [{**ANSWER, "score": 9}],
                "rejected": [{"role": "assistant", "content": "Mud.", "score": 1}],
            }
        ],
        "turns.score",
        status=LISTED,
        **DPO,
    ),
    # 4. Fields of a backbone without a template.
    plan(
        "reasoning and no template",
        chat(USER, {**ANSWER, "reasoning_content": "Since."}),
        "rows.jsonl:1",
        "reasoning_content",
        text=None,
    ),
    plan(
        "a name and no template",
        chat({**USER, "name": "Ann"}, ANSWER),
        "turns.name",
        status=LISTED,
        text=None,
    ),
    # 5. Tool calls.
    called(
        {"function": {"name": "f", "parameters": {"city": "Paris"}}},
        "rows.jsonl:1",
        "parameters",
        name="a call with parameters in place of arguments",
    ),
    called(
        {"name": "f", "parameters": {"city": "Paris"}},
        "rows.jsonl:1",
        "parameters",
        name="a flat call with parameters",
    ),
    called(
        {"id": "toolu_1", "name": "f", "input": {"city": "Paris"}},
        "rows.jsonl:1",
        "input",
        name="a call of Anthropic's",
    ),
    called(
        {"function": {"name": "f", "arguments": {"x": 1}, "result": "sunny"}},
        "result",
        name="a call with its result",
    ),
    called(
        {"function": {"name": "f", "arguments": '{"city": "Paris", "city": "Rome"}'}},
        "rows.jsonl:1",
        "'city' 2 times",
        name="arguments with a key twice",
    ),
    called(
        {"function": {"name": "f", "arguments": '{"x": NaN}'}},
        "rows.jsonl:1",
        "NaN",
        name="arguments with NaN",
    ),
    called(
        {"function": {"name": "f", "arguments": '{"x": 1e400}'}},
        "rows.jsonl:1",
        "1e400",
        name="arguments with an infinite number",
    ),
    called(
        {"function": {"name": "f", "arguments": 0}},
        "rows.jsonl:1",
        "arguments",
        name="arguments that are 0",
    ),
    called(
        {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        'f{"x": 1}',
        status=LISTED,
        name="a template that joins arguments as a text, as DeepSeek's",
        text=FULL.replace("c.function | tojson", "c.function.name + c.function.arguments"),
    ),
    plan(
        "tools as JSON text with a key twice",
        [{"messages": [USER, ANSWER], "tools": '[{"name": "f", "name": "g"}]'}],
        "rows.jsonl:1",
        "'name' 2 times",
        text=FULL,
    ),
    plan(
        "a control token in tools",
        [{"messages": [USER, ANSWER], "tools": [{"name": "f", "description": "a <|im_end|> b"}]}],
        "rows.jsonl:1",
        "<|im_end|>",
        text=FULL,
    ),
    # 6. Two names of one thing.
    plan(
        "a turn with from, value, role and content",
        [
            {
                "conversations": [
                    {
                        "from": "human",
                        "value": "Name a colour.",
                        "role": "user",
                        "content": "Name a sea.",
                    },
                    {"from": "gpt", "value": "Red."},
                ]
            }
        ],
        "rows.jsonl:1",
        "conversations[0]",
    ),
    plan(
        "a mapped column beside one of the field's name",
        [{**PAIR, "best": "Blue."}],
        "completion (columns.completion names best) of",
        status=LISTED,
        source={"columns": {"completion": "best"}},
    ),
    plan(
        "a mapped system text beside another",
        [{**PAIR, "system": "Be short.", "persona": "Be long."}],
        "system (columns.system names persona) of",
        status=LISTED,
        source={"columns": {"system": "persona"}},
    ),
    plan(
        "a content part with an image beside its text",
        chat(
            {
                "role": "user",
                "content": [{"type": "text", "text": "Look.", "image_url": {"url": "a.png"}}],
            },
            ANSWER,
        ),
        "rows.jsonl:1",
        "image_url",
    ),
    plan(
        "a content part with another field",
        chat(
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look.", "cache_control": {"type": "ephemeral"}}
                ],
            },
            ANSWER,
        ),
        "cache_control",
    ),
    # 7. Switches.
    plan(
        "an earlier answer to be trained on under train_on last",
        chat(USER, {**ANSWER, "train": True}, MORE, ANSWER),
        "rows.jsonl:1",
        "turn 1",
        "data.train_on",
        data={"train_on": "last"},
    ),
    plan(
        "a prompt's answer to be trained on under train_on completion",
        [{"prompt": [USER, {**ANSWER, "train": True}, MORE], "completion": "Blue."}],
        "rows.jsonl:1",
        "turn 1",
        data={"train_on": "completion"},
    ),
    plan(
        "a prompt's answer to be trained on under dpo",
        [
            {
                "prompt": [USER, {**ANSWER, "train": True}, MORE],
                "chosen": "Blue.",
                "rejected": "Mud.",
            }
        ],
        "rows.jsonl:1",
        "turn 1",
        **DPO,
    ),
    # 8. Templates.
    *(
        plan(
            f"a date as {form}",
            chat(USER, ANSWER),
            shown,
            status=LISTED,
            text="{{ strftime_now('" + form + "') }}\n" + PLAIN,
        )
        for form, shown in (
            ("%-d %B %Y", "1 January 2025"),
            ("%I:%M %p", "12:00 AM"),
            ("day %j", "day 001"),
            ("%F", "2025-01-01"),
        )
    ),
    plan(
        "a date by keyword",
        chat(USER, ANSWER),
        "2025",
        status=LISTED,
        text="{{ strftime_now(format='%Y') }}\n" + PLAIN,
    ),
    *(
        plan(
            f"a template with {name}",
            chat(USER, ANSWER),
            "chat template",
            "backbone.model",
            text=text + PLAIN,
        )
        for name, text in (
            ("a type error", "{{ 'a' + 1 }}"),
            ("a division by zero", "{{ 1 // 0 }}"),
            ("an endless recursion", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
            ("an open loop", "{% for x in messages %}"),
            ("an unknown filter of numbers", "{{ 1 | nosuch }}"),
        )
    ),
    plan("a template that is a number", chat(USER, ANSWER), "chat_template", text=5),
    plan(
        "a list of templates without a template",
        chat(USER, ANSWER),
        "chat_template",
        text=[{"name": "default"}],
    ),
    plan(
        "two templates named default",
        chat(USER, ANSWER),
        "default",
        text=[{"name": "default", "template": PLAIN}, {"name": "default", "template": FULL}],
    ),
    # 9. Tables.
    file(
        "two CSV files with byte order marks, joined",
        "rows.csv",
        f"\ufeff{HEADER}{LINE}\ufeff{HEADER}{LINE}",
        "rows.csv:3",
        "header",
    ),
    file(
        "two TSV files with byte order marks, joined",
        "rows.tsv",
        f"\ufeff{HEADER}{LINE}\ufeff{HEADER}{LINE}".replace(",", "\t"),
        "rows.tsv:3",
        "header",
    ),
    file(
        "a bad row in a folder of CSV files",
        "parts",
        {"a.csv": HEADER + LINE, "b.csv": HEADER + "Why?,\n"},
        "b.csv",
    ),
    file(
        "a file of rows that begins with an underscore",
        "parts",
        {"a.jsonl": json.dumps(PAIR), "_b.jsonl": json.dumps(PAIR)},
        "2 for training",
        status=LISTED,
    ),
    file(
        "a file of rows called state.json",
        "parts",
        {"a.json": json.dumps([PAIR]), "sub/state.json": json.dumps([PAIR])},
        "2 for training",
        status=LISTED,
    ),
    file(
        "labels as texts and integers in Parquet",
        "parts",
        shards({"text": ["b"], "label": [3]}, {"text": ["a"], "label": ["01"]}),
        "01<|im_end|>",
        status=LISTED,
    ),
    file(
        "KTO labels as booleans and integers in Parquet",
        "parts",
        shards(
            {"prompt": ["b"], "completion": ["x"], "label": [True]},
            {"prompt": ["a"], "completion": ["y"], "label": [2]},
        ),
        "b.parquet",
        "label",
        **KTO,
    ),
    file(
        "a bad row in a folder of Parquet files",
        "parts",
        shards({"text": ["b"]}, {"text": [""]}),
        "b.parquet",
    ),
    file(
        "another column in a folder of Parquet files",
        "parts",
        shards({"text": ["A river."]}, {"text": ["A sea."], "lang": ["en"]}),
        "lang of",
        status=LISTED,
    ),
    *(
        file(f"saved with the format {kind}", "rows", saved(kind), "Name a colour.", status=LISTED)
        for kind in ("pandas", "arrow")
    ),
    file(
        "saved with the format numpy and turns",
        "rows",
        saved("numpy", [{"messages": [USER, ANSWER]}]),
        "Name a colour.",
        status=LISTED,
    ),
    file(
        "saved with the format torch and KTO labels",
        "rows",
        saved("torch", [{**PAIR, "label": True}, {**PAIR, "label": False}]),
        "Name a colour.",
        status=LISTED,
        **KTO,
    ),
    file(
        "saved with a format that hides a column",
        "rows",
        saved(["prompt", "completion"], [{**PAIR, "system": "Be short."}]),
        "Be short.",
        status=LISTED,
    ),
    # 10. Suites.
    suite(
        "a loss task of classes",
        LOSS,
        saved(
            None,
            [{"text": "good", "label": 1}, {"text": "bad", "label": 0}],
            classes("label", "text"),
        ),
        where="rows",
        status=LISTED,
    ),
    suite(
        "a loss task of classes as completions",
        LOSS,
        saved(
            None,
            [{"prompt": "good?", "completion": 1}, {"prompt": "bad?", "completion": 0}],
            classes("completion", "prompt"),
        ),
        where="rows",
        status=LISTED,
    ),
    suite(
        "a completion that is none of the references",
        GENERATION,
        [{**PAIR, "references": ["Blue."]}],
        "items.jsonl:1",
        "references",
    ),
    suite(
        "a last turn that is none of the references",
        GENERATION,
        [{"messages": [USER, ANSWER], "references": ["Blue."]}],
        "items.jsonl:1",
        "references",
    ),
    suite(
        "references and targets",
        GENERATION,
        [{"prompt": "Name a colour.", "references": ["Blue."], "targets": ["Red."]}],
        "items.jsonl:1",
        "targets",
    ),
    suite(
        "null references beside targets",
        GENERATION,
        [{"prompt": "Name a colour.", "references": None, "targets": ["Red."]}],
        status=LISTED,
    ),
    suite(
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
    suite(
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
    suite(
        "a pair and a question in one row",
        CHOICE,
        [{**QUESTION, "prompt": "Other?", "chosen": "Red.", "rejected": "Mud."}],
        "choices of task",
        status=LISTED,
    ),
    suite(
        "a text of a class that is a number",
        CLASSES,
        [{"text": 7, "label": "x"}, {"text": "b", "label": "y"}],
        "items.jsonl:1",
        "text",
    ),
    suite(
        "a blank text of a class",
        CLASSES,
        [{"text": " ", "label": "x"}, {"text": "b", "label": "y"}],
        "items.jsonl:1",
        "text",
    ),
    suite(
        "a blank question", CHOICE, [{**QUESTION, "question": "  "}], "items.jsonl:1", "question"
    ),
    suite(
        "a question that is true",
        CHOICE,
        [{**QUESTION, "question": True}],
        "items.jsonl:1",
        "question",
    ),
    suite(
        "a blank prompt of instructions",
        INSTRUCTIONS,
        [{"prompt": "  ", "checks": [{"kind": "max_words", "value": 3}]}],
        "items.jsonl:1",
        "prompt",
    ),
    suite(
        "a blank cluster",
        {**LOSS, "cluster": "doc"},
        [{**PAIR, "doc": ""}, {**PAIR, "prompt": "b", "doc": ""}],
        "items.jsonl:1",
        "doc",
    ),
    suite(
        "a field of an item's turn that is a number",
        GENERATION,
        chat({**USER, "age": 5}, ANSWER),
        "turns.age",
        status=LISTED,
    ),
    suite(
        "a field of an item's turn that is a text",
        GENERATION,
        chat({**USER, "name": "Ann"}, ANSWER),
        "turns.name",
        status=LISTED,
    ),
    suite(
        "an item's only answer switched off",
        LOSS,
        chat(USER, {**ANSWER, "loss": False}),
        "items.jsonl:1",
        "switched off",
    ),
    suite(
        "a question of two columns",
        {**CHOICE, "columns": {"question": "stem"}},
        [{**QUESTION, "stem": "Which is warm?"}],
        "question (columns.question names stem) of",
        status=LISTED,
    ),
    # 11. Control characters reach the terminal.
    file("an escape in a header", "rows.csv", "pro\x1b[31mmpt,completion\na,b\n", "rows.csv"),
    file(
        "an escape in a column that is not used",
        "rows.csv",
        "prompt,completion,x\x1b[31my\na,b,c\n",
        "not used",
        status=LISTED,
    ),
)
