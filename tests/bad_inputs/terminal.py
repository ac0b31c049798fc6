"""Control characters in whatever a file names are shown, and not obeyed by the terminal."""

from typing import Any

from tests.bad_inputs.case import Case, jsonl, plan_of
from tests.bad_inputs.strangers import CONFIG, PAIRS, of_adapter, with_template, with_values

# Title, colour, clearing, movement, one-byte introducers and reversed text.
ESCAPES = "\x1b]0;title\x07\x1b[31m\x1b[2J\x1b[1A\r\x08\x9b2J\x7f\u202e\u2066[red]:bomb:"
SHOWN = "[U+001B]]0;title[U+0007][U+001B][31m[U+001B][2J[U+001B][1A"


def of_rows(title: str, rows: list[Any], *says: str, status: int = 2, **sections: Any) -> Case:
    return Case(
        title,
        lambda place: plan_of(place, jsonl(place, *rows), **sections),
        says,
        status,
    )


CASES = (
    of_rows(
        "escapes in a column's name and a template's output",
        [{**row, ESCAPES: 1} for row in PAIRS],
        *(SHOWN, "[U+009B]", "[U+202E][U+2066][red]:bomb:"),
        status=0,
    ),
    of_rows(
        "escapes in the only label",
        [{"text": text, "label": ESCAPES} for text in ("a", "b", "c")],
        "two classes",
        training={"objective": "classification"},
    ),
    of_rows("escapes in a role", [{"messages": [{"role": ESCAPES, "content": "a"}]}]),
    of_rows("escapes in a field of a turn", [{"messages": [{ESCAPES: "a", "role": "user"}]}]),
    of_rows("escapes in columns of no format", [{ESCAPES: "a"}]),
    of_rows("escapes in a line that is no JSON", [f"{{{ESCAPES}"]),
    of_rows("escapes in a recipe's name", PAIRS, name=ESCAPES),
    of_rows("escapes in an unknown section", PAIRS, **{ESCAPES: {"a": 1}}),
    of_rows("escapes in a target", PAIRS, SHOWN, adapter={"target_modules": [ESCAPES]}),
    of_rows("escapes in a path", PAIRS, evaluation={"suites": [f"{ESCAPES}.yaml"]}),
    of_rows(
        "escapes in a regular expression",
        PAIRS,
        adapter={"options": {"exclude_modules": f"({ESCAPES}"}},
    ),
    with_template("that raises escapes", f"{{{{ raise_exception({ESCAPES!r}) }}}}", SHOWN),
    with_template(
        "with escapes in a name that it lacks", f"{{{{ a['{ESCAPES}'].b }}}}", "chat template"
    ),
    with_values(CONFIG, {"architectures": ESCAPES}),
    with_values(CONFIG, {"dtype": ESCAPES}),
    with_values(CONFIG, {"hidden_act": ESCAPES}),
    of_adapter("escapes in a method", {"peft_type": ESCAPES}, "peft_type"),
    of_adapter("escapes in an option", {"bias": ESCAPES}, "bias"),
    of_adapter("escapes in an option's name", {ESCAPES: 1}, "adapter_config.json"),
)
