"""Turns, tool calls and labels of rows as other tools write them."""

from typing import Any

from tests.bad_inputs.case import REFUSED, Case
from tests.bad_inputs.templates import ANSWER, FULL, LISTED, USER, chat, plan_with
from tests.bad_inputs.tokenizers import TOOL

MORE = {"role": "user", "content": "Another?"}
PAIR = {"prompt": "Name a colour.", "completion": "Red."}
DPO = {"training": {"batch_size": 2, "objective": "dpo"}}


def called(call: Any, *says: str, name: str, status: int = REFUSED, text: Any = FULL) -> Case:
    """Return a plan of a conversation with this tool call."""
    turns = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "ok"},
        ANSWER,
    ]
    return plan_with(name, [{"messages": turns, "tools": [TOOL]}], *says, status=status, text=text)


CASES = (
    # Rejected answers.
    plan_with(
        "KTO rows under sft",
        [{**PAIR, "label": True}, {"prompt": "Name a sea.", "completion": "Mud.", "label": False}],
        "rows.jsonl:2",
        "label: false",
    ),
    # Fields of turns that hold no text.
    *(
        plan_with(
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
    plan_with(
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
    # Tool calls.
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
    plan_with(
        "tools as JSON text with a key twice",
        [{"messages": [USER, ANSWER], "tools": '[{"name": "f", "name": "g"}]'}],
        "rows.jsonl:1",
        "'name' 2 times",
        text=FULL,
    ),
    plan_with(
        "a control token in tools",
        [{"messages": [USER, ANSWER], "tools": [{"name": "f", "description": "a <|im_end|> b"}]}],
        "rows.jsonl:1",
        "<|im_end|>",
        text=FULL,
    ),
    # Two names of one thing.
    plan_with(
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
    plan_with(
        "a mapped column beside one of the field's name",
        [{**PAIR, "best": "Blue."}],
        "completion (columns.completion names best) of",
        status=LISTED,
        source={"columns": {"completion": "best"}},
    ),
    plan_with(
        "a mapped system text beside another",
        [{**PAIR, "system": "Be short.", "persona": "Be long."}],
        "system (columns.system names persona) of",
        status=LISTED,
        source={"columns": {"system": "persona"}},
    ),
    plan_with(
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
    plan_with(
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
    # Switches.
    plan_with(
        "an earlier answer to be trained on under train_on last",
        chat(USER, {**ANSWER, "train": True}, MORE, ANSWER),
        "rows.jsonl:1",
        "turn 1",
        "data.train_on",
        data={"train_on": "last"},
    ),
    plan_with(
        "a prompt's answer to be trained on under train_on completion",
        [{"prompt": [USER, {**ANSWER, "train": True}, MORE], "completion": "Blue."}],
        "rows.jsonl:1",
        "turn 1",
        data={"train_on": "completion"},
    ),
    plan_with(
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
)
