"""Models, tokenizer and rows that the measurements bring along: random weights, no hub."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SHAPES: dict[str, dict[str, int]] = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 2048,
    },
}
# Of the trainings with real files, whatever the shape that is measured.
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LEADING = ("<pad>", "<s>", "</s>", "<unk>")
TEMPLATE = (
    "<s>{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% if m.role == 'assistant' %}</s>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
WORDS = 512


@dataclass(frozen=True)
class Setting:
    """Sizes of one look.

    Attributes:
        shape: key of `SHAPES`, the model whose speed is measured.
        length: tokens of a pack.
        examples: examples of a pack, all of the same length.
        packs: packs of an optimizer step.
        steps: optimizer steps of a measurement, the first of which is not counted.
        folder: folder for models and runs, on this machine's disk.
    """

    shape: str
    length: int
    examples: int
    packs: int
    steps: int
    folder: Path

    @property
    def is_tiny(self) -> bool:
        """True for a look that only shows that the cases work."""
        return self.shape == "tiny"

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Tokenizer whose ids all models have."""
        return make_tokenizer()

    @cached_property
    def rows(self) -> Path:
        """File of chats to train on."""
        return write_chats(self.folder / "chats.jsonl", 64)

    @cached_property
    def small(self) -> Path:
        """Folder of a small random model with the tokenizer."""
        shape = SHAPES["tiny"] if self.is_tiny else SMALL
        sized = {**shape, "vocab_size": len(self.tokenizer)}
        return write_model(self.folder / "small", sized, self.tokenizer)

    @property
    def config(self) -> LlamaConfig:
        """Configuration of the model whose speed is measured."""
        return configuration(SHAPES[self.shape])


def device() -> torch.device:
    """Return the device that is measured."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer of some hundred tokens with a chat template."""
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    texts = [text for n in range(64) for text in _chat(n).values()]
    trained.train_from_iterator(
        texts, vocab_size=WORDS, special_tokens=list(LEADING), show_progress=False
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _chat(number: int) -> dict[str, str]:
    return {
        "prompt": f"What is {number} plus {number + 3}?",
        "completion": f"{number} plus {number + 3} is {2 * number + 3}." * (1 + number % 3),
    }


def write_chats(path: Path, count: int) -> Path:
    """Write rows of a prompt and a completion, of three lengths."""
    path.write_text("".join(json.dumps(_chat(n)) + "\n" for n in range(count)))
    return path


def configuration(shape: Mapping[str, int]) -> LlamaConfig:
    """Return a Llama configuration with the special tokens of the tokenizer."""
    return LlamaConfig(
        **shape,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        max_position_embeddings=131072,
        dtype="bfloat16",
    )


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create parameters in a dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def write_model(folder: Path, shape: Mapping[str, int], tokenizer: Any) -> Path:
    """Write a random model in bfloat16 with the tokenizer."""
    torch.manual_seed(0)
    with default_dtype(torch.bfloat16):
        model = LlamaForCausalLM(configuration(shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_model(config: LlamaConfig, quantization: str) -> LlamaForCausalLM:
    """Return a frozen random model in bfloat16 on the device, quantized layer by layer.

    Args:
        config: configuration of the model.
        quantization: `none` or `nf4`; of the linear layers but the output head.
    """
    torch.manual_seed(0)
    with default_dtype(torch.bfloat16), device():
        model = LlamaForCausalLM(config)
    if quantization == "nf4":
        _quantize(model)
    model.requires_grad_(False)
    return model.eval()


def _quantize(model: torch.nn.Module) -> None:
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers import BitsAndBytesConfig
    from transformers.quantizers import AutoHfQuantizer

    linear = [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and name != "lm_head"
    ]
    for name, module in linear:
        with torch.device("meta"):
            packed = Linear4bit(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=torch.bfloat16,
                quant_type="nf4",
            )
        # bitsandbytes quantizes a weight that is moved to a device, also to its own.
        packed.weight = Params4bit(
            module.weight.data, requires_grad=False, quant_type="nf4", module=packed
        ).to(device())
        packed.support_avx512bf16_for_cpu = False
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, packed)
    # Attributes of a quantized model that transformers, PEFT and TRL read.
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )
    model.hf_quantizer = AutoHfQuantizer.from_config(config)
    model.config.quantization_config = config
    model.is_loaded_in_4bit = model.is_quantized = True
    model.quantization_method = config.quant_method


def token_lists(count: int, length: int, vocabulary: int) -> list[list[int]]:
    """Return random examples of one length."""
    numbers = random.Random(0)
    return [[numbers.randrange(4, vocabulary) for _ in range(length)] for _ in range(count)]
