"""The recipe's `backbone` section: which frozen model, how it is stored, how it is computed."""

from __future__ import annotations

from typing import Literal

from lora_kit.recipe.section import LicenseName, Section

Quantization = Literal["none", "nf4", "fp4", "int8"]
DType = Literal["auto", "bfloat16", "float16", "float32"]
Attention = Literal["auto", "varlen", "sdpa", "eager", "flash_attention_2", "flash_attention_3"]


class BackboneSpec(Section):
    """The frozen base model."""

    model: str
    """A bundled alias, a hub id, a directory, a `.gguf` file, or `package:DISTRIBUTION/FILE.gguf`
    for a file in an installed package."""
    revision: str | None = None
    """Commit, tag or branch of a hub id. The run records the commit."""
    quantization: Quantization = "nf4"
    """Storage of the frozen weights: `none`, `nf4` or `fp4` (4 bits), or `int8`."""
    dtype: DType = "auto"
    """Dtype of computation. `auto`: bfloat16 on hardware that computes it fast, else float32."""
    license: LicenseName | None = None
    """Licence of the model for the release's card, as an SPDX id (`Apache-2.0`) or a text. Default:
    what the alias, the README.md beside the weights or the GGUF file says."""
    attention: Attention = "auto"
    """Attention implementation. `auto`: on a GPU `varlen` for the models that it can compute, else
    transformers' choice, for most models `sdpa`. `varlen`: packed examples are separated by their
    lengths, not by a mask, by torch's flash attention on a GPU (bfloat16 or float16) and one after
    the other on a CPU. `flash_attention_2` and `flash_attention_3` need a GPU and the package
    flash-attn or flash-attn-3."""
