"""Synonyms from files in WordNet's format."""

from pathlib import Path

import pytest

from lora_kit.data.wordnet import read_synonyms, wordnet_digest, wordnet_folder
from lora_kit.runtime.errors import DataError
from tests.wordnet_files import write_wordnet


def test_synonyms_share_the_most_frequent_sense(tmp_path: Path) -> None:
    found = read_synonyms(write_wordnet(tmp_path))
    # Not `dictionary_entry`, of two words; not `cat`, of three letters; not `Paris`, a name.
    assert found == {
        "large": ("big",),
        "lexicon": ("dictionary",),
        "dictionary": ("lexicon",),
        # Its second sense as a noun, with `bank`, is less frequent; `tilt` is a verb.
        "slope": ("incline", "tilt"),
        "incline": ("slope",),
        "bank": ("slope",),
        "tilt": ("slope",),
    }


def test_the_folder_is_named_or_the_missing_one_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WNSEARCHDIR", str(write_wordnet(tmp_path)))
    assert wordnet_folder("a.field") == tmp_path
    # A folder that is named is not replaced by another one.
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"a\.field: WordNet is not installed .* WNSEARCHDIR"):
        wordnet_folder("a.field")


def test_files_of_another_format_are_told(tmp_path: Path) -> None:
    folder = write_wordnet(tmp_path)
    before = wordnet_digest(folder)
    with (folder / "data.verb").open("a") as stream:
        stream.write("these are no fields\n")
    wordnet_digest.cache_clear()
    assert wordnet_digest(folder) != before
    with pytest.raises(DataError, match=r"not the files of WordNet 3 .* in \*\.verb"):
        read_synonyms(folder)
