"""Pre-tokenizers of GGUF files: each known name gives its own tokens, no other is taken."""

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

from lora_kit.backbone.gguf import convert_gguf
from lora_kit.backbone.pre_tokenizers import PRE_TOKENIZERS
from lora_kit.merging.exporting.export import export
from lora_kit.runtime.errors import BackboneError
from tests.merging.exporting.small_model import TEXTS, random_model

PRE = "tokenizer.ggml.pre"
# Text that each of the pre-tokenizers cuts in its own way.
HARD = "I'm don'T 12345 ½ café\r\n\n 你好，世界。 f(x):\n\treturn x**2  #ok HelloWorld ABC's"
# One name of each kind.
KINDS = [
    name
    for name, known in PRE_TOKENIZERS.items()
    if name == next(other for other, same in PRE_TOKENIZERS.items() if same == known)
]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gguf")
    path = directory / "model.gguf"
    export(random_model(directory / "model"), "gguf", path, "f32", TEXTS)
    return path


def renamed(
    gguf: Path, output: Path, name: Any, key: str = PRE, architecture: str = "llama"
) -> Path:
    """Copy a GGUF file with another name of its pre-tokenizer; without one for `None`."""
    kind = GGUFValueType.STRING if isinstance(name, str) else GGUFValueType.UINT32
    new = {} if name is None else {key: MetadataDetails(kind, name)}
    reader = GGUFReader(gguf)
    for field in reader.fields.values():
        if field.name.startswith("llama.") and architecture != "llama":
            own = field.name.replace("llama.", f"{architecture}.")
            new[own] = MetadataDetails(field.types[0], field.contents())
    copy_with_new_metadata(reader, GGUFWriter(output, architecture), new, [key])
    return output


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", KINDS)
def test_a_known_name_gives_the_tokens_of_its_pre_tokenizer(
    gguf: Path, tmp_path: Path, name: str
) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    directory = convert_gguf(renamed(gguf, tmp_path / "model.gguf", name))
    found = AutoTokenizer.from_pretrained(directory)
    file = json.loads((directory / "tokenizer.json").read_text())
    file["pre_tokenizer"], file["model"]["ignore_merges"] = PRE_TOKENIZERS[name]
    expected = Tokenizer.from_str(json.dumps(file)).encode(HARD, add_special_tokens=False).ids
    assert found(HARD, add_special_tokens=False).input_ids == expected
    # Every text comes back: no pre-tokenizer drops a character.
    assert found.decode(expected) == HARD


@pytest.mark.parametrize("name", [None, "", "default", "GPT-2", "gpt2", " qwen2", "falcon", 7])
def test_an_unknown_name_is_refused_before_and_after_a_conversion(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    path = renamed(gguf, tmp_path / "model.gguf", name)
    shown = "nothing" if name is None else repr(name)
    message = rf"model\.gguf: tokenizer\.ggml\.pre: .*\(got {shown} with .*known: gpt-2.*Fix:"
    with pytest.raises(BackboneError, match=message):
        convert_gguf(path)
    monkeypatch.setattr("pathlib.Path.is_dir", lambda _: True)  # a conversion that is there
    with pytest.raises(BackboneError, match=message):
        convert_gguf(path)


@pytest.mark.parametrize("name", ["starcoder", "qwen2", "gpt-2"])
def test_the_name_counts_where_a_class_has_a_pre_tokenizer_of_its_own(
    gguf: Path, tmp_path: Path, name: str
) -> None:
    from transformers import AutoTokenizer

    path = renamed(gguf, tmp_path / "model.gguf", name, architecture="starcoder2")
    found = AutoTokenizer.from_pretrained(convert_gguf(path)).backend_tokenizer
    assert json.loads(found.to_str())["pre_tokenizer"] == PRE_TOKENIZERS[name][0]


def test_a_class_that_cannot_take_the_name_is_refused(gguf: Path, tmp_path: Path) -> None:
    path = renamed(gguf, tmp_path / "model.gguf", "smollm", architecture="qwen2")
    with pytest.raises(BackboneError, match=r"tokenizer\.ggml\.pre: .*qwen2.*got 'smollm'.*Fix:"):
        convert_gguf(path)
    assert list((tmp_path / "cache" / "lora_kit" / "gguf").iterdir()) == []


def test_a_sentencepiece_vocabulary_needs_no_name(gguf: Path, tmp_path: Path) -> None:
    unnamed = renamed(gguf, tmp_path / "unnamed.gguf", None)
    path = renamed(unnamed, tmp_path / "model.gguf", "llama", "tokenizer.ggml.model")
    assert (convert_gguf(path) / "tokenizer.json").is_file()


def test_names_of_transformers_have_its_expressions() -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    for name, expression in GGUF_PRE_TOKENIZER_SPLITS.items():
        parts = PRE_TOKENIZERS[name][0]["pretokenizers"]
        assert [part["pattern"]["Regex"] for part in parts if "pattern" in part] == [expression]


def test_a_file_with_a_tokenizer_and_no_dimensions_is_refused(gguf: Path, tmp_path: Path) -> None:
    """transformers would build a model of its default size, of several gigabytes."""
    path = tmp_path / "model.gguf"
    reader = GGUFReader(gguf)
    dimensions = [name for name in reader.fields if name.startswith("llama.")]
    copy_with_new_metadata(reader, GGUFWriter(path, "llama"), {}, dimensions)
    with pytest.raises(BackboneError, match=r"model\.gguf: block_count: missing"):
        convert_gguf(path)
