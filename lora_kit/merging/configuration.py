"""Write the files beside merged weights: configuration, generation configuration, tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lora_kit.merging.meta_model import MetaModel
from lora_kit.merging.plan import MergePlan
from lora_kit.runtime.files import write_json

COPIED = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.jinja")


def write_configuration(plan: MergePlan, meta: MetaModel, directory: Path) -> None:
    """Write configuration and generation configuration, and copy the tokenizer.

    Args:
        plan: plan of the merge.
        meta: model, whose vocabulary size and untied parameters go into the configuration.
        directory: directory of the merged weights.
    """
    config = json.loads((plan.base / "config.json").read_text())
    config.pop("quantization_config", None)
    config.pop("torch_dtype", None)
    # A path on the machine that converted the model; meaningless elsewhere.
    config.pop("_name_or_path", None)
    config["dtype"] = plan.stored_dtype
    if meta.untied:
        config["tie_word_embeddings"] = False
    rows = meta.model.config.get_text_config().vocab_size
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
    # Only a tokenizer saved with the adapter knows the tokens of added rows.
    sources = [plan.base, plan.adapter] if plan.adapter and resized else [plan.base]
    for file in (file for source in sources for pattern in COPIED for file in source.glob(pattern)):
        shutil.copy2(file, directory / file.name)
