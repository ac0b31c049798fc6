"""The arms of an evaluation that are models."""

from pathlib import Path

import pytest

from lora_kit.adapter_spec import AdapterSpec
from lora_kit.adapters import attach
from lora_kit.arms import reinitialised
from lora_kit.training.initial_factors import initialise
from tests.test_peft_methods import tiny_on


@pytest.mark.parametrize(
    "spec",
    [
        AdapterSpec(rank=4, options={"init_lora_weights": "loftq"}),
        AdapterSpec(
            method="prompt_tuning",
            options={"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "Add the numbers."},
        ),
    ],
)
def test_from_scratch_begins_what_reads_the_files_of_the_weights(
    tiny: Path, spec: AdapterSpec
) -> None:
    with reinitialised(tiny_on(tiny, "nf4"), 0) as backbone:
        model = attach(backbone, spec, 0)
        initialise(model, backbone, spec, (), 0)
    assert any(parameter.requires_grad for parameter in model.parameters())
