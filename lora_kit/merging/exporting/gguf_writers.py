"""Choose the writer of a model's GGUF file, and open the file that was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_kit.merging.exporting.converter import convert_model
from lora_kit.merging.exporting.formats import GgufType
from lora_kit.merging.exporting.gguf_model import write_gguf
from lora_kit.merging.exporting.model_shape import ModelShape, NotWrittenError, read_shape
from lora_kit.merging.exporting.vocabulary import Vocabulary, read_vocabulary
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.llama_cpp import CONVERTERS, find_converter


@dataclass(frozen=True)
class OwnWriter:
    """Writer of Llama-family models, tensor by tensor.

    Attributes:
        directory: directory of the model, in safetensors.
        config: configuration of transformers.
        shape: dimensions of the model.
        vocabulary: tokenizer of the model.
        name: name of the model in the file's metadata.
        converter: always `None`.
    """

    directory: Path
    config: Any
    shape: ModelShape
    vocabulary: Vocabulary
    name: str
    converter: None = None

    def __call__(self, type_: GgufType, output: Path) -> None:
        """Write the file."""
        write_gguf(
            self.directory, self.config, self.shape, self.vocabulary, type_, self.name, output
        )


@dataclass(frozen=True)
class ConverterWriter:
    """Writer that runs llama.cpp's converter.

    Attributes:
        directory: directory of the model, in safetensors.
        name: name of the model in the file's metadata.
        converter: path of the converter.
    """

    directory: Path
    name: str
    converter: Path

    def __call__(self, type_: GgufType, output: Path) -> None:
        """Write the file."""
        convert_model(self.converter, self.directory, type_, self.name, output)


GgufWriter = OwnWriter | ConverterWriter


def gguf_writer(
    directory: Path, config: Any, tokenizer: Any, name: str, llama_cpp: Path | None
) -> GgufWriter:
    """Return the writer of a model's GGUF file: our own, or else llama.cpp's converter.

    Args:
        directory: directory of the model, in safetensors.
        config: configuration of transformers.
        tokenizer: tokenizer of the model.
        name: name of the model in the file's metadata.
        llama_cpp: folder of llama.cpp; by default its converter is on the PATH.

    Raises:
        MergeError: if the model is not written here, and there is no converter.
    """
    try:
        shape = read_shape(directory, config)
        vocabulary = read_vocabulary(directory, tokenizer, shape.rows)
    except NotWrittenError as error:
        converter = find_converter(llama_cpp)
        if converter is None:
            place = "on the PATH" if llama_cpp is None else f"in {llama_cpp}"
            raise MergeError(
                f"{error}; or name a checkout of llama.cpp with --llama-cpp: its converter knows "
                f"more models (no {CONVERTERS[0]} {place})"
            ) from error
        say(f"{directory}: not one of the models written here; llama.cpp's {converter} writes it")
        return ConverterWriter(directory, name, converter)
    return OwnWriter(directory, config, shape, vocabulary, name)


def open_reader(path: Path) -> Any:
    """Open a GGUF file that was written, as a `gguf.GGUFReader`.

    Raises:
        MergeError: if the file is not whole.
    """
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    # Truncated files fail in numpy, in any place.
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise MergeError(
            f"{path.name}: not a whole GGUF file (got {path.stat().st_size:,} bytes: {error}). "
            "Fix: check the room on the disk, or use another llama.cpp"
        ) from error
