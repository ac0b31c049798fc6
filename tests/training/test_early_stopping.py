"""Early stopping on retention texts."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lora_kit.adapter.saved import ADAPTER_WEIGHTS
from lora_kit.data.supervision import Example
from lora_kit.pipeline import train
from lora_kit.preflight.method_checks import require_clusters_for_early_stopping
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.errors import TrainingError
from lora_kit.training.retention.early_stopping import RetentionEarlyStopping, pessimistic_rise
from tests.training.keeping import changed


def test_the_pessimistic_rise_is_a_limit_of_a_paired_t_interval() -> None:
    before, now = [1.0, 2.0, 3.0, 4.0], [1.1, 2.3, 3.1, 4.3]
    # Mean 0.2, standard error 0.1155 / 2, one-sided 95% of t with three degrees: 2.353.
    expected = pytest.approx(0.2 + 2.3534 * 0.11547 / 2, rel=1e-3)
    assert pessimistic_rise(before, now, list("abcd")) == expected


def test_texts_of_one_document_form_a_cluster() -> None:
    """The bound of 200 pairs of texts with equal rises is the bound of 200 texts."""
    generator = np.random.default_rng(0)
    rises = generator.normal(0.1, 0.2, 200)
    alone = pessimistic_rise([0.0] * 200, rises.tolist(), [str(n) for n in range(200)])
    twice = rises.repeat(2).tolist()
    documents = [str(n // 2) for n in range(400)]
    assert pessimistic_rise([0.0] * 400, twice, documents) == pytest.approx(alone, rel=1e-6)
    apart = pessimistic_rise([0.0] * 400, twice, [str(n) for n in range(400)])
    assert rises.mean() < apart < alone


@pytest.mark.parametrize("lost", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_exceeds_every_margin(lost: float) -> None:
    assert pessimistic_rise([1.0, 1.0, 1.0], [1.0, lost, 1.0], list("abc")) == math.inf


def test_training_ends_past_the_margin_and_keeps_the_weights_within_it(
    tiny_recipe: Recipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    retention = {"early_stopping": {"margin": 0.02, "steps": 1, "rows": 8, "length": 32}}
    recipe = changed(
        tiny_recipe, retention, epochs=8.0, learning_rate=3e-3, lr_scheduler="constant"
    )
    kept: dict[int, dict[str, torch.Tensor]] = {}

    end = RetentionEarlyStopping.on_step_end

    def watched(
        self: RetentionEarlyStopping, args: Any, state: Any, control: Any, **rest: Any
    ) -> None:
        kept[state.global_step] = {
            n: p.detach().clone() for n, p in self._model.named_parameters() if p.requires_grad
        }
        end(self, args, state, control, **rest)

    monkeypatch.setattr(RetentionEarlyStopping, "on_step_end", watched)
    result = train(recipe, tmp_path / "run").result
    assert 0 < result.kept_step < result.steps < 32
    assert "retention.early_stopping.margin 0.02" in " ".join(capsys.readouterr().err.split())
    bounds = [line["retention_bound"] for line in result.history if "retention_bound" in line]
    assert bounds[-1] > 0.02
    assert max(bounds[:-1]) <= 0.02
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    for name, tensor in kept[result.kept_step].items():
        assert torch.equal(saved[name.replace(".default", "")], tensor)


def test_the_last_weights_are_measured_if_patience_ends_training(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    retention = {"early_stopping": {"margin": 9.0, "steps": 100, "rows": 8, "length": 32}}
    changes = {"epochs": 40.0, "learning_rate": 0.1, "lr_scheduler": "constant"}
    recipe = changed(tiny_recipe, retention, **changes, eval_steps=1, early_stopping_patience=2)
    result = train(recipe, tmp_path / "run").result
    assert result.kept_step == result.steps < 100
    measured = [line["step"] for line in result.history if "retention_bound" in line]
    assert measured == [result.steps]


@pytest.mark.slow
def test_training_killed_past_the_margin_resumes_with_the_weights_within_it(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training is killed after its last checkpoint, before the adapter is saved."""
    retention = {"early_stopping": {"margin": 0.02, "steps": 1, "rows": 8, "length": 32}}
    changes = {"epochs": 8.0, "learning_rate": 3e-3, "lr_scheduler": "constant", "save_steps": 1}
    recipe = changed(tiny_recipe, retention, **changes)
    complete = train(recipe, tmp_path / "complete").result

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RetentionEarlyStopping, "restore_kept", killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "cut")
    resumed = train(recipe, tmp_path / "cut", resume=True).result
    assert resumed.kept_step == complete.kept_step
    one, other = (tmp_path / name / "adapter" / ADAPTER_WEIGHTS for name in ("complete", "cut"))
    assert one.read_bytes() == other.read_bytes()


def test_exceeding_the_margin_at_the_first_measurement_is_an_error(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    retention = {"early_stopping": {"margin": 1e-6, "steps": 1, "rows": 8, "length": 32}}
    recipe = changed(tiny_recipe, retention, learning_rate=0.5, warmup_ratio=0.0)
    with pytest.raises(TrainingError, match="first measurement exceeds the margin"):
        train(recipe, tmp_path / "run")
    assert not RunDirectory(tmp_path / "run").adapter.exists()


def test_texts_of_a_single_document_are_refused_before_training() -> None:
    """No margin would be wide enough: a bound needs texts that are independent."""

    def context(clusters: str) -> Any:
        examples = [Example((1, 2), (1, 2), cluster=one) for one in clusters]
        texts = SimpleNamespace(examples=examples, source="book.txt")
        return SimpleNamespace(texts=SimpleNamespace(early_stopping=texts))

    require_clusters_for_early_stopping(context("ab"))
    with pytest.raises(TrainingError, match=r"early_stopping\.source: .*8 texts of 1 in book"):
        require_clusters_for_early_stopping(context("aaaaaaaa"))
