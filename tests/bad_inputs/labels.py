"""Labels: searches for label errors, and groups of rows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import CHAT_ROW, Case, Place, jsonl, plan_of

TRAINING = {"batch_size": 2, "objective": "classification"}
ROWS = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(8)]


def _audit(
    name: str, audit: Mapping[str, Any], *says: str, rows: Sequence[object] = ROWS, **sections: Any
) -> Case:
    """Return the case of a plan of a classification with these fields of `data.audit`."""

    def write(place: Place) -> list[str]:
        arguments = plan_of(place, jsonl(place, *rows), **{"training": TRAINING, **sections})
        path = Path(arguments[1])
        recipe = json.loads(path.read_text())
        recipe["data"]["audit"] = {"duplicates": 1, **audit}
        path.write_text(json.dumps(recipe))
        return arguments

    return Case(name, write, says)


def _select(name: str, options: Sequence[str], *says: str) -> Case:
    """Return the case of a choice of texts by what is no run."""

    def write(place: Place) -> list[str]:
        return ["select", str(place.adapter), str(jsonl(place, {"text": "a"})), *options]

    return Case(name, write, says)


CASES = (
    _select("texts chosen by what is no run", ["--n", "1"], "not a run directory"),
    _select("no text to choose", ["--n", "0"], "--n", "1"),
    _audit(
        "a search for label errors that is true",
        {"label_errors": True},
        "data.audit.label_errors",
        "'show'",
    ),
    _audit(
        "a search for label errors in chats",
        {"label_errors": "drop"},
        "data.audit.label_errors: only rows of a classification have labels",
        "(got drop)",
        "Fix: remove it",
        rows=[CHAT_ROW],
        training={"batch_size": 2},
    ),
    _audit(
        "folds without a search for label errors",
        {"label_error_folds": "rows"},
        "data.audit.label_error_folds: has no effect without data.audit.label_errors",
    ),
    _audit(
        "a search for label errors in one cluster",
        {"label_errors": "show"},
        "data.audit.label_errors: the rows cannot be divided into folds",
        "(got 8 rows in 1 groups)",
        "data.audit.label_error_folds=rows",
        rows=[row | {"cluster": "one"} for row in ROWS],
    ),
    _audit("a cluster that is a list", {}, "rows.jsonl:1", "cluster", rows=[
        row | {"cluster": ["one"]} for row in ROWS
    ]),
    _audit("a cluster that is empty", {}, "rows.jsonl:1", "cluster", rows=[
        row | {"cluster": " "} for row in ROWS
    ]),
)  # fmt: skip
