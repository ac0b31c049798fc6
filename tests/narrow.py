"""Random models whose positions are learned, and soon at an end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch


def write_narrow(directory: Path, tokenizer: Path, positions: int) -> Path:
    """A GPT-2 of a few positions with a real tokenizer, which has no chat template here."""
    from transformers import GPT2Config, GPT2LMHeadModel

    vocabulary = json.loads((tokenizer / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=positions,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    GPT2LMHeadModel(config).save_pretrained(directory)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy(file, directory / file.name)
    return directory


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
