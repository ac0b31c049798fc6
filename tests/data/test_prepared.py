"""Tokenized data: contents of the cache, and reuse while nothing has changed."""

import copy
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_kit.data import row_sets, store, workers
from lora_kit.data.dataset import prepare
from lora_kit.data.prepared import PreparedData
from lora_kit.data.row_sets import Rows
from lora_kit.data.tokenization import tokenize_rows
from lora_kit.recipe.data import DataSpec
from lora_kit.runtime.errors import DataError
from tests.training_rows import training_rows

ROWS = 60


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cache from 10 rows on, in a folder of the test."""
    monkeypatch.setattr(store, "MIN_CACHED_ROWS", 10)
    monkeypatch.setattr("lora_kit.data.dataset.MIN_CACHED_ROWS", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lora_kit" / "examples"


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Rows of two formats, every fifth too long, every tenth without a supervised token."""
    rows: list[dict[str, str]] = []
    for number in range(ROWS):
        if number % 2:
            rows.append({"text": f"Number {number}. " + "more " * (80 if number % 5 == 0 else 1)})
        else:
            asked = "word " * 60 if number % 10 == 0 else f"What is {number}?"
            rows.append({"prompt": asked, "completion": f"It is {number}."})
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def spec(source: Path, **fields: Any) -> DataSpec:
    wanted = {"max_length": 64, "audit": {"dropped": 0.5}, **fields}
    return DataSpec.model_validate({"train": [{"source": str(source)}], **wanted})


def made(tokenizer: Any, wanted: DataSpec) -> PreparedData:
    rows, replay = training_rows(wanted, 0)
    return prepare(rows, tokenizer, wanted, replay)


def test_cached_data_equals_data_in_memory(cache: Path, mixed: Path, tokenizer: Any) -> None:
    wanted = spec(mixed)
    rows, _ = training_rows(wanted, 0)
    kept = prepare(rows, tokenizer, wanted)
    memory = prepare(list(rows), tokenizer, wanted)
    assert kept.path is not None
    assert memory.path is None
    assert list(kept.examples) == list(memory.examples)
    several = tokenize_rows(list(rows), tokenizer, 64, "assistant")
    assert list(kept.examples) == [e for many in several for e in many if e.supervised]
    assert kept.digest == memory.digest
    assert kept.counts.tokens == memory.counts.tokens
    assert [path.name for path in cache.iterdir()] == [kept.path.parent.name]


def test_every_row_is_counted_by_source(cache: Path, mixed: Path, tokenizer: Any) -> None:
    train = [{"source": str(mixed)}, {"source": "python-reference", "limit": 20}]
    wanted = spec(mixed, train=train)
    data = made(tokenizer, wanted)
    counts = data.counts
    assert counts.rows == 80 == counts.used + counts.dropped
    first, second = counts.sources[str(mixed)], counts.sources["python-reference"]
    assert (first.format, first.rows, first.dropped) == ("prompt-completion, text", 60, 6)
    assert (second.format, second.rows, second.dropped) == ("", 20, 0)
    for name in ("rows", "used", "dropped", "truncated", "tokens"):
        assert getattr(first, name) + getattr(second, name) == getattr(counts, name)
    assert first.truncated == 6
    assert second.truncated > 10
    assert json.loads(json.dumps(counts.to_dict())) == counts.to_dict()
    assert set(counts.to_dict()["sources"][str(mixed)]) == {
        *("format", "rows", "used", "dropped", "truncated", "tokens", "unused")
    }
    assert [e.source for e in data.examples] == [0] * first.used + [1] * second.used


def test_lengths_data_set_and_examples_agree(cache: Path, mixed: Path, tokenizer: Any) -> None:
    rows, _ = training_rows(spec(mixed), 0)
    for data in (prepare(rows, tokenizer, spec(mixed)), prepare(rows[:5], tokenizer, spec(mixed))):
        examples = list(data.examples)
        assert len(data.examples) == len(examples) == data.counts.used
        assert data.lengths.dtype == np.int32
        assert data.lengths.tolist() == [len(e.input_ids) for e in examples]
        table = data.to_dataset()
        assert table.column_names == ["input_ids", "labels", "targets", "row"]
        assert table["row"][:] == list(range(len(examples)))
        assert [tuple(ids) for ids in table["input_ids"][:]] == [e.input_ids for e in examples]
        assert [tuple(ids) for ids in table["labels"][:]] == [e.labels for e in examples]
        assert data.table["supervised"].to_pylist() == [e.supervised for e in examples]
        assert data.examples[-1] == examples[-1]
        assert data.examples[1:3] == tuple(examples[1:3])
        with pytest.raises(IndexError):
            data.examples[len(examples)]


def test_the_digest_covers_every_token_and_label_in_order(
    cache: Path, mixed: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = spec(mixed)
    rows, _ = training_rows(wanted, 0)
    data = prepare(rows, tokenizer, wanted)
    digests = {data.digest}
    backwards = Rows(rows.sources, rows.parts, rows.numbers[::-1].copy())
    digests.add(prepare(backwards, tokenizer, wanted).digest)
    digests.add(prepare(rows, tokenizer, spec(mixed, train_on="all")).digest)
    digests.add(prepare(rows[:-1], tokenizer, wanted).digest)
    assert len(digests) == 4
    # But not of where one block ends.
    monkeypatch.setattr(row_sets, "BLOCK", 7)
    assert prepare(list(rows), tokenizer, wanted).digest == data.digest
    by_hand = [
        np.array([len(e.input_ids) for e in data.examples], np.int32),
        np.array([i for e in data.examples for i in e.input_ids], np.int32),
        np.array([i for e in data.examples for i in e.labels], np.int32),
    ]
    parts = b"".join(hashlib.sha256(one.tobytes()).digest() for one in by_hand)
    assert data.digest == hashlib.sha256(parts).hexdigest()


def test_cached_rows_are_not_tokenized_again(
    cache: Path, mixed: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(tokenizer, spec(mixed))

    def refuse_problems(*arguments: Any) -> None:
        raise AssertionError("it was read again")

    monkeypatch.setattr(store, "tokenize_rows", refuse_problems)
    monkeypatch.setattr(Rows, "read", refuse_problems)
    again = made(tokenizer, spec(mixed))
    assert again.counts == first.counts
    assert again.digest == first.digest
    assert list(again.examples) == list(first.examples)
    # What is too much is judged anew.
    with pytest.raises(
        DataError, match=r"6 of 60 examples have no supervised token.*mixed\.jsonl:1,"
    ):
        made(tokenizer, spec(mixed, audit={"dropped": 0.05}))


def test_every_option_that_changes_examples_changes_the_cache_key(
    cache: Path, mixed: Path, tokenizer: Any
) -> None:
    def entries() -> int:
        return len([path for path in cache.iterdir() if not path.name.startswith(".")])

    made(tokenizer, spec(mixed))
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = changed.chat_template.replace("helpful", "useful")
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens(["Number"])
    one = {"source": str(mixed), "limit": 59}
    for number, (spoken, wanted) in enumerate(
        [
            (changed, spec(mixed)),
            (grown, spec(mixed)),
            (tokenizer, spec(mixed, max_length=63)),
            (tokenizer, spec(mixed, train_on="all")),
            (tokenizer, spec(mixed, train=[one])),
        ],
        start=2,
    ):
        made(spoken, wanted)
        assert entries() == number
    rows = mixed.read_text().splitlines(keepends=True)
    mixed.write_text("".join(rows[1:] + rows[:1]))
    made(tokenizer, spec(mixed))
    assert entries() == 7
    # But not what changes nothing of it.
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=5)
    made(copy.deepcopy(tokenizer), spec(mixed, audit={"dropped": 0.9}))
    assert entries() == 7


def test_a_malformed_row_leaves_no_cache_entry(cache: Path, mixed: Path, tokenizer: Any) -> None:
    mixed.write_text(mixed.read_text() + '{"prompt": "?"}\n')
    with pytest.raises(DataError, match=r"mixed\.jsonl:61: no known format"):
        made(tokenizer, spec(mixed))
    assert list(cache.iterdir()) == []


def test_concurrent_writes_of_one_cache_entry_are_safe(
    cache: Path, mixed: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = store._write

    def overtaken(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(store, "_write", write)
        made(tokenizer, spec(mixed))
        return write(*arguments, **named)

    monkeypatch.setattr(store, "_write", overtaken)
    data = made(tokenizer, spec(mixed))
    assert data.counts.rows == 60
    assert len(list(cache.iterdir())) == 1


def test_an_unreadable_cache_entry_is_named(cache: Path, mixed: Path, tokenizer: Any) -> None:
    path = made(tokenizer, spec(mixed)).path
    assert path is not None
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot be read \(.*\)\. Fix: delete it"):
        made(tokenizer, spec(mixed))


def test_few_rows_are_not_cached(
    mixed: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert made(tokenizer, spec(mixed)).path is None
    assert not (tmp_path / "cache").exists()


def test_rows_that_are_split_are_counted(cache: Path, tmp_path: Path, tokenizer: Any) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = (Path(__file__).parent / "thoughts.jinja").read_text()
    turns = [("user", "One?"), ("assistant", "1."), ("user", "Two?"), ("assistant", "2.")]
    values = [[{"role": r, "content": c} for r, c in turns[: 2 + 2 * (n % 2)]] for n in range(20)]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": value}) + "\n" for value in values))
    counts = made(changed, spec(path)).counts
    assert (counts.rows, counts.split_rows, counts.split_examples) == (20, 10, 20)
    assert counts.used + counts.dropped == counts.rows - counts.split_rows + counts.split_examples
    assert counts.sources[str(path)].rows == 20
    assert counts.sources[str(path)].used == 30


def test_no_rows_give_no_examples(tokenizer: Any, mixed: Path) -> None:
    data = prepare([], tokenizer, spec(mixed))
    assert len(data.examples) == 0
    assert not data.examples
    assert len(data.to_dataset()) == 0
    assert data.lengths.tolist() == []
    assert data.counts.rows == 0


@pytest.mark.slow
def test_two_concurrent_processes_share_one_cache_entry(smollm: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"It is {n}."}) + "\n" for n in range(4000)))
    script = tmp_path / "both.py"
    script.write_text(
        "import sys\n"
        "from transformers import AutoTokenizer\n"
        "from lora_kit.data.dataset import open_rows, prepare\n"
        "from lora_kit.recipe.data import DataSpec\n"
        "spec = DataSpec.model_validate({'train': [{'source': sys.argv[1]}]})\n"
        "rows = open_rows(spec, 0)\n"
        "data = prepare(rows, AutoTokenizer.from_pretrained(sys.argv[2]), spec)\n"
        "print(len(data.examples), data.digest, data.path)\n"
    )
    command = [sys.executable, str(script), str(path), str(smollm)]
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(store.__file__).parents[2]),
    }
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = {process.communicate()[0] for process in both}
    assert len(outputs) == 1
    assert next(iter(outputs)).startswith("4000 ")
    kept = list((tmp_path / "cache" / "lora_kit" / "examples").iterdir())
    assert len(kept) == 1


def test_a_preference_pair_is_no_split_row_and_is_dropped_as_one(
    tmp_path: Path, tokenizer: Any
) -> None:
    asked = ["What is 1?", "word " * 100]
    pairs = [{"prompt": text, "chosen": "One.", "rejected": "Two."} for text in asked]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    wanted = spec(path)
    rows, _ = training_rows(wanted, 0, "dpo")
    data = prepare(rows, tokenizer, wanted, objective="dpo")
    counts = data.counts
    assert (counts.rows, counts.used, counts.dropped, counts.split_rows) == (2, 2, 2, 0)
    assert counts.supervised_tokens == sum(one.supervised for one in data.examples)
    assert data.dropped == (f"{path}:2",)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two workers tokenize everything after the first block of five rows."""
    monkeypatch.setattr(row_sets, "BLOCK", 5)
    monkeypatch.setattr(store, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(store, "WORKER_SECONDS", 0.0)
    for module in (store, workers):
        monkeypatch.setattr(module, "cores", lambda: 2)


def written(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.glob("*/*")}


def test_workers_write_the_same_bytes_and_refuse_the_same_row(
    cache: Path, mixed: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    with monkeypatch.context() as alone:
        alone.setattr(store, "WORKER_SECONDS", float("inf"))
        made(tokenizer, spec(mixed))
    expected = written(cache)
    shutil.rmtree(cache)
    answers: list[bool] = []
    ask = workers._ask
    monkeypatch.setattr(
        workers, "_ask", lambda *a: (r := ask(*a), answers.append(r is not None))[0]
    )
    made(tokenizer, spec(mixed))
    assert written(cache) == expected
    assert answers == [True] * (ROWS // 5 - 1)
    # Two rows that hold a control token: the first one is named, also if a later block is faster.
    shutil.rmtree(cache)
    lines = mixed.read_text().splitlines()
    for number in (33, 52):
        lines[number] = json.dumps({"prompt": "Hm?", "completion": f"{number} <|im_end|>"})
    mixed.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"mixed.jsonl:34: .*<\|im_end\|>"):
        made(tokenizer, spec(mixed))
    assert False in answers
    assert not written(cache)


def test_code_that_prints_does_not_disturb_a_workers_answers() -> None:
    """Native code prints to the descriptor itself."""
    lines = (
        "import os, pickle",
        "from lora_kit.data import workers",
        "pickle.loads = lambda _: lambda rows: os.write(1, b'x' * 99) and [[] for _ in rows]",
        "workers._answer_blocks()",
    )
    request = pickle.dumps(b"encode") + pickle.dumps([1, 2])
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, input=request, capture_output=True, check=True)
    assert done.stderr.count(b"x" * 99) == 1, done.stderr
    assert pickle.loads(done.stdout) == [[], []]


def test_workers_that_end_are_done_without(
    cache: Path, mixed: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    monkeypatch.setattr(workers, "COMMAND", ("-c", "import sys; sys.stdin.buffer.read(9)"))
    data = made(tokenizer, spec(mixed))
    monkeypatch.setattr(store, "WORKER_SECONDS", float("inf"))
    shutil.rmtree(cache)
    assert made(tokenizer, spec(mixed)).digest == data.digest


def test_few_rows_start_no_workers(
    cache: Path, mixed: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_sets, "BLOCK", 5)
    monkeypatch.setattr(store, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(store, "encode_in_workers", lambda *_: pytest.fail("workers started"))
    made(tokenizer, spec(mixed))
