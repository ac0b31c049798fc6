"""Tables: CSV, TSV and JSON files as other tools write them."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import REFUSED, Case, Place, jsonl, plan_of, plan_of_rows

GOOD = '{"prompt": "Name a colour.", "completion": "Red."}'
HEADER = "prompt,completion\n"
PAIR = "Name a colour.,Red.\n"
ROW = {"prompt": "Name a colour.", "completion": "Red."}
USER = {"role": "user", "content": "Name a colour."}
ANSWER = {"role": "assistant", "content": "Red."}
KTO = {"training": {"batch_size": 2, "objective": "kto"}}


def _of_files(
    name: str, where: str, content: Any, *says: str, status: int = REFUSED, **sections: Any
) -> Case:
    """Return the case of a plan of a file, or of a folder.

    Args:
        name: name of the case.
        where: name of the file or folder.
        content: content of the file; contents of the folder's files by name; or a function that
            writes either.
        says: texts of the answer.
        status: exit status.
        sections: further sections of the recipe.
    """

    def write(place: Place) -> list[str]:
        path = place.folder / where
        if callable(content):
            content(path)
        elif isinstance(content, dict):
            for inner, text in content.items():
                (path / inner).parent.mkdir(parents=True, exist_ok=True)
                (path / inner).write_text(text)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return plan_of(place, path, **sections)

    return Case(name, write, says, status)


def _plan_of_file(
    name: str, file: str, content: str | bytes, says: Sequence[str], status: int = REFUSED
) -> Case:
    return _of_files(name, file, content, *says, status=status)


def saved(
    kind: Any, rows: Sequence[Any] = (ROW, ROW), features: Any = None
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


def _headers(place: Place) -> list[str]:
    folder = place.folder / "parts"
    folder.mkdir()
    (folder / "a.csv").write_text(HEADER + PAIR)
    (folder / "b.csv").write_text("prompt,answer\n" + PAIR)
    return plan_of(place, folder)


def _classification(name: str, labels: Sequence[object], *says: str) -> Case:

    def write(place: Place) -> list[str]:
        path = place.folder / "rows.jsonl"
        rows = [json.dumps({"text": f"text {n}", "label": x}) for n, x in enumerate(labels)]
        path.write_text("\n".join(rows))
        return plan_of(place, path, training={"batch_size": 2, "objective": "classification"})

    return Case(name, write, says)


def _kto(name: str, label: str, *says: str) -> Case:
    def write(place: Place) -> list[str]:
        path = place.folder / "rows.jsonl"
        path.write_text(f'{GOOD[:-1]}, "label": {label}}}\n')
        return plan_of(place, path, **KTO)

    return Case(name, write, says)


def _not_utf8(place: Place) -> list[str]:
    folder = place.folder / "rows"
    folder.mkdir()
    (folder / os.fsdecode(b"a\xff.jsonl")).write_text(GOOD)
    return plan_of(place, folder)


def _revision(name: str, of_model: Callable[[Place], str], kind: str) -> Case:
    def write(place: Place) -> list[str]:
        backbone = {"model": of_model(place), "quantization": "none", "revision": "main"}
        return plan_of(place, jsonl(place, GOOD), backbone=backbone)

    return Case(name, write, ("backbone.revision", kind, "got main"))


CASES = (
    # CSV and TSV.
    _plan_of_file(
        "a comma too many in every row",
        "rows.csv",
        HEADER + "Name a colour,please.,Red.\n" * 3,
        ("rows.csv:2", "got 3 fields", "prompt, completion"),
    ),
    _plan_of_file(
        "a comma too many in a later row",
        "rows.csv",
        HEADER + PAIR + "Name one, please.,Red.\n",
        ("rows.csv:3", "got 3 fields"),
    ),
    _plan_of_file(
        "a trailing comma in every row",
        "rows.csv",
        HEADER + "Name a colour.,Red.,\n" * 2,
        ("rows.csv:2", "got 3 fields"),
    ),
    _plan_of_file(
        "a field too few", "rows.csv", HEADER + PAIR + "Why?\n", ("rows.csv:3", "got 1 fields")
    ),
    _plan_of_file(
        "a field too few after a quoted line end",
        "rows.csv",
        HEADER + '"Name\na colour.",Red.\n' + "Why?\n",
        ("rows.csv:4", "got 1 fields"),
    ),
    _plan_of_file(
        "a field too few after blank lines and Windows line ends",
        "rows.csv",
        "prompt,completion\r\n\r\nName one.,Red.\r\n\r\nWhy?\r\n",
        ("rows.csv:5", "got 1 fields"),
    ),
    _plan_of_file(
        "a tab too many",
        "rows.tsv",
        "prompt\tcompletion\nName\tone.\tRed.\n",
        ("rows.tsv:2", "got 3 fields"),
    ),
    _plan_of_file(
        "a quoted tab", "rows.tsv", 'prompt\tcompletion\n"a\tb"\tRed.\n', ("rows.tsv:2", "3 fields")
    ),
    _plan_of_file(
        "a quote that is never closed",
        "rows.csv",
        HEADER + PAIR + '"Name one.,Red.\n' + PAIR,
        ("rows.csv:3", "close each quote"),
    ),
    _plan_of_file(
        "a text behind a quoted field",
        "rows.csv",
        HEADER + '"Name" one.,Red.\n',
        ("rows.csv:2", "cannot be read as csv"),
    ),
    _plan_of_file(
        "a CSV file in Latin 1",
        "rows.csv",
        (HEADER + PAIR + "Nom?,Zoé\n").encode("latin-1"),
        ("rows.csv:3", "not UTF-8"),
    ),
    _plan_of_file(
        "a CSV file in UTF-16",
        "rows.csv",
        (HEADER + PAIR).encode("utf-16"),
        ("rows.csv:1", "not UTF-8"),
    ),
    _plan_of_file(
        "a TSV file with a Latin 1 header",
        "rows.tsv",
        "é\tb\n".encode("latin-1"),
        ("rows.tsv:1", "not UTF-8"),
    ),
    _plan_of_file(
        "a NUL byte in a CSV file", "rows.csv", HEADER + "a\0b,c\n", ("rows.csv:2", "NUL")
    ),
    _plan_of_file("a NUL byte in a header", "rows.csv", "a\0b,c\n1,2\n", ("rows.csv:1", "NUL")),
    _plan_of_file("an empty CSV file", "rows.csv", "", ("rows.csv:1", "got nothing")),
    _plan_of_file("an empty TSV file", "rows.tsv", "\n\n", ("rows.tsv:1", "got nothing")),
    _plan_of_file("a CSV file of a header", "rows.csv", HEADER, ("rows.csv", "has no rows")),
    _plan_of_file(
        "a header that stands twice",
        "rows.csv",
        HEADER + PAIR + HEADER + PAIR,
        ("rows.csv:3", "header stands a second time"),
    ),
    _plan_of_file("a column named twice", "rows.csv", "text,text\na,b\n", ("rows.csv:1", "once")),
    _plan_of_file("a column without a name", "rows.csv", ",text\n0,a\n", ("rows.csv:1", "once")),
    Case("a folder of CSV files of other columns", _headers, ("b.csv:1", "columns differ")),
    # JSON.
    _plan_of_file(
        "a JSON list in a .jsonl file", "rows.jsonl", f"[{GOOD}]", ("rows.jsonl:1", "JSON list")
    ),
    _plan_of_file(
        "an indented JSON list in a .jsonl file",
        "rows.jsonl",
        f"\n[\n  {GOOD}\n]\n",
        ("rows.jsonl:2", "JSON list"),
    ),
    _plan_of_file(
        "JSON lines in a .json file, one of them broken",
        "rows.json",
        f"{GOOD}\n{GOOD[:-1]}\n",
        ("rows.json:2", "not valid JSON"),
    ),
    _plan_of_file("one object in a .json file", "rows.json", GOOD, ("rows.json", "JSON list")),
    _plan_of_file(
        "a key that stands twice",
        "rows.jsonl",
        f'{GOOD}\n{GOOD[:-1]}, "completion": "Blue."}}\n',
        ("rows.jsonl:2", "'completion' 2 times"),
    ),
    _plan_of_file(
        "a key that stands twice in a turn",
        "rows.jsonl",
        '{"messages": [{"role": "user", "content": "a", "content": "b"}]}\n',
        ("rows.jsonl:1", "'content' 2 times"),
    ),
    _plan_of_file(
        "a key that stands twice in a list's row",
        "rows.json",
        f'[{GOOD}, {{"text": "a", "text": "b"}}]',
        ("rows.json[1]", "'text' 2 times"),
    ),
    *(
        _plan_of_file(
            f"{number} in a row",
            "rows.jsonl",
            f'{GOOD[:-1]}, "score": {number}}}\n',
            ("rows.jsonl:1", number),
        )
        for number in ("NaN", "Infinity", "-Infinity", "1e999")
    ),
    *(
        _plan_of_file(f"half of a surrogate pair in {place}", "rows.jsonl", row, says)
        for place, row, says in (
            ("a text", '{"text": "a \\ud800 b"}', ("rows.jsonl:1", "text", "surrogate")),
            ("a key", '{"text": "a", "\\uDC00": 1}', ("rows.jsonl:1", "key", "surrogate")),
            (
                "a turn",
                '{"messages": [{"role": "user", "content": "\\udfff"}]}',
                ("rows.jsonl:1", "messages[0].content"),
            ),
            ("an unused field", '{"text": "a", "id": "\\ud83d"}', ("rows.jsonl:1", "id:")),
        )
    ),
    # Null values.
    plan_of_rows("a row of nulls", [{"messages": None, "text": None}], "rows.jsonl:1", "got None"),
    # Names.
    Case("a folder with a file name that is not UTF-8", _not_utf8, ("data.train", "\\udcff")),
    Case(
        "a file name that is not UTF-8",
        lambda place: plan_of(place, place.folder / os.fsdecode(b"b\xfe.csv")),
        ("data.train", "\\udcfe"),
    ),
    _revision("a revision of a directory", lambda place: str(place.model), "directory"),
    _revision("a revision of a GGUF file", lambda place: "none.gguf", "GGUF"),
    _revision("a revision of a package", lambda place: "package:no/model", "package"),
    _revision("a revision of an alias", lambda place: "smollm2-135m-instruct", "package"),
    # Labels.
    _classification("labels that differ in a space", ["pos", "pos ", "neg"], "'pos '", "'pos'"),
    _classification("labels that differ in a tab", ["a b", "a\tb", "c"], "'a\\tb'", "'a b'"),
    _kto("a KTO label of 2", "2", "rows.jsonl:1", "true or false"),
    _kto("a KTO label of a word", '"maybe"', "rows.jsonl:1", "true or false"),
    _kto("a KTO label of a text 2", '"2"', "rows.jsonl:1", "true or false"),
    _kto("a KTO label that is null", "null", "rows.jsonl:1", "true or false"),
    # Files and folders as exports have them.
    _of_files(
        "two CSV files with byte order marks, joined",
        "rows.csv",
        f"\ufeff{HEADER}{PAIR}\ufeff{HEADER}{PAIR}",
        "rows.csv:3",
        "header",
    ),
    _of_files(
        "two TSV files with byte order marks, joined",
        "rows.tsv",
        f"\ufeff{HEADER}{PAIR}\ufeff{HEADER}{PAIR}".replace(",", "\t"),
        "rows.tsv:3",
        "header",
    ),
    _of_files(
        "a bad row in a folder of CSV files",
        "parts",
        {"a.csv": HEADER + PAIR, "b.csv": HEADER + "Why?,\n"},
        "b.csv",
    ),
    _of_files(
        "a file of rows that begins with an underscore",
        "parts",
        {"a.jsonl": json.dumps(ROW), "_b.jsonl": json.dumps(ROW)},
        "2 for training",
        status=0,
    ),
    _of_files(
        "a file of rows called state.json",
        "parts",
        {"a.json": json.dumps([ROW]), "sub/state.json": json.dumps([ROW])},
        "2 for training",
        status=0,
    ),
    _of_files(
        "labels as texts and integers in Parquet",
        "parts",
        shards({"text": ["b"], "label": [3]}, {"text": ["a"], "label": ["01"]}),
        "01<|im_end|>",
        status=0,
    ),
    _of_files(
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
    _of_files(
        "a bad row in a folder of Parquet files",
        "parts",
        shards({"text": ["b"]}, {"text": [""]}),
        "b.parquet",
    ),
    _of_files(
        "another column in a folder of Parquet files",
        "parts",
        shards({"text": ["A river."]}, {"text": ["A sea."], "lang": ["en"]}),
        "lang of",
        status=0,
    ),
    *(
        _of_files(f"saved with the format {kind}", "rows", saved(kind), "Name a colour.", status=0)
        for kind in ("pandas", "arrow")
    ),
    _of_files(
        "saved with the format numpy and turns",
        "rows",
        saved("numpy", [{"messages": [USER, ANSWER]}]),
        "Name a colour.",
        status=0,
    ),
    _of_files(
        "saved with the format torch and KTO labels",
        "rows",
        saved("torch", [{**ROW, "label": True}, {**ROW, "label": False}]),
        "Name a colour.",
        status=0,
        **KTO,
    ),
    _of_files(
        "saved with a format that hides a column",
        "rows",
        saved(["prompt", "completion"], [{**ROW, "system": "Be short."}]),
        "Be short.",
        status=0,
    ),
    _of_files("an escape in a header", "rows.csv", "pro\x1b[31mmpt,completion\na,b\n", "rows.csv"),
    _of_files(
        "an escape in a column that is not used",
        "rows.csv",
        "prompt,completion,x\x1b[31my\na,b,c\n",
        "not used",
        status=0,
    ),
)
