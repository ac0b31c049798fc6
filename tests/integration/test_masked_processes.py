"""A masked language model trained by two processes as by one: the same masks and gradients."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM

from tests.integration.test_processes import start
from tests.masking import mlm_recipe
from tests.training.cut import losses


@pytest.mark.slow
def test_two_processes_train_as_one(tiny_encoder: Path, tmp_path: Path) -> None:
    """Seven rows in steps of three and passes of one: the last step has none for one of them."""
    model = tmp_path / "bert"
    shutil.copytree(tiny_encoder, model)
    config = BertConfig.from_pretrained(tiny_encoder)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    torch.manual_seed(1)
    BertForMaskedLM(config).save_pretrained(model)
    training = {"batch_size": 3, "micro_batch_size": 1, "warmup_ratio": 0.0}
    recipe = mlm_recipe(model, tmp_path, training=training)
    [source] = recipe.data.train
    data = recipe.data.model_copy(update={"train": [source.model_copy(update={"limit": 7})]})
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.model_copy(update={"data": data}).to_yaml())
    weights = []
    for processes in (1, 2):
        run = tmp_path / f"by-{processes}"
        ended = start(processes, ["train", str(path), "--output", str(run)], tmp_path)
        assert ended.returncode == 0, ended.stderr
        weights.append(load_file(run / "adapter" / "adapter_model.safetensors"))
    assert losses(tmp_path / "by-2") == pytest.approx(losses(tmp_path / "by-1"), rel=1e-4)
    assert len(losses(tmp_path / "by-1")) == 3
    assert all(torch.allclose(weights[1][n], one, atol=1e-5) for n, one in weights[0].items())
