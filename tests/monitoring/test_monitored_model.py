"""`monitor --model`: losses, classes, and the verdict on texts that have answers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_kit import pipeline
from lora_kit.data.dataset import open_rows
from lora_kit.monitoring.result import Monitoring
from lora_kit.pipeline import monitored_model
from lora_kit.pipeline.monitoring import MonitorRequest, monitor
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.errors import EvaluationError
from tests.classifying import WORDS, classes_recipe
from tests.entities import entities_recipe
from tests.head_recipes import write_lines
from tests.masking import mlm_recipe
from tests.monitoring.judged import sentences, write_judged_run, write_stream
from tests.scoring import numbers_recipe
from tests.tagging import labels_recipe


@pytest.fixture(autouse=True)
def _few_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with the four items of a quick suite."""
    monkeypatch.setattr(monitored_model, "LEAST_REFERENCE", 4)


def test_a_classifier_is_monitored_by_its_classes_and_judged_on_labels(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    recipe = classes_recipe(tiny_encoder, tmp_path)
    session = pipeline.train(recipe, tmp_path / "run").session
    pipeline.evaluate(session)
    rows = [
        {"text": f"note {n} on {WORDS[label].split()[n % 3]}s"}
        | ({"label": label} if n % 2 else {})
        for n in range(12)
        for label in WORDS
    ]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    known = write_stream(tmp_path / "known.jsonl", sentences(50, 1))
    request = MonitorRequest(
        tmp_path / "run", texts, 12, reference=known, model=True, output=tmp_path / "monitor"
    )
    found = monitor(request)
    assert [one.name for one in found.signals] == ["words", "length", "classes", "confidence"]
    confidence = found.signals[3]
    assert all(1 / 3 <= value <= 1 for value in (*confidence.values, confidence.reference))
    assert found.verdict is not None
    assert found.verdict.items == 18
    assert Path(found.verdict.report).is_file()
    assert not RunDirectory(tmp_path / "run").evaluation.with_name("evaluation-kinds").exists()


def test_a_language_model_is_monitored_by_its_losses_and_judged_on_answers(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    session = pipeline.train(tiny_recipe, tmp_path / "run").session
    pipeline.evaluate(session)
    # By this digest, rows that are read again are known to be those of the training.
    recorded = session.run.load_record()["data"]["rows_digest"]
    assert open_rows(session.recipe.data, session.recipe.seed).digest() == recorded
    known = write_stream(tmp_path / "known.jsonl", sentences(50, 1))
    stream = [{"prompt": text, "completion": "Yes."} for text in sentences(20, 2)]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in stream))
    request = MonitorRequest(
        tmp_path / "run", texts, 10, reference=known, model=True, output=tmp_path / "monitor"
    )
    found = monitor(request)
    loss = found.signals[2]
    assert loss.name == "loss"
    # A random model has about the loss of a uniform choice among its vocabulary.
    assert all(5 < value < 12 for value in (*loss.values, loss.reference))
    assert found.verdict is not None
    assert found.verdict.items == 20


def test_numbers_are_monitored_and_judged(tiny_encoder: Path, tmp_path: Path) -> None:
    session = pipeline.train(numbers_recipe(tiny_encoder, tmp_path), tmp_path / "run").session
    pipeline.evaluate(session)
    stream = [{"text": f"note {n}: " + "very " * (n % 6) + "good"} for n in range(30)]
    for n in range(0, 30, 2):
        stream[n] |= {"score": 100 + 10 * (n % 6)}
    found = _monitored(tmp_path, stream)
    assert [one.name for one in found.signals] == ["words", "length", "number score"]
    # In the unit of the rows, 100 to 150.
    predicted = found.signals[2]
    assert all(80 < value < 170 for value in (*predicted.values, predicted.reference))
    assert found.verdict is not None
    assert found.verdict.items == 15


def test_labels_are_monitored_and_judged(tiny_encoder: Path, tmp_path: Path) -> None:
    session = pipeline.train(labels_recipe(tiny_encoder, tmp_path), tmp_path / "run").session
    pipeline.evaluate(session)
    stream = [{"text": f"note {n} on an apple"} for n in range(30)]
    for n in range(10):
        stream[n] |= {"labels": ["fruit"] if n else []}
    found = _monitored(tmp_path, stream)
    assert [one.name for one in found.signals] == ["words", "length", "classes", "confidence"]
    confidence = found.signals[3]
    assert all(0.5 <= value <= 1 for value in (*confidence.values, confidence.reference))
    assert found.verdict is not None
    assert found.verdict.items == 10


def _monitored(folder: Path, stream: Sequence[Mapping[str, Any]]) -> Monitoring:
    texts = write_lines(folder / "texts.jsonl", stream)
    known = write_stream(folder / "known.jsonl", sentences(50, 1))
    output = folder / "monitor"
    return monitor(
        MonitorRequest(folder / "run", texts, 10, reference=known, model=True, output=output)
    )


def test_tags_are_monitored_and_judged(tiny_encoder: Path, tmp_path: Path) -> None:
    session = pipeline.train(entities_recipe(tiny_encoder, tmp_path), tmp_path / "run").session
    pipeline.evaluate(session)
    stream: list[dict[str, Any]] = [{"text": f"note {n} of  an apple"} for n in range(20)]
    stream += [{"tokens": ["by", "plum"], "tags": ["O", "B-place"]} for _ in range(10)]
    stream[1] = {"tokens": ["note", "1", "of", "a", "plum"]}
    found = _monitored(tmp_path, stream)
    names = ["words", "length", "classes", "entities", "confidence"]
    assert [one.name for one in found.signals] == names
    confidence = found.signals[4]
    # Of five tags.
    assert all(1 / 5 <= value <= 1 for value in (*confidence.values, confidence.reference))
    assert all(0 <= value <= 1 for value in found.signals[3].values)
    assert found.verdict is not None
    assert found.verdict.items == 10


def test_a_masked_language_model_is_monitored_by_its_losses(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    session = pipeline.train(mlm_recipe(tiny_encoder, tmp_path), tmp_path / "run").session
    pipeline.evaluate(session)
    stream = [{"text": f"note {n} of an apple"} for n in range(29)]
    found = _monitored(tmp_path, [*stream, {"prompt": "note", "completion": "29"}])
    assert "1 texts have an answer, by which no masked language model is judged." in found.notes
    assert [one.name for one in found.signals] == ["words", "length", "loss"]
    assert all(0 < value < 20 for value in (*found.signals[2].values, found.signals[2].reference))
    assert found.verdict is None


@pytest.mark.parametrize("objective", ["reward", "embedding"])
def test_a_head_of_pairs_is_not_loaded(tmp_path: Path, objective: str) -> None:
    run = write_judged_run(tmp_path)
    recipe = Recipe.load(run / "recipe.yaml")
    training = recipe.training.model_copy(update={"objective": objective})
    target = monitored_model.MonitoredAdapter(
        run, recipe.model_copy(update={"training": training}), run / "evaluation", {}
    )
    with pytest.raises(EvaluationError, match=f"neither a loss, a class, .*{objective}"):
        monitored_model.MonitoredModel.open(target)
