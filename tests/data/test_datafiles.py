"""Files by ending, compressed files, and folders: every file is read, known or refused."""

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from lora_kit.data.row_sets import Rows
from lora_kit.runtime.errors import DataError
from tests.data.tables import PAIRS, answers, opened, save

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of decompressed files."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "lora_kit" / "unpacked"


def packed(path: Path, ending: str = ".gz") -> Path:
    """Replace a file by its compressed copy and return the copy's path."""
    target = path.with_name(path.name + ending)
    target.write_bytes(PACK[ending](path.read_bytes()))
    path.unlink()
    return target


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_folder_is_the_concatenation_of_its_files(tmp_path: Path, kind: str) -> None:
    (tmp_path / "README.md").write_text("what it is")
    for name, part in (("b", PAIRS[10:]), ("a", PAIRS[:10])):
        save(part, tmp_path / f"{name}{kind}")
    rows = opened(tmp_path)
    assert answers(rows) == [row["completion"] for row in PAIRS]
    if kind == ".jsonl":
        assert rows[10].origin == f"{tmp_path / 'b.jsonl'}:1"
    shuffled = Rows(rows.sources, rows.parts, rows.numbers[::-1])
    assert answers(shuffled) == [row["completion"] for row in reversed(PAIRS)]


def test_a_folder_of_several_kinds_or_of_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no files of rows \(got none\)\. Fix: .*\(\.jsonl"):
        opened(tmp_path)
    save(PAIRS, tmp_path / "a.jsonl")
    save(PAIRS, tmp_path / "b.csv")
    with pytest.raises(DataError, match=r"files are of several kinds \(got \.csv, \.jsonl\)"):
        opened(tmp_path)


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_a_compressed_file_has_the_same_rows(
    tmp_path: Path, cache: Path, kind: str, ending: str
) -> None:
    path = packed(save(PAIRS, tmp_path / f"p{kind}"), ending)
    rows = opened(path)
    assert answers(rows) == [row["completion"] for row in PAIRS]
    assert rows[3].origin == (f"{path}:4" if kind == ".jsonl" else f"{path}[3]")
    assert answers(opened(tmp_path)) == answers(rows)
    assert len(list(cache.iterdir())) == 1, "unpacked once"


@pytest.mark.parametrize("ending", PACK)
def test_a_compressed_file_that_is_cut_off_is_refused_each_time(
    tmp_path: Path, cache: Path, ending: str
) -> None:
    path = packed(save(PAIRS, tmp_path / "p.jsonl"), ending)
    path.write_bytes(path.read_bytes()[:-20])
    for _ in range(2):
        with pytest.raises(DataError, match=rf"p\.jsonl\{ending}: cannot be decompressed"):
            opened(path)
    assert list(cache.iterdir()) == []


def test_errors_name_the_compressed_file(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_bytes(b'{"text": "a"}\n{"text": \n')
    rows = opened(packed(tmp_path / "lines.jsonl"))
    with pytest.raises(DataError, match=r"lines\.jsonl\.gz:2: not valid JSON"):
        rows[1]
    (tmp_path / "list.json").write_text("{}")
    with pytest.raises(DataError, match=r"list\.json\.gz: cannot be read as a JSON list"):
        opened(packed(tmp_path / "list.json"))
    (tmp_path / "twice.csv").write_text("text,text\na,b\n")
    with pytest.raises(DataError, match=r"twice\.csv\.gz:1: the first line"):
        opened(packed(tmp_path / "twice.csv"))
    (tmp_path / "none.parquet").write_text("PAR1 and nothing")
    with pytest.raises(DataError, match=r"none\.parquet\.gz: cannot be read as parquet"):
        opened(packed(tmp_path / "none.parquet"))
    with pytest.raises(DataError, match=r"no such file \(got absent/rows\.jsonl\.gz\)"):
        opened("absent/rows.jsonl.gz")


def test_a_folder_is_read_recursively(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    save(PAIRS[:5], tmp_path / "z.jsonl")
    save(PAIRS[5:15], tmp_path / "b" / "z.jsonl")
    save(PAIRS[15:], tmp_path / "b" / "c" / "z.JSONL")
    packed(tmp_path / "b" / "z.jsonl")
    rows = opened(tmp_path)
    assert sorted(answers(rows)) == [row["completion"] for row in PAIRS]
    assert [rows[n].origin.rpartition(":")[0] for n in (0, 10, 20)] == [
        str(tmp_path / name) for name in ("b/c/z.JSONL", "b/z.jsonl.gz", "z.jsonl")
    ]


def test_files_known_to_hold_no_rows_are_skipped(tmp_path: Path) -> None:
    save(PAIRS, tmp_path / "license_questions.jsonl")
    (tmp_path / ".cache").mkdir()
    for name in (
        "README.md",
        "LICENSE",
        "Licence.txt",
        "NOTICE",
        "dataset_infos.json",
        "_SUCCESS",
        ".gitattributes",
        ".cache/rows.csv",
    ):
        (tmp_path / name).write_text("x")
    assert len(opened(tmp_path)) == 25


@pytest.mark.parametrize("name", ["more.jsonl.xz", "notes.txt", "below/x.arrow", "rows"])
def test_an_unsupported_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=rf"no files of rows \(got {name}\)"):
        opened(tmp_path)
    save(PAIRS, tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=rf"can be read as rows \(got {name} next .*Fix: move"):
        opened(tmp_path)


def test_a_link_to_a_folder_is_refused_and_a_link_to_a_file_read(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    save(PAIRS, tmp_path / "there" / "a.jsonl")
    (tmp_path / "here" / "a.jsonl").symlink_to(tmp_path / "there" / "a.jsonl")
    assert len(opened(tmp_path / "here")) == 25
    (tmp_path / "here" / "more").symlink_to(tmp_path / "there")
    with pytest.raises(DataError, match=r"not all files can be read as rows \(got more next"):
        opened(tmp_path / "here")


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (("train.jsonl", "test.jsonl"), r"train\.jsonl, test\.jsonl\)\. Fix: name the files"),
        (
            ("data/train-00000-of-00001.jsonl", "data/dev-00000-of-00001.jsonl"),
            "data/train.*data/dev",
        ),
        (("validation/a.jsonl", "test/a.jsonl"), r"validation/a\.jsonl, test/a\.jsonl"),
    ],
)
def test_a_folder_of_several_splits_is_refused(
    tmp_path: Path, names: tuple[str, ...], part: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(PAIRS, tmp_path / name)
    with pytest.raises(DataError, match=rf"the files belong to several splits \(got {part}"):
        opened(tmp_path)


def test_file_names_that_only_contain_a_split_word_name_no_split(tmp_path: Path) -> None:
    for name in ("trains.jsonl", "contest.jsonl", "devices.jsonl", "train-1.jsonl"):
        save(PAIRS, tmp_path / name)
    assert len(opened(tmp_path)) == 100
