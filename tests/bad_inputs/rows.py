"""Rows: turns, fields, labels and texts as other tools write them."""

from tests.bad_inputs.case import plan_of_rows

USER = {"role": "user", "content": "Name a colour."}
ANSWER = {"role": "assistant", "content": "Red."}
CHAT = [USER, ANSWER]
PAIR = {"prompt": "Name a colour.", "completion": "Red."}
ALPACA = {"instruction": "Name a colour.", "output": "Red."}


def turns(*messages: object) -> list[object]:
    """Return the rows of one conversation."""
    return [{"messages": list(messages)}]


CASES = (
    plan_of_rows("a row that is a list", [{"messages": CHAT}, [1, 2]], "rows.jsonl:2", "object"),
    *(
        plan_of_rows(
            f"a content part {name}",
            turns({"role": "user", "content": [part]}, ANSWER),
            *("rows.jsonl:1", "messages[0]", "text"),
        )
        for name, part in {
            "without its text": {"type": "text"},
            "with null as text": {"type": "text", "text": None},
            "with a number as text": {"type": "text", "text": 7},
            "that is an image": {"type": "image_url", "image_url": {"url": "a.png"}},
            "that is null": None,
        }.items()
    ),
    *(
        plan_of_rows(
            f"media in the column {name}", [{"messages": CHAT, name: ["a.png"]}], f"`{name}`"
        )
        for name in ("image", "images", "videos", "audio")
    ),
    *(
        plan_of_rows(
            f"a switch of a turn that says {switch}",
            turns(USER, {**ANSWER, **switch}),
            *("rows.jsonl:1", "messages[1]", next(iter(switch))),
        )
        for switch in ({"weight": 0.5}, {"loss": "yes"}, {"train": 2}, {"masked": [1]})
    ),
    plan_of_rows(
        "two switches that disagree",
        turns(USER, {**ANSWER, "loss": True, "masked": True}),
        *("rows.jsonl:1", "contradict"),
    ),
    plan_of_rows(
        "a question that is to be trained on",
        turns({**USER, "train": True}, ANSWER),
        *("rows.jsonl:1", "turn 0", "data.train_on"),
    ),
    plan_of_rows(
        "an answer that is not to be trained on, and no other",
        turns(USER, {**ANSWER, "loss": False}),
        *("no supervised token", "rows.jsonl:1"),
    ),
    *(
        plan_of_rows(
            f"two system texts in {name}",
            [{**row, "system": "Be long."}],
            *("rows.jsonl:1", "two system texts"),
        )
        for name, row in {
            "messages": {"messages": [{"role": "system", "content": "Be short."}, *CHAT]},
            "conversations": {
                "conversations": [
                    {"from": "system", "value": "Be short."},
                    {"from": "human", "value": "Name a colour."},
                    {"from": "gpt", "value": "Red."},
                ]
            },
        }.items()
    ),
    *(
        plan_of_rows(
            f"a history that is {history}",
            [{**ALPACA, "history": history}],
            *("rows.jsonl:1", "history"),
        )
        for history in ("text", [["one"]], [["one", 2]], [{"q": "a"}], [["one", ""]], 7)
    ),
    *(
        plan_of_rows(
            f"reasoning in {name} that the template does not write",
            turns(USER, {**ANSWER, name: "Since."}),
            *("rows.jsonl:1", f"`{name}` of turn 1"),
        )
        for name in ("reasoning_content", "reasoning", "thinking")
    ),
    plan_of_rows(
        "an earlier exchange beside an Alpaca row",
        [{**ALPACA, "history": [["Which colours are there?", "Red and blue."]]}],
        *("Which colours are there?", "Red and blue."),
        status=0,
    ),
    plan_of_rows(
        "a system text beside prompt and completion",
        [{**PAIR, "system": "Be short."}],
        "Be short.",
        status=0,
    ),
    plan_of_rows(
        "columns that nothing reads",
        [{**PAIR, "topic": "colours", "difficulty": 3, "empty": None}, PAIR],
        *("not used", "topic of", "difficulty of", "(1 row)"),
        status=0,
    ),
    plan_of_rows(
        "fields of turns that the template does not write",
        turns({**USER, "speaker": "Ann"}, ANSWER),
        *("not used", "turns.speaker of"),
        status=0,
    ),
)
