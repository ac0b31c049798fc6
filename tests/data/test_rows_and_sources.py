import json
from pathlib import Path

import pytest

from lora_kit.data.rows import Row
from lora_kit.data.sources import BUILT_IN, open_source
from lora_kit.recipe.data import DataSpec, SourceSpec
from lora_kit.runtime.errors import DataError
from tests.training_rows import training_rows


def read(source: str, **options: object) -> list[Row]:
    spec = SourceSpec.model_validate({"source": source, **options})
    return list(open_source(spec, seed=0, field="data.train.0.source"))


@pytest.mark.parametrize("source", ["stdlib-docstrings", "python-reference"])
def test_splits_of_a_built_in_source_partition_its_clusters(source: str) -> None:
    parts = {split: read(source, split=split) for split in ("train", "validation", "test")}
    clusters = {split: {row.cluster for row in rows} for split, rows in parts.items()}
    assert not clusters["train"] & clusters["test"]
    assert not clusters["train"] & clusters["validation"]
    assert not clusters["validation"] & clusters["test"]
    assert sum(map(len, parts.values())) == len(read(source, split="all"))
    assert all(parts.values())


@pytest.mark.parametrize("source", ["sums", "python-reference", "stdlib-areas"])
def test_a_built_in_source_has_rows_of_its_format(source: str) -> None:
    """Reading the other sources takes seconds each; recipes that learn them read them."""
    row = BUILT_IN[source].read()[0]
    has = {"text": row.text is not None, "text-label": row.label is not None}
    assert BUILT_IN[source].format == next((form for form, held in has.items() if held), "messages")


def test_no_document_of_the_test_split_is_text_of_the_training_split() -> None:
    def shingles(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 12]) for i in range(len(words) - 11)}

    seen = set().union(*(shingles(row.text or "") for row in read("python-reference")))
    tested = [shingles(row.text or "") for row in read("python-reference", split="test")]
    shares = [len(one & seen) / len(one) for one in tested if one]
    # Topics quote one another: at most a sentence or two of a document.
    assert max(shares) < 0.3
    assert sum(share > 0 for share in shares) <= 0.05 * len(tested)


def test_docstrings_are_removed_from_the_code() -> None:
    rows = read("stdlib-docstrings", split="all")
    assert len(rows) > 3000
    for row in rows:
        prompt, summary = (message.content for message in row.messages)
        assert summary not in prompt
        assert 15 <= len(summary) <= 120
    assert len({row.messages[1].content for row in rows}) == len(rows)


def test_a_limit_picks_the_same_rows_by_seed() -> None:
    some = read("stdlib-docstrings", limit=5)
    assert some == read("stdlib-docstrings", limit=5)
    other = open_source(SourceSpec(source="stdlib-docstrings", limit=5), seed=1, field="x")
    assert list(other) != some


def test_the_path_of_a_file_does_not_change_the_sample(chats: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.jsonl").write_text(chats.read_text())
    here, there = (read(str(p), limit=5) for p in (chats, tmp_path / "elsewhere.jsonl"))
    assert [row.messages for row in here] == [row.messages for row in there]


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_missing_column_names_the_field_of_its_source(tmp_path: Path, part: str) -> None:
    (tmp_path / "texts.jsonl").write_text('{"body": "b"}\n')
    spec = SourceSpec(source=str(tmp_path / "texts.jsonl"), format="text")
    with pytest.raises(DataError, match=rf"Fix: map it with data\.{part}\.1\.columns"):
        list(open_source(spec, 0, f"data.{part}.1.source"))


def test_a_file_of_chats_is_read_in_both_formats(chats: Path) -> None:
    rows = read(str(chats))
    assert len(rows) == 50
    assert [m.role for m in rows[0].messages] == ["system", "user", "assistant"]
    assert [m.role for m in rows[1].messages] == ["user", "assistant"]
    assert rows[1].origin == f"{chats}:2"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "not valid JSON"),
        ("[1]", "a row must be an object (got list)"),
        ('{"question": "?"}', "no known format (got the keys question)"),
        ('{"prompt": "a", "completion": ""}', "`completion` must be a non-empty text"),
        ('{"prompt": 3, "completion": "b"}', "`prompt` must be a non-empty text"),
        ('{"messages": []}', "`messages` must be a non-empty list"),
        (
            '{"messages": [{"role": "human", "content": "a"}]}',
            "unknown role (got 'human'). Fix: use one of system",
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}]}',
            "the last turn must be the assistant's (got the user's)",
        ),
        ('{"messages": ["a"]}', "messages[0]: a turn must have `role` and `content`"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, line: str, part: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n\n" + line + "\n")
    with pytest.raises(DataError) as caught:
        read(str(path))
    assert f"{path}:3" in str(caught.value)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("stdlib-docstring", "Did you mean `stdlib-docstrings`"),
        ("absent.jsonl", "no such file"),
        ("data.csv", "no such file"),
        ("data.xls", "unknown source (got data.xls). Fix: name a built-in source"),
    ],
)
def test_an_unknown_source_is_refused_with_the_alternatives(source: str, part: str) -> None:
    with pytest.raises(DataError, match=r"data\.train\.0\.source") as caught:
        read(source)
    assert part in str(caught.value)


def test_an_empty_file_and_a_file_with_a_split_are_refused(tmp_path: Path, chats: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no rows"):
        read(str(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="no split `test`"):
        read(str(chats), split="test")


def test_replay_has_the_requested_fraction(chats: Path) -> None:
    spec = DataSpec.model_validate(
        {
            "train": [{"source": str(chats)}],
            "replay": {"source": "python-reference", "fraction": 0.2},
        }
    )
    rows, replay = training_rows(spec, seed=0)
    assert (len(rows), replay) == (62, 12)
    assert sum(row.text is not None for row in rows) == 12
    assert list(rows) != sorted(rows, key=lambda row: row.text is not None), (
        "replay stands in one block"
    )


def test_a_replay_source_with_too_few_rows_is_refused(chats: Path) -> None:
    spec = DataSpec.model_validate(
        {"train": [{"source": str(chats)}], "replay": {"source": str(chats), "fraction": 0.9}}
    )
    with pytest.raises(DataError, match=r"data\.replay\.fraction.*lower it"):
        training_rows(spec, seed=0)
