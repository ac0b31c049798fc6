"""The names of the export formats."""

from typing import Literal

ExportFormat = Literal["gguf", "nf4", "int8"]
GgufType = Literal["f32", "f16", "bf16", "q8_0"]
