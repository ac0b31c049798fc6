"""The recipe's `backbone` section: which frozen model, and how it is stored and computed."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from lora_kit.data_spec import LicenseName
from lora_kit.schema import Section

Quantization = Literal["none", "nf4", "fp4", "int8"]
DType = Literal["auto", "bfloat16", "float16", "float32"]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]


class BackboneSpec(Section):
    """The frozen base model."""

    model: str
    """Alias, hub id, directory, `.gguf` file, or `package:DISTRIBUTION/FILE.gguf`."""
    revision: str | None = None
    """Commit, tag or branch of a hub id; pinned to the commit when the recipe is resolved."""
    quantization: Quantization = "nf4"
    """How the frozen weights are stored: `none`, `nf4`, `fp4` (4 bit) or `int8`."""
    dtype: DType = "auto"
    """What is computed in; `auto`: bfloat16 where the machine multiplies it fast, else float32."""
    license: LicenseName | None = None
    """Its licence, an SPDX id (`Apache-2.0`) or a text, for the release's card; by default what the
    alias, the README.md beside the weights or the GGUF file says."""
    attention: Attention = "auto"
    """How attention is computed; `auto`: what transformers would take, for most models `sdpa`.
    `flash_attention_2` takes a GPU and the package flash-attn, and skips what is masked."""

    @model_validator(mode="after")
    def _flash_in_half_precision(self) -> BackboneSpec:
        if self.attention == "flash_attention_2" and self.dtype == "float32":
            raise ValueError(
                "attention: flash_attention_2 has kernels for bfloat16 and float16 alone, and "
                "dtype is float32; set one of them, or attention: sdpa"
            )
        return self
