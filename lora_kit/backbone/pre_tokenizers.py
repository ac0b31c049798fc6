"""Pre-tokenizers of byte-level BPE vocabularies by their name in a GGUF file.

A GGUF file stores only the name; llama.cpp holds the regular expressions (`llama-vocab.cpp`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LINES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LINES}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}"
)
_GPT4O = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}"
)
_SEED = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}"
_BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + f"|{_LINES}"
)
_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def _splits(*patterns: str | dict[str, Any]) -> dict[str, Any]:
    """Return the pre-tokenizer that splits by each pattern in turn, then maps bytes."""
    parts = [
        {"type": "Split", "pattern": {"Regex": one}, "behavior": "Isolated", "invert": False}
        if isinstance(one, str)
        else one
        for one in patterns
    ]
    return _sequence(*parts, _BYTES | {"use_regex": False})


# Specification of `tokenizers` and the tokenizer's `ignore_merges`, with the names that llama.cpp
# treats alike.
_ALIKE: tuple[tuple[dict[str, Any], bool, str], ...] = (
    (
        _BYTES,
        False,
        "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert "
        "exaone4 mpt olmo jais trillion granite-docling",
    ),
    (
        _sequence(_DIGITS, _BYTES),
        False,
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    ),
    (
        _splits(_LLAMA3),
        True,
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    ),
    (_splits(_LLAMA3), False, "dbrx smaug-bpe glm4 chatglm-bpe"),
    (
        _splits(_QWEN2),
        False,
        "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
    ),
    (_splits(_QWEN35), False, "qwen35"),
    (_splits(_TEKKEN), True, "tekken"),
    (_splits(_GPT4O), False, "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (_splits(_SEED), False, "seed-coder"),
    (_splits(_BLOOM), False, "bloom poro-chat gpt3-finnish"),
    (_splits(_BLOOM, _DIGITS), False, "viking"),
    (
        _splits(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", _DIGITS),
        False,
        "deepseek-coder",
    ),
    (
        _splits(r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK3),
        False,
        "deepseek-v3 hunyuan-dense joyai-llm",
    ),
)
PRE_TOKENIZERS: Mapping[str, tuple[dict[str, Any], bool]] = {
    name: (specification, ignore_merges)
    for specification, ignore_merges, names in _ALIKE
    for name in names.split()
}
