"""Continued pre-training: texts, whole."""

import json
from pathlib import Path

from lora_kit.pipeline import train
from lora_kit.recipe.recipe import Recipe


def test_texts_are_learned_whole_in_pieces(tiny_recipe: Recipe, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    rows = [{"text": f"Number {n} follows number {n - 1}, as is known. " * 4} for n in range(1, 9)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = tiny_recipe.model_dump(mode="json")
    document["data"] = {"train": [{"source": str(texts)}], "max_length": 20}
    document["training"] |= {"objective": "text", "epochs": 8, "learning_rate": 5e-3}
    trained = train(Recipe.model_validate(document), tmp_path / "run")
    counts = trained.session.run.load_record()["data"]
    assert (counts["rows"], counts["split_rows"], counts["truncated"]) == (8, 8, 0)
    # Of each text all tokens but the first, and the one that ends it.
    tokenizer = trained.session.backbone.tokenizer
    whole = sum(len(tokenizer(row["text"])["input_ids"]) for row in rows)
    assert counts["supervised_tokens"] == whole
    assert trained.result.final_loss < trained.result.first_loss - 0.5
