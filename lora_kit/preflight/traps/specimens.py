"""Models and tokenizers of a few kilobytes on which traps are reproduced."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.adapter.attach import wrap_with_adapter
from lora_kit.backbone.files import BackboneFiles
from lora_kit.backbone.fingerprint import Fingerprint
from lora_kit.backbone.load import Backbone
from lora_kit.data.rows import Message, Row
from lora_kit.data.supervision import Example
from lora_kit.preflight.context import PreflightContext
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.launch import Launch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

WORDS = ("<pad>", "<s>", "</s>", "<unk>", "user", "assistant", "a", "b", "c", "d")
TEMPLATE = (
    "<s>{% for m in messages %} {{ m['role'] }} {{ m['content'] }} </s>{% endfor %}"
    "{% if add_generation_prompt %} assistant {% endif %}"
)
ENDLESS_TEMPLATE = TEMPLATE.replace("</s>", "")
ROW = Row("specimen", "specimen", (Message("user", "a b"), Message("assistant", "c d")))
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def specimen_model(experts: bool = False) -> Any:
    """Return a random float32 language model with a tied head, or one with fused experts."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if experts:
            # PEFT 0.21 finds the fused experts of Mixtral and Qwen3-MoE, but not of this model.
            config = Qwen2MoeConfig(
                **SIZES,
                num_experts=8,
                num_experts_per_tok=2,
                moe_intermediate_size=32,
                shared_expert_intermediate_size=16,
            )
            return Qwen2MoeForCausalLM(config).requires_grad_(False).eval()
        model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
        return model.requires_grad_(False).eval()


def specimen_adapter(model: Any, targets: Any = "all-linear") -> PeftModel:
    """Attach LoRA with non-zero B, so that the adapter changes the outputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = wrap_with_adapter(model, AdapterSpec(rank=2, target_modules=targets))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.1)
    return adapted


def specimen_tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerBase:
    """Return a tokenizer of ten words that, like its chat template, begins texts with `<s>`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(WORDS)}
    raw = Tokenizer(WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = WhitespaceSplit()
    raw.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    tokenizer.chat_template = template
    return tokenizer


def specimen_backbone(model: Any | None = None, template: str = TEMPLATE) -> Backbone:
    """Return a backbone of a specimen model and tokenizer."""
    recipe = specimen_recipe()
    return Backbone(
        model=model if model is not None else specimen_model(),
        tokenizer=specimen_tokenizer(template),
        files=BackboneFiles("specimen", None, Path()),
        spec=recipe.backbone,
        fingerprint=Fingerprint("", "", "", "none", "float32"),
        quantized_modules=(),
    )


def specimen_recipe(quantization: str = "none", **data: Any) -> Recipe:
    """Return a recipe whose data is never read."""
    return Recipe.model_validate(
        {
            "name": "specimen",
            "backbone": {"model": "specimen", "quantization": quantization, "dtype": "float32"},
            "data": {"train": [{"source": "specimen"}], **data},
        }
    )


def specimen_context(**parts: Any) -> PreflightContext:
    """Return a context of a single process with the given parts."""
    defaults: dict[str, Any] = {"recipe": specimen_recipe(), "launch": Launch()}
    return PreflightContext(**defaults | parts)


def example(*words: str, supervised: int = 0) -> Example:
    """Return an example of the given words, of which the last `supervised` have labels."""
    ids = tuple(WORDS.index(word) for word in words)
    masked = len(ids) - supervised
    return Example(ids, (-100,) * masked + ids[masked:])


def quantized_layer(quantization: str, device: torch.device) -> Any:
    """Return a layer of 64 x 64 random weights with defaults of bitsandbytes.

    Args:
        quantization: `nf4`, `fp4` or `int8`.
        device: device on which the layer is quantized and computes.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if quantization == "int8":
            layer = Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
        else:
            layer = Linear4bit(
                64, 64, bias=False, compute_dtype=torch.float32, quant_type=quantization
            )
        torch.nn.init.normal_(layer.weight, std=0.1)
    return layer.to(device)


def four_bit_layer(quantization: str = "nf4") -> Any:
    """Return a `quantized_layer` on the CPU."""
    return quantized_layer(quantization, torch.device("cpu"))


class Leaky(torch.nn.Module):
    """Model that ignores restarted positions and attends across packed examples."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        """Run the model on input_ids (1, length) as one text."""
        return self.model(input_ids=input_ids, use_cache=False)
