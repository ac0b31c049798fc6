"""Files by their endings, compressed ones, and folders: all that lies there is read, or named."""

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
    """Where files are unpacked to."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "lora_kit" / "unpacked"


def packed(path: Path, ending: str = ".gz") -> Path:
    """The file compressed, and gone as it was."""
    target = path.with_name(path.name + ending)
    target.write_bytes(PACK[ending](path.read_bytes()))
    path.unlink()
    return target


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_folder_is_its_files_one_after_the_other(tmp_path: Path, kind: str) -> None:
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
    with pytest.raises(DataError, match=r"no files \(\.jsonl"):
        opened(tmp_path)
    save(PAIRS, tmp_path / "a.jsonl")
    save(PAIRS, tmp_path / "b.csv")
    with pytest.raises(DataError, match=r"files of several kinds \(\.csv, \.jsonl\)"):
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
        with pytest.raises(DataError, match=rf"p\.jsonl\{ending}: cannot be unpacked"):
            opened(path)
    assert list(cache.iterdir()) == []


def test_messages_name_the_file_that_was_compressed(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_bytes(b'{"text": "a"}\n{"text": \n')
    rows = opened(packed(tmp_path / "lines.jsonl"))
    with pytest.raises(DataError, match=r"lines\.jsonl\.gz:2: not valid JSON"):
        rows[1]
    (tmp_path / "list.json").write_text("{}")
    with pytest.raises(DataError, match=r"list\.json\.gz: cannot be read as JSON"):
        opened(packed(tmp_path / "list.json"))
    (tmp_path / "twice.csv").write_text("text,text\na,b\n")
    with pytest.raises(DataError, match=r"twice\.csv\.gz:1: the first line"):
        opened(packed(tmp_path / "twice.csv"))
    (tmp_path / "none.parquet").write_text("PAR1 and nothing")
    with pytest.raises(DataError, match=r"none\.parquet\.gz: cannot be read as parquet"):
        opened(packed(tmp_path / "none.parquet"))
    with pytest.raises(DataError, match=r"absent/rows\.jsonl\.gz: no such file"):
        opened("absent/rows.jsonl.gz")


def test_a_folder_is_read_with_the_folders_below_it(tmp_path: Path) -> None:
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


def test_what_is_known_to_hold_no_rows_lies_beside_them_unread(tmp_path: Path) -> None:
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
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=rf"no files .* lie in it; found {name}"):
        opened(tmp_path)
    save(PAIRS, tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=rf"cannot be read as rows: {name}\. Move it elsewhere"):
        opened(tmp_path)


def test_a_link_to_a_folder_is_named_and_one_to_a_file_read(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    save(PAIRS, tmp_path / "there" / "a.jsonl")
    (tmp_path / "here" / "a.jsonl").symlink_to(tmp_path / "there" / "a.jsonl")
    assert len(opened(tmp_path / "here")) == 25
    (tmp_path / "here" / "more").symlink_to(tmp_path / "there")
    with pytest.raises(DataError, match="cannot be read as rows: more"):
        opened(tmp_path / "here")


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (("train.jsonl", "test.jsonl"), r"train\.jsonl, test\.jsonl\. A folder is read whole"),
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
    with pytest.raises(DataError, match=rf"files of several splits lie in it: {part}"):
        opened(tmp_path)


def test_names_that_only_hold_such_a_word_tell_no_split(tmp_path: Path) -> None:
    for name in ("trains.jsonl", "contest.jsonl", "devices.jsonl", "train-1.jsonl"):
        save(PAIRS, tmp_path / name)
    assert len(opened(tmp_path)) == 100
