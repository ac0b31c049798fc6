"""Names of the export formats."""

from typing import Literal

ExportFormat = Literal["gguf", "nf4", "int8"]
"""Format of `lora-kit export`."""
GgufType = Literal["f32", "f16", "bf16", "q8_0"]
"""Type of the matrices in a GGUF file."""
