"""Odd inputs get an answer in words: no traceback, nothing unread, no control characters."""

import re
from pathlib import Path
from typing import Any

import pytest

from lora_kit.adapter import quick_patterns
from lora_kit.backbone import chat_template
from lora_kit.cli import main
from lora_kit.preflight import forecast
from lora_kit.preflight.memory import MemoryEstimate
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.hashes import json_sha256
from tests.bad_inputs import (
    adapters,
    changed_rows,
    embeddings,
    heads,
    labels,
    masked,
    monitoring,
    rows,
    strangers,
    suites,
    tables,
    templates,
    terminal,
    tokenizers,
    turns,
)
from tests.bad_inputs.case import Case, Place

MODULES = (
    adapters,
    changed_rows,
    embeddings,
    heads,
    labels,
    masked,
    monitoring,
    rows,
    strangers,
    suites,
    tables,
    templates,
    terminal,
    tokenizers,
    turns,
)
CASES = tuple(case for module in MODULES for case in module.CASES)
# Control characters, except for the line end and the tabulator, and those that reorder text.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture(scope="session")
def tiny_adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a LoRA adapter of the tiny model, written by PEFT."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    directory = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(tiny)
    get_peft_model(model, config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def estimates() -> dict[str, MemoryEstimate]:
    """Estimates of the memory of a training, by model, adapter and device."""
    return {}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, estimates: dict[str, MemoryEstimate]) -> None:
    """End what is endless early; estimate once a model and adapter, whatever rows they have."""
    estimate = forecast.estimate_memory

    def first_estimate(recipe: Recipe, config: Any, *rest: Any) -> MemoryEstimate:
        model = config.to_json_string(use_diff=False)
        key = json_sha256([model, recipe.adapter.model_dump(mode="json"), rest[1]])
        if key not in estimates:
            estimates[key] = estimate(recipe, config, *rest)
        return estimates[key]

    monkeypatch.setattr(forecast, "estimate_memory", first_estimate)
    monkeypatch.setattr(chat_template, "SECONDS", 3)
    monkeypatch.setattr(quick_patterns, "SECONDS", 1)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_odd_input_is_answered_in_words(
    case: Case, tmp_path: Path, tiny: Path, tiny_adapter: Path, capsys: Any
) -> None:
    arguments = case.write(Place(tmp_path, tiny, tiny_adapter))
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    answer = captured.out + captured.err
    assert ended.value.code == case.status, answer
    for text in case.says:
        # A console breaks lines between words.
        assert text in " ".join(answer.split()), answer
    assert not CONTROL.search(answer), repr(answer)


def test_each_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
