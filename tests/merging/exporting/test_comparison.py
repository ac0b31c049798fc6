"""Positions and distributions that an export is compared on."""

from pathlib import Path

import pytest
import torch

from lora_kit.data.supervision import Example
from lora_kit.merging.exporting import comparison
from lora_kit.merging.exporting.comparison import comparison_examples
from lora_kit.merging.predictions import MAX_POSITIONS, predict_log_probabilities
from lora_kit.runtime.errors import MergeError
from tests.merging.exporting.small_model import TEXTS


def test_the_distributions_are_those_of_the_whole_row(model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model)
    rows = ((5, 6, 7), (8, 9))
    found = predict_log_probabilities(model, [Example(row, row) for row in rows])
    assert found.shape == (3, model.config.vocab_size)
    assert torch.allclose(found.exp().sum(dim=1), torch.ones(3), atol=1e-4)
    same = comparison.compare_export(found, found, 0, 0)
    assert (same.top1_agreement, same.mean_kl) == (1, 0)
    with pytest.raises(MergeError, match="infinite or NaN"):
        comparison.compare_export(found, found * float("nan"), 0, 0)


@pytest.mark.parametrize("texts", [1, 300, 600])
def test_many_texts_are_compared_on_no_more_positions_than_few(model: Path, texts: int) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    examples = comparison_examples(tokenizer, [TEXTS[0] * 50] * texts)
    network = AutoModelForCausalLM.from_pretrained(model)
    assert len(predict_log_probabilities(network, examples)) == MAX_POSITIONS
