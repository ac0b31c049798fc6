"""Masks, loss, training and saved adapter of a masked language model."""

import dataclasses
import json
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, BartConfig, BertConfig, BertForMaskedLM

from lora_kit import pipeline
from lora_kit.adapter.attach import attach
from lora_kit.backbone.files import resolve
from lora_kit.backbone.heads import MASKED
from lora_kit.backbone.load import Backbone, load
from lora_kit.backbone.masked import masked_model_class
from lora_kit.data.masked_texts import encode_masked_rows
from lora_kit.data.masking import TokenMasker
from lora_kit.data.rows import Row
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.modeling.masked import masked_batch, masked_nll
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.mlm import MlmSpec
from lora_kit.runtime.errors import AdapterError, BackboneError, DataError
from tests.masking import mlm_recipe
from tests.training.cut import cut_off, losses, sha256, with_training

CLS, SEP, MASK = 101, 102, 103
MASKER = TokenMasker(MlmSpec(), 7, MASK, np.arange(1000, 1100))


def text(length: int) -> Example:
    """Return a text of ordinary tokens between the two special ones of BERT."""
    ids = (CLS, *range(2000, 2000 + length), SEP)
    return Example(ids, (IGNORE_INDEX, *ids[1:-1], IGNORE_INDEX))


def loaded(directory: Path) -> Backbone:
    spec = BackboneSpec(model=str(directory), quantization="none", dtype="float32")
    return load(resolve(spec), spec, MASKED)


@pytest.fixture(scope="module")
def bert(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny encoder with a head for masked tokens in its checkpoint, without dropout."""
    directory = tmp_path_factory.mktemp("masked") / "bert"
    shutil.copytree(tiny_encoder, directory)
    config = BertConfig.from_pretrained(tiny_encoder)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    torch.manual_seed(1)
    BertForMaskedLM(config).save_pretrained(directory)
    return directory


def test_shares_of_masked_random_and_kept_tokens_are_those_of_the_recipe() -> None:
    original = text(20_000)
    masked = MASKER.masked(original, 0, 0)
    pairs = zip(original.input_ids, masked.input_ids, masked.labels, strict=True)
    kinds: Counter[str] = Counter()
    for before, after, label in pairs:
        assert label in (IGNORE_INDEX, before)
        if label == IGNORE_INDEX:
            assert after == before
            continue
        kinds["kept" if after == before else "mask" if after == MASK else "random"] += 1
        assert after in (before, MASK) or 1000 <= after < 1100
    total = sum(kinds.values())
    assert total / 20_000 == pytest.approx(0.15, abs=0.01)
    assert kinds["mask"] / total == pytest.approx(0.8, abs=0.03)
    assert kinds["random"] / total == pytest.approx(0.1, abs=0.02)


def test_masks_follow_from_seed_step_and_row_alone() -> None:
    first = MASKER.masked(text(50), 3, 5)
    assert MASKER.masked(text(50), 3, 5) == first
    others = [MASKER.masked(text(50), 4, 5), MASKER.masked(text(50), 3, 6)]
    others.append(dataclasses.replace(MASKER, seed=8).masked(text(50), 3, 5))
    others.append(MASKER.held_out([text(50)] * 4)[3])
    assert all(one.labels != first.labels for one in others)
    assert MASKER.held_out([text(50)] * 2) == MASKER.held_out([text(50)] * 2)


def test_a_row_of_which_no_token_is_drawn_has_one_and_special_tokens_have_none() -> None:
    rare = dataclasses.replace(MASKER, spec=MlmSpec(probability=1e-9))
    assert {rare.masked(text(3), row, 0).supervised for row in range(9)} == {1}
    certain = dataclasses.replace(MASKER, spec=MlmSpec(probability=0.999))
    masked = certain.masked(text(40), 0, 0)
    assert (masked.input_ids[0], masked.input_ids[-1]) == (CLS, SEP)
    assert (masked.labels[0], masked.labels[-1]) == (IGNORE_INDEX, IGNORE_INDEX)


def test_a_long_text_is_split_with_special_tokens_around_each_part(tiny_encoder: Path) -> None:
    tokenizer = loaded(tiny_encoder).tokenizer
    row = Row("a", "", text="one two three four five six seven")
    plain = tuple(tokenizer(row.text, add_special_tokens=False)["input_ids"])
    [parts] = encode_masked_rows([row], tokenizer, 5, split=True)
    assert [part.input_ids for part in parts] == [
        (CLS, *plain[start : start + 3], SEP) for start in (0, 3, 6)
    ]
    [[cut]] = encode_masked_rows([row], tokenizer, 5, split=False)
    assert (cut.input_ids, cut.truncated) == ((CLS, *plain[:3], SEP), True)
    assert cut.labels == (IGNORE_INDEX, *plain[:3], IGNORE_INDEX)
    with pytest.raises(DataError, match=r"data\.max_length: no room .* \(got 2\)"):
        encode_masked_rows([row], tokenizer, 2, split=True)


def test_the_loss_is_that_of_transformers_on_the_same_masks(bert: Path) -> None:
    backbone = loaded(bert)
    assert backbone.head is not None
    assert backbone.head.newly_initialized == ()
    masked = [MASKER.masked(text(length), length, 0) for length in (30, 9, 17)]
    ids, labels = (
        torch.tensor([[*one, *[fill] * (32 - len(one))] for one in rows])
        for rows, fill in (
            ([one.input_ids for one in masked], 0),
            ([one.labels for one in masked], IGNORE_INDEX),
        )
    )
    plain = BertForMaskedLM.from_pretrained(bert).eval()
    with torch.no_grad():
        theirs = plain(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        mine = masked_nll(backbone.model, masked_batch(masked, 0))
    assert len(mine) == sum(one.supervised for one in masked)
    assert mine.mean().item() == pytest.approx(theirs.item(), rel=1e-5)


def test_a_new_head_is_trained_and_the_tied_output_layer_is_not(
    tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The head is random, and the same, whenever the backbone is loaded."""
    backbone, again = loaded(tiny_encoder), loaded(tiny_encoder)
    layer = "cls.predictions.transform.dense"
    weights = [one.model.get_submodule(layer).weight for one in (backbone, again)]
    assert torch.equal(*weights)
    assert "no head for masked tokens" not in capsys.readouterr().err
    model = attach(backbone, AdapterSpec(rank=2, alpha=4), 0)
    assert "no head for masked tokens" in capsys.readouterr().err
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    in_head = {name.removeprefix("base_model.model.") for name in trained if ".cls." in name}
    assert in_head == {
        f"cls.predictions.transform.{part}.modules_to_save.default.{kind}"
        for part in ("dense", "LayerNorm")
        for kind in ("weight", "bias")
    }
    base: Any = model.get_base_model()
    assert base.cls.predictions.decoder.weight is base.bert.embeddings.word_embeddings.weight
    assert not any("decoder" in name or "embeddings" in name for name in trained)


def test_a_head_of_the_checkpoint_stays_and_cannot_be_trained_alone(bert: Path) -> None:
    model = attach(loaded(bert), AdapterSpec(rank=2, alpha=4), 0)
    assert not model.peft_config["default"].modules_to_save
    backbone = loaded(bert)
    with pytest.raises(AdapterError, match="no module has an adapter"):
        attach(backbone, AdapterSpec(method="head"), 0)


def test_decoders_and_encoder_decoders_are_refused(tiny: Path) -> None:
    with pytest.raises(BackboneError, match=r"a decoder predicts no masked tokens .*: text"):
        loaded(tiny)
    with pytest.raises(BackboneError, match=r"an encoder-decoder predicts no .* bart\).*: sft"):
        masked_model_class(BartConfig(), "a model")


def test_a_tokenizer_without_a_mask_token_is_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    directory = tmp_path / "unmasked"
    shutil.copytree(tiny_encoder, directory)
    (directory / "special_tokens_map.json").unlink()
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(
        json.dumps(config | {"mask_token": None, "tokenizer_class": "TokenizersBackend"})
    )
    with pytest.raises(BackboneError, match=r"its tokenizer has no mask token \(got none\)"):
        loaded(directory)


def test_an_encoder_without_some_of_its_weights_is_refused(bert: Path, tmp_path: Path) -> None:
    directory = tmp_path / "broken"
    shutil.copytree(bert, directory)
    weights = load_file(directory / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(BackboneError, match=r"missing: bert\.encoder\.layer\.1\.output"):
        loaded(directory)


@pytest.fixture(scope="module")
def trained(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("masked")
    recipe = mlm_recipe(tiny_encoder, folder, training={"epochs": 2.0, "eval_steps": 6})
    return pipeline.train(recipe, folder / "run")


def test_a_training_learns_and_plain_transformers_and_peft_give_the_same_logits(
    trained: Any, tiny_encoder: Path
) -> None:
    result, adapter = trained.result, trained.run.adapter
    assert result.steps == 24
    assert result.validation_after < result.validation_before - 0.5
    assert json.loads((adapter / "mlm.json").read_text())["texts"] == 48
    assert json.loads((adapter / "adapter_config.json").read_text())["task_type"] is None
    ids = torch.tensor([[CLS, 1996, MASK, 1997, SEP]])
    base = AutoModelForMaskedLM.from_pretrained(tiny_encoder, dtype=torch.float32)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("error", message=".*missing adapter keys")
        plain = PeftModel.from_pretrained(base, adapter).eval()
        mine = trained.session.model.eval()(input_ids=ids).logits
        assert torch.allclose(plain(input_ids=ids).logits, mine, atol=1e-5)


def test_micro_batches_and_a_resumed_training_have_the_same_masks(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes are limited by their tokens, so that the rows of a step stay the same."""
    training = {"save_steps": 1, "save_total_limit": 100, "epochs": 0.5}
    recipe = mlm_recipe(bert, tmp_path, training=training)
    whole = pipeline.train(recipe, tmp_path / "whole").run
    cut_off(monkeypatch, recipe, tmp_path / "resumed", 3)
    resumed = pipeline.train(recipe, tmp_path / "resumed", resume=True).run
    assert sha256(resumed.root) == sha256(whole.root)
    parts = pipeline.train(with_training(recipe, max_tokens_per_batch=12), tmp_path / "parts").run
    assert losses(parts.root) == pytest.approx(losses(whole.root), rel=1e-4)
