"""Selective token masking."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from lora_kit.adapter.attach import attach
from lora_kit.backbone.load import Backbone
from lora_kit.data.dataset import prepare
from lora_kit.data.prepared import PreparedData
from lora_kit.data.supervision import IGNORE_INDEX
from lora_kit.data.tokenization import end_of_turn_id
from lora_kit.modeling.model_inputs import pad_examples
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.pipeline import train
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.retention import TokenMaskingSpec
from lora_kit.runtime.errors import TrainingError
from lora_kit.training.retention import token_masking
from lora_kit.training.retention.token_masking import mask_improbable_tokens
from tests.training.keeping import changed, disturbed
from tests.training_rows import training_rows


def test_labels_of_probable_tokens_are_kept(tiny_backbone: Backbone, tiny_recipe: Recipe) -> None:
    model = disturbed(tiny_backbone, tiny_recipe)
    rows, _ = training_rows(tiny_recipe.data, 0)
    data = prepare(rows, tiny_backbone.tokenizer, tiny_recipe.data)
    # The random model's perplexities are all near its vocabulary's size.
    spec = TokenMaskingSpec(max_perplexity=49_152.0)
    left = mask_improbable_tokens(data, model, tiny_backbone, spec, 256)
    end = end_of_turn_id(tiny_backbone.tokenizer)
    by_origin = {example.origin: example for example in left.examples}
    kept = 0
    for before in data.examples:
        after = by_origin.get(before.origin)
        if after is None:
            continue
        batch = pad_examples([before], 0)
        with torch.no_grad(), adapter_disabled(model):
            logits = model(input_ids=batch["input_ids"]).logits[0, :-1]
        nll = cross_entropy(
            logits, batch["labels"][0, 1:], ignore_index=IGNORE_INDEX, reduction="none"
        )
        for label, now, one in zip(before.labels[1:], after.labels[1:], nll.tolist(), strict=True):
            if label not in (IGNORE_INDEX, end) and abs(one - math.log(49_152)) > 1e-4:
                assert (now == label) is (one < math.log(49_152))
                kept += now == label
            elif label == end:
                assert now == end, "the end of a turn is always learned"
    assert 0 < kept < data.counts.supervised_tokens
    assert left.counts.supervised_tokens == sum(e.supervised for e in left.examples)
    assert left.counts.truncated == sum(e.truncated for e in left.examples)
    for name in ("rows", "used", "dropped", "truncated", "tokens"):
        of_sources = sum(getattr(one, name) for one in left.counts.sources.values())
        assert of_sources == getattr(left.counts, name)
    assert left.digest == data.digest
    dataset = left.to_dataset()
    assert dataset["row"] == list(range(left.counts.used))
    assert dataset[0]["labels"] == list(left.examples[0].labels)


def test_two_processes_score_half_of_the_rows_each_and_mask_the_same(
    tiny_backbone: Backbone, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = disturbed(tiny_backbone, tiny_recipe)
    data = prepare(training_rows(tiny_recipe.data, 0)[0], tiny_backbone.tokenizer, tiny_recipe.data)
    monkeypatch.setattr(token_masking, "SORT_WINDOW", 3)
    windows: list[int] = []
    score = token_masking.nll_per_example
    monkeypatch.setattr(
        token_masking, "nll_per_example", lambda *a: (windows.append(len(a[2])), score(*a))[1]
    )
    shares: list[Any] = []

    def masked(process: int, processes: int) -> PreparedData:
        state = SimpleNamespace(
            process_index=process, num_processes=processes, is_main_process=process == 0
        )
        monkeypatch.setattr(token_masking, "process_state", lambda: state)
        spec = TokenMaskingSpec(max_perplexity=49_152.0)
        return mask_improbable_tokens(data, model, tiny_backbone, spec, 256)

    whole = masked(0, 1)
    assert windows == [3] * 5 + [1]
    # As of another process, whose share is known only when it ends.
    monkeypatch.setattr(token_masking, "gather_object", lambda own: [*shares, *own])
    with monkeypatch.context() as other:
        other.setattr(token_masking, "_with_labels", lambda *_: None)
        other.setattr(token_masking, "gather_object", lambda own: shares.extend(own) or own)
        with pytest.raises(KeyError):
            masked(1, 2)
    windows.clear()
    both = masked(0, 2)
    assert windows == [3, 3, 3]
    assert both.table == whole.table


def test_masking_every_label_is_refused(tiny_backbone: Backbone, tiny_recipe: Recipe) -> None:
    model = attach(tiny_backbone, tiny_recipe.adapter, 0)
    rows, _ = training_rows(tiny_recipe.data, 0)
    data = prepare(rows, tiny_backbone.tokenizer, tiny_recipe.data)
    with pytest.raises(
        TrainingError, match=r"retention\.token_masking\.max_perplexity: .* \(got 2\.5\)"
    ):
        mask_improbable_tokens(data, model, tiny_backbone, TokenMaskingSpec(), 256)


def test_a_run_reports_the_number_of_masked_tokens(
    tiny_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(changed(tiny_recipe, {"token_masking": {"max_perplexity": 49_152}}), tmp_path / "run")
    assert (
        "supervised tokens"
        in " ".join(capsys.readouterr().err.split()).split("retention.token_masking")[1]
    )
