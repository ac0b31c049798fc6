"""Training rows in other words, which a language model writes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_kit import pipeline
from lora_kit.backbone.load import Backbone
from lora_kit.data.formats import parse_row
from lora_kit.data.row_sets import Rows
from lora_kit.data.rows import Message
from lora_kit.metrics.load import load_metric
from lora_kit.modeling.generation import Generator, stop_token_ids
from lora_kit.modeling.rewriting import Request, Rewritten, rewrite
from lora_kit.recipe.augmentation import AugmentationSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.session import open_run
from lora_kit.runtime.errors import DataError
from lora_kit.training.head_rows.paraphrases import (
    PROMPT,
    Paraphrase,
    find_paraphrases,
    read_paraphrases,
)
from lora_kit.training.rows_of_run import rows_of_run
from tests.classifying import classes_recipe

MODULE = "lora_kit.training.head_rows.paraphrases"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _spec(writer: Path | str, **own: Any) -> AugmentationSpec:
    paraphrase = {"writer": {"model": str(writer), "quantization": "none", "dtype": "float32"}}
    return AugmentationSpec.model_validate({"paraphrase": paraphrase, **own})


def _recipe(model: Path, folder: Path, spec: AugmentationSpec, *arms: str) -> Recipe:
    document = classes_recipe(model, folder, adapter={"method": "head"}).model_dump(mode="json")
    document["data"]["augmentation"] = spec.model_dump(mode="json")
    document["data"]["audit"] |= {"duplicates": 1.0}
    document["evaluation"]["arms"] = ["base", "adapter", *arms]
    return Recipe.model_validate(document)


def _every_other(
    _generator: Any, requests: Sequence[Request], *_: Any, sampled: bool
) -> list[Rewritten | None]:
    return [
        Rewritten(f"{one.original} in {'yet' * sampled} other words", 60.0, n % 2 == 0, True)
        for n, one in enumerate(requests)
    ]


def test_a_text_is_taken_or_the_reason_is_known() -> None:
    turn = ("rows:1", "Close the file.")

    def found(text: str | None, is_similar: bool = True, keeps: bool = True) -> str:
        rewritten = Rewritten(text, 50.0, is_similar, keeps)
        return Paraphrase.of(2, turn, rewritten, ["Have it shut."]).found

    assert found("Shut it.") == "taken"
    assert found("Shut it.", is_similar=False) == "unlike the row"
    assert found("Shut 2.", keeps=False) == "with other numbers or control tokens"
    assert (
        found('"close  the file"')
        == found("have it SHUT")
        == ("in the words of the row or of another copy")
    )
    assert found(None, is_similar=False) == "not ended"
    assert Paraphrase.of(1, turn, None).found == "too long for the prompt"


def test_other_changes_are_made_only_if_they_are_asked_for() -> None:
    spec = _spec("m")
    assert (spec.dropout, spec.swaps, spec.synonyms) == (0.0, 0.0, 0.0)
    assert _spec("m", dropout=0.2).dropout == 0.2
    assert AugmentationSpec.model_validate(spec.model_dump()) == spec
    assert AugmentationSpec().dropout == 0.1


def test_rows_in_other_words_are_trained_on_and_read_again_from_the_run(
    tiny_encoder: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{MODULE}.rewrite", _every_other)
    recipe = _recipe(tiny_encoder, tmp_path, _spec(tiny, copies=2), "plain")
    trained = pipeline.train(recipe, tmp_path / "run")
    assert trained.data is not None
    rows = list(trained.data.rows)
    own, copies = rows[:24], rows[24:]
    # Two copies of every other row, each with the target of its row.
    assert len(copies) == 24
    for row, copy in zip([*own[::2], *own[::2]], copies, strict=True):
        words = copy.messages[0].content.replace(" in yet other words", " in  other words")
        assert words == f"{row.messages[0].content} in  other words"
        assert (copy.label, copy.cluster) == (row.label, row.cluster)
    monkeypatch.setattr(f"{MODULE}.rewrite", None)
    session = open_run(tmp_path / "run")
    assert rows_of_run(session).prepared.digest == trained.run.load_record()["data"]["digest"]
    pipeline.evaluate(trained.session, stopping="none")
    plain = json.loads((trained.run.plain / "run.json").read_text())
    assert plain["data"]["rows"] == 24
    assert abs(trained.result.steps - plain["training"]["steps"]) <= 1
    record = json.loads(trained.run.self_distillation.read_text())
    record["paraphrases"][0]["text"] = "a text that is no row"
    trained.run.self_distillation.write_text(json.dumps(record))
    with pytest.raises(DataError, match="trained on in other words is gone"):
        rows_of_run(open_run(tmp_path / "run"))


def test_a_writer_that_says_nothing_like_the_text_is_refused(
    tiny_encoder: Path, tiny: Path, tmp_path: Path
) -> None:
    recipe = _recipe(tiny_encoder, tmp_path, _spec(tiny))
    with pytest.raises(DataError, match=r"wrote no text in other words \(got \d+ "):
        pipeline.train(recipe, tmp_path / "run")


def test_a_record_of_another_version_is_refused() -> None:
    with pytest.raises(DataError, match="no paraphrases of this version"):
        read_paraphrases([{"copy": 1}])


def test_texts_are_written_once(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = Rows.of("r", [parse_row({"text": f"text {n}", "label": "a"}, f"r:{n}") for n in "ab"])
    monkeypatch.setattr(f"{MODULE}.rewrite", _every_other)
    found = find_paraphrases(rows, _spec(tiny), 0, 128)
    assert [one.found for one in found] == ["taken", "unlike the row"]
    assert "1 of 2 texts were written in other words" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr(f"{MODULE}.rewrite", None)
    assert find_paraphrases(rows, _spec(tiny), 0, 128) == found


def test_a_real_model_writes_a_text_in_other_words(loaded_backbone: Backbone) -> None:
    texts = ["Return all breakpoints for the given file and line 12.", "Find names of variables."]
    requests = [Request((Message("user", PROMPT.format(text=text)),), text) for text in texts]
    generator = Generator(loaded_backbone, stop_token_ids(loaded_backbone))
    found = rewrite(generator, requests, 30.0, load_metric("chrf"), 128)
    taken = [(text, one.text) for text, one in zip(texts, found, strict=True) if one and one.text]
    assert taken
    assert all(new != old and 0 < len(str(new)) < 3 * len(old) for old, new in taken)
    # A prompt of more tokens than allowed is not asked.
    assert rewrite(generator, requests, 30.0, load_metric("chrf"), 4) == [None, None]
