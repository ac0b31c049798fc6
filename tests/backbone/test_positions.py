"""Position limits: learned positions have one, computed positions do not."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    LEDConfig,
    LlamaConfig,
    OPTConfig,
    RobertaConfig,
    T5Config,
)

from lora_kit.backbone.encoder_decoder import language_model_class
from lora_kit.backbone.positions import PositionLimits

OF_A_DECODER = {
    "gpt2": GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=1, n_head=2),
    "opt": OPTConfig(
        vocab_size=50,
        max_position_embeddings=16,
        hidden_size=8,
        word_embed_proj_dim=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=8,
    ),
    # Two of the 18 rows have no position.
    "roberta": RobertaConfig(
        vocab_size=50,
        max_position_embeddings=18,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        is_decoder=True,
        pad_token_id=1,
    ),
}


@pytest.mark.parametrize("kind", OF_A_DECODER)
def test_a_text_that_exceeds_the_positions_is_reported(kind: str) -> None:
    model = AutoModelForCausalLM.from_config(OF_A_DECODER[kind])
    positions = PositionLimits.of(model)
    assert positions.overflow(range(16)) == ""
    # The last generated token is never an input; virtual tokens are.
    assert positions.overflow(range(10), 7) == ""
    exceeded = "needs 17 positions (available: 16)"
    assert positions.overflow(range(10), 7, virtual_tokens=1) == exceeded
    assert positions.overflow(range(17)) == exceeded
    with torch.no_grad():
        model(input_ids=torch.arange(3, 19)[None])
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.arange(3, 20)[None])


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(
            vocab_size=50,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=8,
            max_position_embeddings=16,
        ),
        T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2),
    ],
    ids=["llama", "t5"],
)
def test_computed_positions_have_no_limit(config: Any) -> None:
    model = language_model_class(config).from_config(config)
    assert PositionLimits.of(model).overflow(range(2, 400)) == ""


def test_encoder_and_decoder_have_separate_positions() -> None:
    config = LEDConfig(
        vocab_size=50,
        max_encoder_position_embeddings=64,
        max_decoder_position_embeddings=32,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        attention_window=4,
    )
    positions = PositionLimits.of(AutoModelForSeq2SeqLM.from_config(config))
    source = [*[7] * 63, config.eos_token_id]
    assert positions.overflow([*source, *[8] * 32]) == ""
    assert "needs 33 positions" in positions.overflow([*source, *[8] * 33])
    assert "needs 65 positions" in positions.overflow([7, *source, 8])
