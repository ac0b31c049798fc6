"""Names of the export formats."""

from typing import Literal

ExportFormat = Literal["gguf", "nf4", "int8"]
"""Format of `lora-kit export`."""
GgufType = Literal["f32", "f16", "bf16", "q8_0"]
"""Types of a GGUF file's matrices that are written here."""
KQuantType = Literal["q4_k_m", "q5_k_m", "q6_k"]
"""Mixtures of types that llama.cpp's own program writes."""
GgufFileType = Literal["f32", "f16", "bf16", "q8_0", "q4_k_m", "q5_k_m", "q6_k"]
"""Types of a GGUF file's matrices."""
