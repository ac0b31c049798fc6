"""A real tokenizer with its first tokens only, which is read in a hundredth of the time."""

import json
import shutil
from pathlib import Path

# Special tokens, bytes and the most frequent merges of SmolLM2's 49,152 tokens.
VOCABULARY = 4096


def write_first_tokens(model: Path, directory: Path, size: int = VOCABULARY) -> None:
    """Write a model's tokenizer and chat template without the tokens from `size` on.

    Ids are in the order of the merges, so that the tokens which are left have theirs.

    Args:
        model: directory of a model with a byte-level BPE.
        directory: directory to write to.
        size: number of tokens.
    """
    for pattern in ("tokenizer_config.json", "*.jinja"):
        for file in model.glob(pattern):
            shutil.copy(file, directory / file.name)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    bpe = tokenizer["model"]
    bpe["vocab"] = {token: number for token, number in bpe["vocab"].items() if number < size}
    bpe["merges"] = [pair for pair in bpe["merges"] if "".join(pair) in bpe["vocab"]]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
