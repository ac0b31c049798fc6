"""A refusal on an encoder-decoder backbone names the field of the recipe that can mend it."""

import json
from pathlib import Path

import pytest

from lora_kit.pipeline import train
from lora_kit.runtime.errors import BackboneError, DataError
from tests.integration.test_encoder_decoder import recipe_of
from tests.rewarding import reward_recipe
from tests.two_stacks import write_t5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_t5(tmp_path_factory.mktemp("t5"))


def test_texts_whose_answers_are_cut_off_name_their_length(
    files: Path, chats: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.jsonl"
    rows = [{"prompt": f"What is {n}? " * 20, "completion": f"{n}."} for n in range(8)]
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = recipe_of(files, chats, retention={"kl": {"source": str(kept), "length": 16}})
    with pytest.raises(DataError) as told:
        train(recipe, tmp_path / "run")
    said = str(told.value)
    assert said.startswith("retention.kl.length: ")
    assert "(got 16). Fix: raise retention.kl.length" in said
    assert "8 of 8 examples" in said
    assert "kept.jsonl:1" in said
    assert "data." not in said


def test_texts_alone_are_answered_with_the_objective_that_is_possible(
    files: Path, chats: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{n} plus {n}."}) + "\n" for n in range(8)))
    data = {"train": [{"source": str(texts)}]}
    recipe = recipe_of(files, chats, data=data, training={"objective": "text"})
    with pytest.raises(DataError, match=r"^training\.objective: .*\(got text\)\. Fix: set sft"):
        train(recipe, tmp_path / "run")


def test_a_reward_model_is_told_of_no_class(files: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="heads are not supported for encoder-decoders") as told:
        train(reward_recipe(files, tmp_path), tmp_path / "run")
    assert "class" not in str(told.value)
