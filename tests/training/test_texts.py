"""Continued pre-training on texts."""

import json
from pathlib import Path

from lora_kit.pipeline import train
from lora_kit.recipe.recipe import Recipe


def test_long_texts_are_split_and_learned_completely(tiny_recipe: Recipe, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    rows = [{"text": f"Number {n} follows number {n - 1}, as is known. " * 4} for n in range(1, 9)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = tiny_recipe.model_dump(mode="json")
    document["data"] = {"train": [{"source": str(texts)}], "max_length": 20}
    document["training"] |= {"objective": "text", "epochs": 8, "learning_rate": 5e-3}
    trained = train(Recipe.model_validate(document), tmp_path / "run")
    counts = trained.session.run.load_record()["data"]
    assert (counts["rows"], counts["split_rows"], counts["truncated"]) == (8, 8, 0)
    # Supervised: all tokens of a text except the first, plus the end of text.
    tokenizer = trained.session.backbone.tokenizer
    total = sum(len(tokenizer(row["text"])["input_ids"]) for row in rows)
    assert counts["supervised_tokens"] == total
    assert trained.result.final_loss < trained.result.first_loss - 0.5
