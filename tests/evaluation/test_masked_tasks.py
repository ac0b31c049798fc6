"""Pseudo-log-likelihoods, and a run of a masked language model with its merged encoder."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from lora_kit import pipeline
from lora_kit.backbone.files import resolve
from lora_kit.backbone.heads import MASKED, HeadOutputs, embedding_outputs
from lora_kit.backbone.load import load
from lora_kit.data.sources import BUILT_IN, open_source
from lora_kit.evaluation.engine.masked import score_masked
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.item import Outcome
from lora_kit.evaluation.ledger import read_ledger
from lora_kit.evaluation.masked_tasks import grade_pseudo_likelihood
from lora_kit.evaluation.requests import MaskedRequest
from lora_kit.evaluation.suite import Suite
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.data import SourceSpec
from lora_kit.runtime.errors import DataError, EvaluationError
from tests.head_recipes import write_gain_suite, write_lines
from tests.masking import mlm_recipe
from tests.merging.in_process import in_this_process

CPU = torch.device("cpu")


def spec_of(model: Path) -> BackboneSpec:
    return BackboneSpec(model=str(model), quantization="none", dtype="float32")


def pseudo_log_likelihood(model: Any, ids: list[int], mask: int, special: set[int]) -> float:
    """Mask each token of a text in a pass of its own."""
    total = 0.0
    for place, token in enumerate(ids):
        if token in special:
            continue
        masked = torch.tensor([[*ids[:place], mask, *ids[place + 1 :]]])
        with torch.no_grad():
            logits = model(input_ids=masked).logits[0, place]
        total += float(logits.double().log_softmax(-1)[token])
    return total


def test_scores_are_those_of_one_pass_a_token(tiny_encoder: Path, tmp_path: Path) -> None:
    """Texts of unlike lengths share passes; special tokens are not scored."""
    rows = [{"text": "a b c d e f g h i j k l"}, {"text": "plum"}, {"text": "red green blue"}]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    task = {"name": "texts", "kind": "loss", "source": str(source), "max_length": 10}
    suite = Suite.load(write_gain_suite(tmp_path / "suite.yaml", "own", task))
    backbone = load(resolve(spec_of(tiny_encoder)), spec_of(tiny_encoder), MASKED)
    [work] = plan_work([suite], backbone)
    requests = [one.request for one in work.task.items if isinstance(one.request, MaskedRequest)]
    assert [len(one.positions) for one in requests] == [8, 1, 3]
    tokenizer = backbone.tokenizer
    special, mask = set(tokenizer.all_special_ids), tokenizer.mask_token_id
    with torch.no_grad():
        found = score_masked(backbone.model, requests, tokenizer.pad_token_id, CPU)
    for item, request, outcome in zip(work.task.items, requests, found, strict=True):
        ids = list(request.input_ids)
        expected = pseudo_log_likelihood(backbone.model, ids, mask, special)
        assert outcome.log_likelihoods == pytest.approx((expected,), rel=1e-5)
        graded = grade_pseudo_likelihood(item, outcome)
        assert graded.score == pytest.approx(-expected / len(request.positions), rel=1e-5)
    plum = grade_pseudo_likelihood(work.task.items[1], Outcome((-8 * math.log(2),)))
    assert plum.measures["bits_per_byte"] == pytest.approx(8 / len("plum"))


def test_the_built_in_texts_are_no_copies_of_those_of_another_split() -> None:
    """The splits by module are those of the areas, which a second stage learns."""
    trained, tested = (
        open_source(SourceSpec(source="stdlib-texts", split=split), 0, "data.train").read()
        for split in ("train", "test")
    )
    assert len(trained) > len(tested) > 800
    assert not {one.cluster for one in trained} & {one.cluster for one in tested}
    endings = [{str(one.text)[-60:] for one in rows} for rows in (trained, tested)]
    assert len(endings[0] & endings[1]) < 0.05 * len(endings[1])
    assert BUILT_IN["stdlib-texts"].test == BUILT_IN["stdlib-areas"].test


def test_rows_and_tasks_that_are_no_texts_are_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    backbone = load(resolve(spec_of(tiny_encoder)), spec_of(tiny_encoder), MASKED)

    def planned(row: dict[str, str], **own: Any) -> None:
        source = write_lines(tmp_path / "rows.jsonl", [row])
        task = {"name": "texts", "kind": "loss", "source": str(source), **own}
        suite = Suite.load(write_gain_suite(tmp_path / "suite.yaml", "own", task))
        plan_work([suite], backbone)

    with pytest.raises(DataError, match=r"rows\.jsonl:1: .* reads texts"):
        planned({"prompt": "a", "completion": "b"})
    with pytest.raises(DataError, match=r"rows\.jsonl:1: no token to score"):
        planned({"text": "[MASK]"})
    with pytest.raises(EvaluationError, match=r"only tasks of kind loss .* such as library-text"):
        planned({"prompt": "a", "completion": "b"}, kind="generation", metric="chrf")


def test_a_run_ends_with_an_encoder_that_others_open(tiny_encoder: Path, tmp_path: Path) -> None:
    """Base, adapter and merged model have the scores of plain transformers; so do next stages."""
    recipe = mlm_recipe(tiny_encoder, tmp_path, training={"epochs": 2.0})
    with in_this_process():
        outcome = pipeline.run(recipe, tmp_path / "run")
    assert "masked language model" in outcome.refusal
    [task] = [task for suite in outcome.verdict.suites for task in suite.tasks]
    assert (task.unit, task.merged) == ("nats/token", "PASS")
    assert task.adapter < task.base
    merged = tmp_path / "run" / "merged"
    model, report = AutoModelForMaskedLM.from_pretrained(merged, output_loading_info=True)
    assert report["missing_keys"] == set()
    tokenizer = AutoTokenizer.from_pretrained(merged)
    entries = read_ledger(tmp_path / "run" / "evaluation" / "ledger.parquet")
    for entry in entries[:2]:
        ids = tokenizer(entry.reference)["input_ids"]
        special = set(tokenizer.all_special_ids)
        total = pseudo_log_likelihood(model.eval(), ids, tokenizer.mask_token_id, special)
        own = [e for e in entries if e.item == entry.item and e.arm in ("adapter", "merged")]
        assert len(own) == 2
        for one in own:
            assert one.measures["nats"] == pytest.approx(-total, rel=1e-4)
    before, after = (AutoModel.from_pretrained(path) for path in (tiny_encoder, merged))
    assert torch.equal(before.pooler.dense.weight, after.pooler.dense.weight)
    assert not torch.equal(before.encoder.layer[0].output.dense.weight, weight_of(after))
    for outputs in (HeadOutputs("classification", ("a", "b")), embedding_outputs("mean"), MASKED):
        loaded = load(resolve(spec_of(merged)), spec_of(merged), outputs)
        found: Any = loaded.model
        assert torch.equal(weight_of(found.base_model), weight_of(after))
        assert loaded.head is not None
        assert not any("cls" in name or "pooler" in name for name in loaded.head.newly_initialized)


def weight_of(encoder: Any) -> torch.Tensor:
    weight: torch.Tensor = encoder.encoder.layer[0].output.dense.weight
    return weight
