"""Merging as a stage: a run, both bases of a quantized one, an adapter of PEFT alone."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_kit.adapter.saved import adapter_sha256
from lora_kit.pipeline import evaluate, merge, merging, train
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.sections import MergeSpec
from lora_kit.runtime.errors import AdapterError, MergeError
from tests.merging.in_process import in_this_process

QUIZ = """
name: quiz
role: retention
tasks:
  - {name: prose, kind: loss, source: python-reference, limit: 10, max_length: 64, margin: 2}
"""


def with_base(recipe: Recipe, tmp_path: Path, base: str, quantization: str) -> Recipe:
    (tmp_path / "quiz.yaml").write_text(QUIZ)
    value = recipe.model_dump(mode="json")
    value["backbone"]["quantization"] = quantization
    value["merge"]["base"] = base
    value["evaluation"]["suites"] = [str(tmp_path / "quiz.yaml")]
    return Recipe.model_validate(value)


@in_this_process()
def test_a_change_that_half_precision_rounds_away_is_stored_in_float32(
    tiny_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = with_base(tiny_recipe, tmp_path, "dequantized", "nf4").model_dump(mode="json")
    value["backbone"]["dtype"] = "bfloat16"
    value["training"]["learning_rate"] = 1e-4
    session = train(Recipe.model_validate(value), tmp_path / "run").session
    (found,) = merge(session)
    assert found.verification.passed, found.verification.reasons
    assert found.verification.median_kept == pytest.approx(1, abs=1e-3)
    record = json.loads((found.directory / "merge.json").read_text())
    assert record["dtype"] == "float32"
    noted = " ".join(capsys.readouterr().err.split())
    assert re.search(
        r"bfloat16 failed the verification \(median_kept: the median module keeps \d?\d\.\d% of",
        noted,
    )
    stored = load_file(found.directory / "model.safetensors")
    assert stored["model.layers.0.mlp.up_proj.weight"].dtype is torch.float32
    # An explicit dtype is used, and the failure reported.
    (rounded,) = merge(session, dtype="bfloat16")
    assert not rounded.verification.passed
    assert json.loads((rounded.directory / "merge.json").read_text())["dtype"] == "bfloat16"


@in_this_process()
def test_both_bases_are_merged_verified_and_evaluated(
    tiny_recipe: Recipe, tmp_path: Path, tiny: Path
) -> None:
    recipe = with_base(tiny_recipe, tmp_path, "both", "nf4")
    session = train(recipe, tmp_path / "run").session
    dequantized, original = merge(session)
    assert (dequantized.into, original.into) == ("dequantized", "original")
    assert dequantized.directory == tmp_path / "run" / "merged"
    assert original.directory == tmp_path / "run" / "merged-original"
    assert dequantized.verification.passed, dequantized.verification.reasons
    assert original.verification.passed, original.verification.reasons
    # The original is right for what it is, and far from what the adapter was trained on.
    distance = original.verification.mean_kl_to_trained
    assert distance is not None
    assert distance > 10 * max(original.verification.mean_kl, dequantized.verification.mean_kl)
    assert dequantized.verification.mean_kl_to_trained is None
    embedding = "model.embed_tokens.weight"
    files = [load_file(m.directory / "model.safetensors") for m in (dequantized, original)]
    stored = load_file(tiny / "model.safetensors")
    assert all(torch.equal(file[embedding], stored[embedding]) for file in files)
    assert not torch.equal(*(file["model.layers.0.mlp.up_proj.weight"] for file in files))
    record = json.loads((original.directory / "merge.json").read_text())
    assert record["into"] == "original"
    verdict = evaluate(session, arms=["merged", "merged-original"]).verdict
    (task,) = verdict.suites[0].tasks
    assert [one.arm for one in task.merges] == ["merged", "merged-original"]
    assert task.merges[0].mean != task.merges[1].mean
    assert verdict.ships in ("merged", "merged-original")
    # Said in the call, it goes before the recipe.
    (alone,) = merge(session, tmp_path / "again", base="original", dtype="float32")
    assert (alone.into, alone.verification.passed) == ("original", True)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["dtype"] == "float32"
    # As if a call was killed before the second of two merges.
    merge(session, tmp_path / "two", base="dequantized")
    assert [one.directory.name for one in merge(session, tmp_path / "two")] == [
        "two",
        "two-original",
    ]


def test_the_first_of_two_merges_is_done_again_after_a_kill_but_nothing_else_is_replaced(
    tmp_path: Path,
) -> None:
    adapter, output = tmp_path / "adapter", tmp_path / "model"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    both = [output, tmp_path / "model-original"]
    spec = MergeSpec(base="both")

    def merged(directory: Path, of: str) -> None:
        directory.mkdir(exist_ok=True)
        into = "dequantized" if directory == output else "original"
        (directory / "merge.json").write_text(json.dumps({"adapter": of, "into": into}))

    merged(output, adapter_sha256(adapter))
    assert merging._directories(None, adapter, spec, output) == both
    # One of one is finished, and so are two of two.
    with pytest.raises(MergeError, match="already exists"):
        merging._directories(None, adapter, MergeSpec(), output)
    merged(both[1], adapter_sha256(adapter))
    with pytest.raises(MergeError, match="already exists"):
        merging._directories(None, adapter, spec, output)
    shutil.rmtree(both[1])
    merged(output, "another adapter")
    with pytest.raises(MergeError, match="already exists"):
        merging._directories(None, adapter, spec, output)
    record = {"adapter": adapter_sha256(adapter), "into": "original"}
    (output / "merge.json").write_text(json.dumps(record))
    with pytest.raises(MergeError, match="already exists"):
        merging._directories(None, adapter, spec, output)


def test_both_bases_of_a_backbone_that_is_not_quantized_are_refused(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = with_base(tiny_recipe, tmp_path, "original", "none")
    session = train(recipe, tmp_path / "run").session
    with pytest.raises(MergeError, match="the two would be the same"):
        merge(session, base="both")


@pytest.mark.parametrize("base", ["dequantized", "both"])
def test_an_occupied_output_is_refused_before_the_backbone_is_loaded(
    tiny_recipe: Recipe, tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(with_base(tiny_recipe, tmp_path, base, "nf4").to_yaml())
    occupied = tmp_path / ("model" if base == "dequantized" else "model-original")
    occupied.mkdir()
    (occupied / "notes.txt").write_text("mine")
    monkeypatch.setattr(merging, "open_subject", lambda *_: pytest.fail("the backbone is loaded"))
    with pytest.raises(MergeError, match=f"{occupied}: already exists"):
        merge(run, tmp_path / "model")
    assert (occupied / "notes.txt").read_text() == "mine"


def test_a_directory_that_is_neither_a_run_nor_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="neither a run"):
        merge(tmp_path)


@pytest.mark.slow  # trains, merges and asks twice
@in_this_process()
def test_merged_weights_that_are_stored_coarser_than_the_adapter_is_fine_are_not_passed(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    """An adapter that has hardly learned is lost to rounding, and the stage says so.

    The weights are numbers of the stored dtype, so that rounding itself changes none.
    """
    from transformers import AutoModelForCausalLM

    shutil.copytree(tiny_recipe.backbone.model, tmp_path / "rounded")
    model = AutoModelForCausalLM.from_pretrained(tiny_recipe.backbone.model)
    model.bfloat16().float().save_pretrained(tmp_path / "rounded")
    value = tiny_recipe.model_dump(mode="json")
    value["backbone"]["model"] = str(tmp_path / "rounded")
    value["training"]["learning_rate"] = 1e-7
    value["merge"]["dtype"] = "bfloat16"
    session = train(Recipe.model_validate(value), tmp_path / "run").session
    (merged,) = merge(session)
    assert merged.verification.median_kept < 0.5
    assert not merged.verification.passed
    recipe = session.recipe.model_copy(update={"merge": MergeSpec(dtype="float32")})
    (exact,) = merge(replace(session, recipe=recipe))
    assert exact.verification.median_kept > 0.9


@in_this_process()
def test_an_adapter_of_peft_alone_is_merged(tiny: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny)
    config = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path / "elsewhere")
    spec = BackboneSpec(model=str(tiny), quantization="none", dtype="float32")
    with pytest.raises(MergeError, match="--output"):
        merge(tmp_path / "elsewhere", backbone=spec)
    (merged,) = merge(tmp_path / "elsewhere", tmp_path / "merged", backbone=spec)
    assert merged.verification.passed, merged.verification.reasons
    assert merged.into == "original"
    record = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert record["compared_on"] == "rows of python-reference"
