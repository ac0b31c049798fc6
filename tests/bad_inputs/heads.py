"""Rows, sections and suites of heads that predict numbers."""

from typing import Any

from tests.bad_inputs.case import REFUSED, Case, Place, jsonl, plan_of

TEXTS = ("good", "fair", "bad")
REGRESSION = {"training": {"batch_size": 2, "objective": "regression"}}


def _rows(name: str, values: list[Any], *says: str, field: str = "score", **own: Any) -> Case:
    """Return the case of a regression's rows with these values of a field."""

    def write(place: Place) -> list[str]:
        rows = [{"text": text, field: one} for text, one in zip(TEXTS, values, strict=False)]
        return plan_of(place, jsonl(place, *rows), **(REGRESSION | own))

    return Case(name, write, says, REFUSED)


CASES = (
    _rows("a score that is a word", [1, "much", 2], "rows.jsonl:2", "score: not a number"),
    _rows("a score that is true", [1, True, 2], "rows.jsonl:2", "score: not a number"),
    _rows("a score that is a list", [1, [2], 2], "rows.jsonl:2", "score: not a number"),
    _rows("a score that is infinite", [1, "inf", 2], "rows.jsonl:2", "must be finite"),
    _rows("a score of null", [1, None, 2], "rows.jsonl:2", "regression needs a number"),
    _rows(
        "a label in place of a score", [1, 2], "needs a number", "format text-label", field="label"
    ),
    _rows("the same score in each row", [2, 2, 2.0], "nothing to learn", "score 2 in 3 rows"),
    _rows("scores that are a number", [1, 2], "scores: not an object", field="scores"),
    _rows("scores of nothing", [{}], "scores: not an object", field="scores"),
    _rows("scores of a null", [{"a": 1}, {"a": None}], "rows.jsonl:2", "scores.a", field="scores"),
    _rows(
        "scores with other names",
        [{"a": 1}, {"b": 2}],
        *("rows.jsonl:2", "got b; the head has a"),
        field="scores",
    ),
    _rows(
        "outputs that the rows do not have",
        [1, 2, 3],
        *("rows.jsonl:1", "got score; the head has a"),
        regression={"outputs": ["a"]},
    ),
    _rows("an output that stands twice", [1], "names a twice", regression={"outputs": ["a", "a"]}),
    _rows("no outputs", [1], "regression.outputs", regression={"outputs": []}),
    _rows("an unknown loss", [1], "regression.loss", "'mse' or 'huber'", regression={"loss": "l1"}),
    _rows(
        "a delta of another loss",
        [1],
        *("`huber_delta` has no effect on the loss mse",),
        regression={"huber_delta": 2},
    ),
    _rows(
        "a delta of zero",
        [1],
        *("regression.huber_delta", "greater than 0"),
        regression={"loss": "huber", "huber_delta": 0},
    ),
    _rows(
        "a section of another objective",
        [1],
        *("regression: is read by the objective regression only",),
        training={"batch_size": 2},
        regression={},
    ),
)
