"""Chat templates that change, drop or date the texts of rows, or are no templates."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import REFUSED, Case, Place, jsonl, plan_of
from tests.bad_inputs.tokenizers import PLAIN, changed_tokenizer

USER = {"role": "user", "content": "Name a colour."}
ANSWER = {"role": "assistant", "content": "Red."}
FULL = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
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
LISTED = 0


def template(place: Place, text: Any) -> Path:
    """Return a model with this chat template; without one for `None`."""

    def change(config: Any, tokens: Any, model: Any) -> None:
        if text is None:
            del config["chat_template"]
        else:
            config["chat_template"] = text

    return changed_tokenizer(place, change)


def plan_with(
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


def chat(*turns: Any) -> list[Any]:
    """Return one row of a conversation."""
    return [{"messages": list(turns)}]


def rewriting(name: str, filter_: str, row: Any) -> Case:
    text = PLAIN.replace("{{ m.content }}", "{{ m.content" + filter_ + " }}")
    return plan_with(name, [row], "chat template changes the text", text=text)


CASES = (
    # Texts that are changed.
    plan_with(
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
    # Fields of a backbone without a template.
    plan_with(
        "reasoning and no template",
        chat(USER, {**ANSWER, "reasoning_content": "Since."}),
        "rows.jsonl:1",
        "reasoning_content",
        text=None,
    ),
    plan_with(
        "a name and no template",
        chat({**USER, "name": "Ann"}, ANSWER),
        "turns.name",
        status=LISTED,
        text=None,
    ),
    # Dates, and what is no template.
    *(
        plan_with(
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
    plan_with(
        "a date by keyword",
        chat(USER, ANSWER),
        "2025",
        status=LISTED,
        text="{{ strftime_now(format='%Y') }}\n" + PLAIN,
    ),
    plan_with("a template that is a number", chat(USER, ANSWER), "chat_template", text=5),
    plan_with(
        "a list of templates without a template",
        chat(USER, ANSWER),
        "chat_template",
        text=[{"name": "default"}],
    ),
    plan_with(
        "two templates named default",
        chat(USER, ANSWER),
        "default",
        text=[{"name": "default", "template": PLAIN}, {"name": "default", "template": FULL}],
    ),
)
