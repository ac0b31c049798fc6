"""Random models with few learned positions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from tests.first_tokens import VOCABULARY, write_first_tokens


def write_narrow(
    directory: Path, tokenizer: Path, positions: int, *, ends: bool = False, template: bool = False
) -> Path:
    """Write a GPT-2 with few positions and the first tokens of a real tokenizer.

    Args:
        directory: directory to write to.
        tokenizer: directory of a model with the tokenizer.
        positions: number of positions.
        ends: if true, about one in twenty generated tokens is the end-of-text token.
        template: if true, copy the tokenizer's chat template.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=positions,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = GPT2LMHeadModel(config)
    if ends:
        with torch.no_grad():
            towards = torch.full((32,), math.sqrt((math.log(VOCABULARY) - 3) / 32))
            model.transformer.wte.weight[2] = model.transformer.ln_f.bias[:] = towards
    model.save_pretrained(directory)
    write_first_tokens(tokenizer, directory)
    if not template:
        for file in directory.glob("*.jinja"):
            file.unlink()
    return directory


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
