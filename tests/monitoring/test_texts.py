"""Texts of a stream: formats, answers, times, windows."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_kit.monitoring.texts import (
    StreamText,
    parse_duration,
    parse_time,
    read_texts,
    texts_since,
)
from lora_kit.monitoring.windows import windows_of_texts, windows_of_time
from lora_kit.runtime.errors import DataError

USER = {"role": "user", "content": "Who?"}
ANSWER = {"role": "assistant", "content": "Me."}


def read(folder: Path, *rows: Any, **options: Any) -> list[StreamText]:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_texts(path, "TEXTS", **options)


@pytest.mark.parametrize(
    ("row", "text", "has_answer"),
    [
        ({"text": "Who?"}, "Who?", False),
        ({"text": "Who?", "label": None}, "Who?", False),
        ({"text": "Who?", "label": "person"}, "Who?", True),
        ({"prompt": "Who?"}, "Who?", False),
        ({"prompt": "Who?", "completion": "Me."}, "Who?", True),
        ({"messages": [USER]}, "Who?", False),
        ({"messages": [USER, ANSWER]}, "Who?", True),
        ({"messages": [USER, ANSWER, USER]}, "Who?\n\nMe.\n\nWho?", False),
        ({"instruction": "Who?", "output": "Me."}, "Who?", True),
    ],
)
def test_the_text_is_what_comes_before_the_answer(
    tmp_path: Path, row: Any, text: str, has_answer: bool
) -> None:
    (found,) = read(tmp_path, row)
    assert (found.text, found.has_answer) == (text, has_answer)


def test_texts_are_in_the_order_of_their_times(tmp_path: Path) -> None:
    times = ["2026-03-01T12:00:00+02:00", "2026-03-01", "2026-03-01T11:00:00Z", "2026-02-28"]
    found = read(tmp_path, *({"text": f"t{n}", "time": time} for n, time in enumerate(times)))
    assert [one.text for one in found] == ["t3", "t1", "t0", "t2"]
    assert [one.text for one in texts_since(found, "2026-03-01")] == ["t1", "t0", "t2"]


def test_texts_of_the_same_time_stay_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = read(tmp_path, *({"text": f"t{n}", "time": 7 - n // 2} for n in range(4)))
    assert [one.text for one in found] == ["t2", "t3", "t0", "t1"]


def test_tables_have_times_of_their_own_type(tmp_path: Path) -> None:
    moments = [datetime(2026, 3, n, tzinfo=UTC) for n in (2, 1)]
    pq.write_table(pa.table({"text": ["b", "a"], "time": moments}), tmp_path / "texts.parquet")
    assert [one.text for one in read_texts(tmp_path / "texts.parquet", "TEXTS")] == ["a", "b"]
    (tmp_path / "texts.csv").write_text("text,time\nb,2026-03-02\na,2026-03-01\n")
    assert [one.text for one in read_texts(tmp_path / "texts.csv", "TEXTS")] == ["a", "b"]


@pytest.mark.parametrize("value", ["soon", True, float("nan"), [1], ""])
def test_unreadable_times_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match="rows:3: time: not a date in ISO 8601"):
        parse_time(value, "rows:3: time")


def test_clusters_are_those_of_a_field(tmp_path: Path) -> None:
    (found,) = read(tmp_path, {"text": "t", "user": 7}, cluster="user")
    assert found.cluster == "7"
    with pytest.raises(DataError, match=r"no field 'usr' \(got text, user\).+mean `user`"):
        read(tmp_path, {"text": "t", "user": 7}, cluster="usr")


def test_windows_by_number_leave_the_rest(tmp_path: Path) -> None:
    texts = read(tmp_path, *({"text": f"t{n}"} for n in range(25)))
    assert [(one.start, one.end) for one in windows_of_texts(texts, 10)] == [(0, 10), (10, 20)]


def test_windows_by_time_leave_the_span_that_is_not_over(tmp_path: Path) -> None:
    hours = [0, 1, 5, 26, 27, 100]
    texts = read(tmp_path, *({"text": f"t{n}", "time": 3600 * n} for n in hours))
    windows = windows_of_time(texts, parse_duration("1d"))
    assert [(one.start, one.end) for one in windows] == [(0, 3), (3, 5)]


@pytest.mark.parametrize("text", ["1", "d", "0d", "-1d", "1.5d", "1 month"])
def test_durations_are_a_number_and_a_unit(text: str) -> None:
    with pytest.raises(DataError, match="--every: not a duration"):
        parse_duration(text)
