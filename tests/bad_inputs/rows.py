"""Rows: turns, fields, labels and texts as other tools write them."""

from tests.bad_inputs.case import plan_of_rows

CHAT = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Red."}]

CASES = (
    plan_of_rows("a row that is a list", [{"messages": CHAT}, [1, 2]], "rows.jsonl:2", "object"),
    plan_of_rows(
        "a content part without its text",
        [{"messages": [{"role": "user", "content": [{"type": "text"}]}, CHAT[1]]}],
        "rows.jsonl:1",
        "messages[0]",
        "text",
    ),
)
