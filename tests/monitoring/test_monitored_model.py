"""`monitor --model`: losses, classes, and the verdict on texts that have answers."""

import json
from pathlib import Path

import pytest

from lora_kit import pipeline
from lora_kit.data.dataset import open_rows
from lora_kit.pipeline import monitored_model
from lora_kit.pipeline.monitoring import MonitorRequest, monitor
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.errors import EvaluationError
from tests.classifying import WORDS, classes_recipe
from tests.monitoring.judged import sentences, write_judged_run, write_stream


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


@pytest.mark.parametrize("objective", ["reward", "regression", "multi-label"])
def test_a_head_without_classes_is_not_loaded(tmp_path: Path, objective: str) -> None:
    run = write_judged_run(tmp_path)
    recipe = Recipe.load(run / "recipe.yaml")
    training = recipe.training.model_copy(update={"objective": objective})
    target = monitored_model.MonitoredAdapter(
        run, recipe.model_copy(update={"training": training}), run / "evaluation", {}
    )
    with pytest.raises(EvaluationError, match=f"neither a loss nor a class .*{objective}"):
        monitored_model.MonitoredModel.open(target)
