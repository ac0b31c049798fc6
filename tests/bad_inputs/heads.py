"""Rows and sections of heads that predict numbers, labels or tags."""

from typing import Any

from tests.bad_inputs.case import REFUSED, Case, Place, jsonl, plan_of

TEXTS = ("good", "fair", "bad")
REGRESSION, LABELS, TOKENS = (
    {"training": {"batch_size": 2, "objective": name}}
    for name in ("regression", "multi-label", "token-classification")
)


def _rows(name: str, values: list[Any], *says: str, field: str = "score", **own: Any) -> Case:
    """Return the case of rows with these values of a field; of a regression, or labels."""

    def write(place: Place) -> list[str]:
        rows = [{"text": text, field: one} for text, one in zip(TEXTS, values, strict=False)]
        objective = LABELS if field == "labels" else REGRESSION
        return plan_of(place, jsonl(place, *rows), **(objective | own))

    return Case(name, write, says, REFUSED)


def _tags(name: str, values: list[Any], *says: str, **own: Any) -> Case:
    return _rows(name, values, *says, field="labels", **own)


def _words(name: str, rows: list[tuple[Any, Any]], *says: str, **own: Any) -> Case:
    """Return the case of rows with these words and tags."""

    def write(place: Place) -> list[str]:
        written = [{"tokens": tokens, "tags": tags} for tokens, tags in rows]
        return plan_of(place, jsonl(place, *written), **(TOKENS | own))

    return Case(name, write, says, REFUSED)


# A row without a fault.
GOOD = (["in", "Rome"], ["O", "B-place"])
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
    _tags("labels that are a text", [["a"], "a"], "rows.jsonl:2", "labels: not a list of texts"),
    _tags("labels that are numbers", [["a"], [1]], "rows.jsonl:2", "labels: not a list of texts"),
    _tags("a label without letters", [["a"], [" "]], "rows.jsonl:2", "not a list of texts"),
    _tags("labels of null", [["a"], None], "rows.jsonl:2", "needs a list of labels"),
    _tags("a label that stands twice", [["a"], ["b", "b"]], "rows.jsonl:2", "'b'"),
    _tags("no labels in any row", [[], []], "no row has a label"),
    _tags("a label in all rows", [["a"], ["a", "b"]], "all training rows have", "'a'"),
    _tags("tags that differ in a space", [["a"], ["a "]], "'a'", "'a '"),
    _tags(
        "a label that the head does not have",
        [["a"], ["b"]],
        *("rows.jsonl:2", "got 'b'; the head has a"),
        multi_label={"labels": ["a"]},
    ),
    _tags(
        "a label without a row",
        [["a"], []],
        *("multi_label.labels: no training row has", "'b'"),
        multi_label={"labels": ["a", "b"]},
    ),
    _tags("a label named twice", [["a"], []], "a twice", multi_label={"labels": ["a", "a"]}),
    _tags(
        "a positive weight of no label",
        [["a"], []],
        *("multi_label.positive_weights: unknown label", "'b'"),
        multi_label={"positive_weights": {"b": 2}},
    ),
    _tags(
        "a positive weight of zero",
        [["a"], []],
        *("multi_label.positive_weights.a", "greater than 0"),
        multi_label={"positive_weights": {"a": 0}},
    ),
    _tags(
        "a negative focusing parameter",
        [["a"], []],
        "multi_label.focal_gamma",
        multi_label={"focal_gamma": -1},
    ),
    _tags("a threshold of one", [["a"], []], "threshold", multi_label={"threshold": 1}),
    _tags("a threshold of a word", [["a"], []], "threshold", multi_label={"threshold": "best"}),
    _tags(
        "labels for another objective",
        [["a"], []],
        "multi_label: is read by the objective multi-label only",
        training={"batch_size": 2},
        multi_label={},
    ),
    _words(
        "tokens that are a text", [GOOD, ("in Rome", ["O"])], "rows.jsonl:2", "not a list of texts"
    ),
    _words(
        "a token that is empty", [GOOD, (["in", " "], ["O", "O"])], "rows.jsonl:2", "tokens: not"
    ),
    _words("a token that is a number", [GOOD, ([1], ["O"])], "rows.jsonl:2", "tokens: not a list"),
    _words("no tokens", [GOOD, ([], [])], "rows.jsonl:2", "tokens: no words"),
    _words(
        "fewer tags than tokens",
        [GOOD, (["in", "Rome"], ["O"])],
        *("rows.jsonl:2", "got 1 tags of 2 tokens"),
    ),
    _words("tags of null", [GOOD, (["in"], None)], "rows.jsonl:2", "tags: not a list"),
    _words("tags that are numbers", [GOOD, (["in"], [0])], "rows.jsonl:2", "tags: not a list"),
    _words(
        "a tag that is not BIO", [GOOD, (["in"], ["place"])], "tags[0]: not a BIO tag", "'place'"
    ),
    _words(
        "a tag of another scheme", [(["a"], ["S-place"])], "tags[0]: not a BIO tag", "'S-place'"
    ),
    _words(
        "an I that continues nothing",
        [GOOD, (["in", "Rome"], ["O", "I-place"])],
        *("rows.jsonl:2", "tags[1]: I-place continues no entity", "after 'O'"),
    ),
    _words(
        "an I of another type",
        [GOOD, (["Ada", "Rome"], ["B-person", "I-place"])],
        *("rows.jsonl:2", "I-place continues no entity", "after 'B-person'"),
    ),
    _words("no entity in any row", [(["in"], ["O"])], "no row has an entity"),
    _words(
        "a tag that the head does not have",
        [GOOD, (["Ada"], ["B-person"])],
        *("rows.jsonl:2", "got 'B-person'; the head has O, B-place, I-place"),
        token_classification={"entities": ["place"]},
    ),
    _words(
        "a type of entities without a row",
        [GOOD],
        *("token_classification.entities: no training row has the type", "'time'"),
        token_classification={"entities": ["place", "time"]},
    ),
    _words("no types", [GOOD], "entities", token_classification={"entities": []}),
    _words(
        "retrieval of tags",
        [GOOD],
        *("evaluation.arms", "the tags of another text do not fit"),
        evaluation={"arms": ["base", "adapter", "retrieval"]},
    ),
    _words(
        "a section of tags for another objective",
        [GOOD],
        "token_classification: is read by the objective token-classification only",
        training={"batch_size": 2},
        token_classification={},
    ),
)
