"""Sources of every kind: the same rows by index, their origins, and refusals."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from lora_kit.data.files.lines import index_lines, index_list
from lora_kit.data.files.readers import TableRequest
from lora_kit.data.files.tables import open_table, read_table
from lora_kit.runtime.errors import DataError
from tests.data.tables import PAIRS, answers, opened, save


@pytest.mark.parametrize("kind", ["p.jsonl", "p.json", "p.csv", "p.tsv", "p.parquet", "saved"])
def test_rows_are_the_same_from_any_table(tmp_path: Path, kind: str) -> None:
    path = save(PAIRS, tmp_path / kind)
    rows = opened(path)
    assert len(rows) == 25
    # A CSV file's 001 is a text, and stays one.
    assert answers(rows) == [row["completion"] for row in PAIRS]
    order = list(range(25))
    random.Random(0).shuffle(order)
    assert [rows[n].messages[0].content for n in order] == [PAIRS[n]["prompt"] for n in order]
    assert rows[-1] == list(rows)[24]
    assert rows[3].origin == (f"{path}:4" if kind == "p.jsonl" else f"{path}[3]")
    assert answers(rows[20:22]) == ["021", "022"]
    assert rows.formats() == {str(path): "prompt-completion"}


def test_csv_fields_are_read_as_text(tmp_path: Path) -> None:
    rows = [{"prompt": "007", "completion": "None"}, {"prompt": "1.50", "completion": "NA"}]
    path = save(rows, tmp_path / "t.csv")
    assert [(r.messages[0].content, r.messages[1].content) for r in opened(path)] == [
        ("007", "None"),
        ("1.50", "NA"),
    ]
    # An evaluation reads the same texts.
    assert [value for value, _ in read_table(TableRequest(str(path), "x"))] == rows
    (tmp_path / "twice.csv").write_text("text,text\na,b\n")
    with pytest.raises(DataError, match=r"twice\.csv:1: the first line must name the columns"):
        opened(tmp_path / "twice.csv")


def test_a_quote_in_tsv_is_text_and_json_lines_are_read_from_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('text\tkind\n"a" 5" b\t""\n')
    assert [value for value, _ in read_table(TableRequest(str(path), "x"))] == [
        {"text": '"a" 5" b', "kind": '""'}
    ]
    path = tmp_path / "t.json"
    path.write_text('\ufeff{"text": "a"}\n\n{"text": "b"}\n')
    found = list(read_table(TableRequest(str(path), "x")))
    assert found == [({"text": "a"}, f"{path}:1"), ({"text": "b"}, f"{path}:3")]


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".parquet"])
def test_a_file_that_is_written_again_in_the_same_second_is_read_again(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"t{kind}"
    for text in ("first", "other", "first"):
        save([{"text": text}], path)
        os.utime(path, (1_700_000_000, 1_700_000_000))
        assert [row.text for row in opened(path)] == [text]


@pytest.mark.parametrize("seed", range(5))
def test_csv_fields_are_read_as_they_are_written(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    pieces = ['"', ",", "\n", "\r\n", " ", "a", "01", "NA", "null", "é", ";", "\t", "'", "\\"]
    rows = [
        {key: "".join(generator.choices(pieces, k=generator.randrange(6))) for key in ("b", "a")}
        for _ in range(50)
    ]
    rows = [row for row in rows if row["b"] != "b"]
    path = save(rows, tmp_path / "t.csv")
    assert [value for value, _ in read_table(TableRequest(str(path), "x"))] == rows


def test_text_of_a_parquet_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.array([b"a", b"\xed\xa0\x80"], pa.binary())
    pq.write_table(pa.table({"text": texts.view(pa.string())}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet\[1\]: not UTF-8 text"):
        list(opened(tmp_path / "t.parquet"))


def test_lines_are_indexed_without_being_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    values = [{"n": n, "text": "é\u2028" * (n % 7)} for n in range(300)]
    text = "\ufeff\n" + "\r\n \n".join(json.dumps(v, ensure_ascii=False) for v in values)
    path.write_bytes(text.encode())
    table = index_lines(path, path)
    assert len(table) == 300
    assert table.take(range(300)) == values
    assert [table.origin(n) for n in (0, 1, 299)] == [f"{path}:{line}" for line in (2, 4, 600)]
    generator = random.Random(0)
    for _ in range(20):
        some = generator.choices(range(300), k=5)
        assert table.take(some) == [values[n] for n in some]
    assert set(vars(table)) == {"path", "original", "offsets", "lengths", "lines"}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("indent", [None, 2])
def test_values_of_a_list_are_indexed_without_being_held_in_memory(
    tmp_path: Path, indent: int | None, mark: str
) -> None:
    path = tmp_path / "list.json"
    values = [{"n": n, "text": "é],[\u2028" * (n % 5), "in": [[n], {}]} for n in range(60)]
    text = mark + json.dumps(values, ensure_ascii=False, indent=indent)
    path.write_bytes(text.replace("\n", "\r\n").encode())
    table = index_list(path, path)
    assert table.take(range(60)) == values
    assert table.take([59, 3, 3]) == [values[59], values[3], values[3]]
    assert table.origin(7) == f"{path}[7]"
    path.write_text(f" [ ] {mark}".strip("\ufeff"))
    assert len(index_list(path, path)) == 0


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"a": 1}', "a JSON list (got dict instead of a list)"),
        ("[1, 2", "neither `,` nor the list's end at character 5"),
        ("[1 2]", "neither `,` nor the list's end at character 2"),
        ("[1, ]", "Expecting value"),
        ("[1] 2", "neither `,` nor the list's end at character 2"),
        ("", "Expecting value"),
    ],
)
def test_malformed_lists_are_refused(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(DataError, match=r"list\.json: cannot be read as a JSON list") as caught:
        index_list(tmp_path / "list.json", tmp_path / "list.json")
    assert part in str(caught.value)


def test_a_malformed_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": \n{"text": "\xff"}\n')
    rows = opened(path)
    assert rows[0].text == "a"
    with pytest.raises(DataError, match=r"lines\.jsonl:2: not valid JSON"):
        rows[1]
    with pytest.raises(DataError, match=r"lines\.jsonl:3: not UTF-8 text"):
        rows[2]


def test_a_directory_of_splits_is_read_by_split(tmp_path: Path) -> None:
    import datasets

    parts = {"train": PAIRS[:5], "test": PAIRS[5:]}
    saved = datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in parts.items()})
    saved.save_to_disk(str(tmp_path / "both"))
    assert len(opened(tmp_path / "both")) == 5
    assert len(opened(tmp_path / "both", split="test")) == 20
    with pytest.raises(DataError, match=r"no split `dev`\. Fix: use one of train, test"):
        opened(tmp_path / "both", split="dev")
    save(PAIRS, tmp_path / "one")
    with pytest.raises(DataError, match="has no split `test`"):
        opened(tmp_path / "one", split="test")


def test_class_indices_are_read_as_class_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = [{"text": "fine", "label": 1}, {"text": "awful", "label": 0}]
    table = datasets.Dataset.from_list(rows, features=features)
    table.save_to_disk(str(tmp_path / "saved"))
    found = list(opened(tmp_path / "saved"))
    assert [row.label for row in found] == ["good", "bad"]
    assert [row.messages[1].content for row in found] == ["good", "bad"]


def test_arrow_adds_no_fields_to_a_turn(tmp_path: Path) -> None:
    call, other = (
        {"type": "function", "function": {"name": "f", "arguments": arguments}}
        for arguments in ({"a": 1}, {"b": "x"})
    )
    turns = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "", "tool_calls": [call, other]},
        {"role": "tool", "content": "So."},
        {"role": "assistant", "content": "So."},
    ]
    path = save([{"messages": turns}], tmp_path / "t.parquet")
    (row,) = opened(path)
    assert [message.tool_calls for message in row.messages] == [(), (call, other), (), ()]
    assert not any(message.extra for message in row.messages)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"subset": "en"}, r"subset: .* is no hub id, .*\(got en\)\. Fix: remove it"),
        ({"revision": "main"}, "revision: .* is no hub id"),
        ({"streaming": True, "limit": 3}, "streaming: .* is no hub id"),
        ({"split": "test"}, r"split: .*has no split `test`\. Fix: remove it"),
        ({"columns": {"promt": "x"}}, "columns: promt is no field .*. Did you mean `prompt`"),
    ],
)
def test_unused_options_of_a_file_are_refused(
    chats: Path, options: dict[str, Any], part: str
) -> None:
    with pytest.raises(DataError, match=rf"^data\.train\.0\.{part}"):
        opened(chats, **options)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"columns": {"text": "x"}}, "columns: python-reference is built in"),
        ({"format": "messages"}, "format: python-reference is built in"),
        ({"split": "dev"}, r"no split `dev`\. Fix: use one of train, validation, test, all"),
    ],
)
def test_unused_options_of_a_built_in_source_are_refused(
    options: dict[str, Any], part: str
) -> None:
    with pytest.raises(DataError, match=part):
        opened("python-reference", **options)


def test_a_hub_id_is_streamed_up_to_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is a local folder here, read by the real library."""
    import datasets

    load = datasets.load_dataset
    asked = []

    def local(source: str, subset: str | None, **options: Any) -> Any:
        asked.append((source, subset, options.pop("revision"), options.get("streaming", False)))
        return load("parquet", data_files={"train": str(tmp_path / "*.parquet")}, **options)

    monkeypatch.setattr(datasets, "load_dataset", local)
    save(PAIRS, tmp_path / "x.parquet")
    options = {"subset": "en", "revision": "abc"}
    rows = opened("owner/sums", streaming=True, limit=4, **options)
    assert answers(rows) == ["001", "002", "003", "004"]
    assert rows[2].origin == "owner/sums[2]"
    assert len(opened("owner/sums", **options)) == 25
    assert asked == [("owner/sums", "en", "abc", True), ("owner/sums", "en", "abc", False)]
    assert list(rows.formats()) == ["owner/sums/en"]
    with pytest.raises(DataError, match=r"train\.0\.limit: missing, but owner/sums is streamed"):
        opened("owner/sums", streaming=True)


def test_the_digest_covers_content_and_options(tmp_path: Path) -> None:
    path = save(PAIRS, tmp_path / "p.jsonl")
    digests = {
        opened(path).digest(),
        opened(path, limit=24).digest(),
        opened(path, format="prompt-completion").digest(),
        opened(path, columns={"completion": "prompt"}).digest(),
        opened(save(PAIRS[::-1], tmp_path / "q.jsonl")).digest(),
        opened("python-reference").digest(),
        opened("python-reference", split="test").digest(),
    }
    assert len(digests) == 7
    assert opened(path).digest() in digests
    save([*PAIRS[:-1], {"prompt": "24 + 1?", "completion": "026"}], path)
    assert opened(path).digest() not in digests
    table = open_table(TableRequest(str(save(PAIRS, tmp_path / "p.parquet")), "x"))
    assert table.digest() == open_table(TableRequest(str(tmp_path / "p.parquet"), "x")).digest()


def test_a_null_column_beside_those_of_another_format_is_absent(tmp_path: Path) -> None:
    rows = [
        {"messages": None, **PAIRS[0]},
        {"messages": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]},
    ]
    found = list(opened(save(rows, tmp_path / "rows.jsonl")))
    assert [m.content for m in found[0].messages] == list(PAIRS[0].values())
    assert [m.content for m in found[1].messages] == ["A", "B"]
