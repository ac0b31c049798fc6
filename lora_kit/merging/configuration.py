"""What lies beside the merged weights: configuration, generation configuration, tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lora_kit.merging.hollow import MetaModel
from lora_kit.merging.plan import MergePlan
from lora_kit.runtime.files import write_json

COPIED = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.jinja")


def write_configuration(plan: MergePlan, hollow: MetaModel, directory: Path) -> None:
    """Write it, as it is for the merged weights."""
    config = json.loads((plan.base / "config.json").read_text())
    config.pop("quantization_config", None)
    config.pop("torch_dtype", None)
    # A directory of the machine that converted it means nothing to who loads it.
    config.pop("_name_or_path", None)
    config["dtype"] = plan.stored_dtype
    if hollow.untied:
        config["tie_word_embeddings"] = False
    rows = hollow.model.config.get_text_config().vocab_size
    text = config.get("text_config", config)
    resized = text.get("vocab_size", rows) != rows
    if resized:
        text["vocab_size"] = rows
    write_json(directory / "config.json", config)
    path = plan.base / "generation_config.json"
    generation = json.loads(path.read_text()) if path.is_file() else {}
    stops = list(plan.stop_token_ids)
    generation["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    write_json(directory / "generation_config.json", generation)
    # The tokens of added rows are known to the tokenizer beside the adapter, if there is one.
    sources = [plan.base, plan.adapter] if plan.adapter and resized else [plan.base]
    for file in (file for source in sources for pattern in COPIED for file in source.glob(pattern)):
        shutil.copy2(file, directory / file.name)
