from typing import Any

import pytest
import torch

from lora_kit.backbone.load import Backbone
from lora_kit.data.rows import Message, Row
from lora_kit.data.supervision import Example
from lora_kit.data.tokenization import tokenize
from lora_kit.modeling.likelihood import supervised_nll
from lora_kit.modeling.model_inputs import pad_examples


@pytest.fixture
def examples(tokenizer: Any) -> list[Example]:
    rows = [
        Row("1", "1", (Message("user", "Name a colour."), Message("assistant", "Blue."))),
        Row("2", "2", (Message("user", "Count to five, please."), Message("assistant", "1 2 3"))),
        Row("3", "3", text="A text is learned whole, from its second token to its last."),
    ]
    return [tokenize(row, tokenizer, 256) for row in rows]


def test_the_supervised_loss_is_the_models_own_loss(
    real_backbone: Backbone, examples: list[Example]
) -> None:
    batch = pad_examples(examples, real_backbone.tokenizer.pad_token_id)
    with torch.no_grad():
        own = float(real_backbone.model(**batch).loss)
        nll, _ = supervised_nll(real_backbone.model, batch)
    assert float(nll.mean()) == pytest.approx(own, abs=5e-5)


def test_each_token_is_assigned_to_its_row(
    real_backbone: Backbone, examples: list[Example]
) -> None:
    pad = real_backbone.tokenizer.pad_token_id
    with torch.no_grad():
        nll, rows = supervised_nll(real_backbone.model, pad_examples(examples, pad))
        for number, example in enumerate(examples):
            alone, _ = supervised_nll(real_backbone.model, pad_examples([example], pad))
            assert len(alone) == example.supervised
            assert torch.allclose(nll[rows == number], alone, atol=1e-3)


def test_padding_aligns_the_answers(examples: list[Example]) -> None:
    batch = pad_examples(examples[:2], 2)
    assert (batch["labels"][:, -1] != -100).all()
    for row, example in enumerate(examples[:2]):
        used = len(example.input_ids)
        assert batch["attention_mask"][row].sum() == used
        assert batch["position_ids"][row, -used:].tolist() == list(range(used))
        assert tuple(batch["input_ids"][row, -used:].tolist()) == example.input_ids
