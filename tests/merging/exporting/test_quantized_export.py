"""Directories in 4 and 8 bits."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_kit.merging.exporting.export import export
from lora_kit.runtime.errors import MergeError
from tests.merging.exporting.small_model import (
    TEXTS,
)


@pytest.mark.parametrize("to", ["nf4", "int8"])
def test_a_quantized_directory_loads_in_plain_transformers(
    to: Any, model: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = export(model, to, tmp_path / "small", texts=TEXTS)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "bitsandbytes"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "small").is_quantized
    assert AutoTokenizer.from_pretrained(tmp_path / "small")("a b").input_ids
    original = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    assert result.weight_bytes < original
    record = json.loads((tmp_path / "small" / "export.json").read_text())
    assert record["comparison"]["positions"] == result.comparison.positions
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "small").glob("*.safetensors")}
    assert modes == {0o644}
    with pytest.raises(MergeError, match="already quantized"):
        export(tmp_path / "small", "gguf", tmp_path / "model.gguf", texts=TEXTS)
