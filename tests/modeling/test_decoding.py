"""Greedy decoding gives the tokens of transformers' `generate`."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lora_kit.backbone.load import Backbone
from lora_kit.modeling.generation import generate_batch
from lora_kit.modeling.prefix import encode_prefix

PAD = 0
SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Full attention, sliding windows, ALiBi, learned positions, experts, and recurrent states.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen3": {},
    "gemma3_text": {"sliding_window": 6},
    "phi3": {},
    "mixtral": {"num_local_experts": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"n_head": 4, "n_layer": 2},
    "falcon": {"alibi": True, "new_decoder_architecture": False},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "gpt_neox": {},
    "mamba": {},
    "lfm2": {"full_attn_idxs": [1]},
}


def _reference(
    model: Any, prompts: list[list[int]], stops: list[int], new: int, **options: Any
) -> torch.Tensor:
    """Return (rows, tokens) int64 of transformers' own loop."""
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    settings: dict[str, Any] = {"do_sample": False, "pad_token_id": PAD, "eos_token_id": stops}
    with torch.no_grad():
        output: torch.Tensor = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=new, **settings, **options
        )
    return output[:, width:]


def _prompts(vocabulary: int, lengths: tuple[int, ...] = (5, 9, 12, 7, 3, 9)) -> list[list[int]]:
    drawn = torch.Generator().manual_seed(1)
    return [torch.randint(3, vocabulary, (n,), generator=drawn).tolist() for n in lengths]


def _random_lora(model: Any, **changes: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    settings = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | changes
    adapted = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return adapted.eval()


@pytest.mark.parametrize("adapter", [None, {}, {"use_dora": True}, {"use_rslora": True}])
def test_rows_that_end_leave_and_tokens_stay(
    tiny_backbone: Backbone, adapter: dict[str, Any] | None
) -> None:
    model = tiny_backbone.model
    if adapter is not None:
        model = _random_lora(model, **adapter)
    prompts = _prompts(200)
    free = _reference(model, prompts, [], 12)
    # Tokens on which rows end at different steps.
    stops = sorted({int(free[0, 2]), int(free[2, 5])})
    expected = _reference(model, prompts, stops, 12)
    with torch.no_grad():
        found = generate_batch(model, prompts, stops, PAD, 12)
    assert torch.equal(found, expected)
    assert (expected == PAD).any()


def test_a_disabled_adapter_decodes_as_the_backbone(tiny_backbone: Backbone) -> None:
    expected = _reference(tiny_backbone.model, _prompts(200), [], 6)
    adapted = _random_lora(tiny_backbone.model)
    with adapted.disable_adapter(), torch.no_grad():
        assert torch.equal(generate_batch(adapted, _prompts(200), [], PAD, 6), expected)
    with torch.no_grad():
        assert not torch.equal(generate_batch(adapted, _prompts(200), [], PAD, 6), expected)


def test_a_shared_beginning_is_encoded_once(tiny_backbone: Backbone) -> None:
    beginning = _prompts(200, (20,))[0]
    prompts = [beginning + rest for rest in _prompts(200)]
    expected = _reference(tiny_backbone.model, prompts, [], 8)
    widths = []
    handle = tiny_backbone.model.get_input_embeddings().register_forward_hook(
        lambda _, inputs, __: widths.append(tuple(inputs[0].shape))
    )
    with torch.no_grad():
        found = generate_batch(tiny_backbone.model, prompts, [], PAD, 8)
    handle.remove()
    assert torch.equal(found, expected)
    assert widths[:2] == [(1, 20), (6, 12)]


def test_a_stop_text_ends_a_row(tiny_backbone: Backbone) -> None:
    model, tokenizer = tiny_backbone.model, tiny_backbone.tokenizer
    prompts = _prompts(200)
    text = tokenizer.decode(_reference(model, prompts, [], 8)[1, 3:4])
    options = {"stop_strings": [text], "tokenizer": tokenizer}
    expected = _reference(model, prompts, [2], 8, **options)
    with torch.no_grad():
        assert torch.equal(generate_batch(model, prompts, [2], PAD, 8, **options), expected)


def test_generation_settings_of_the_model_count(tiny_backbone: Backbone) -> None:
    model = tiny_backbone.model
    plain = _reference(model, _prompts(200), [], 8)
    model.generation_config.repetition_penalty = 3.0
    expected = _reference(model, _prompts(200), [], 8)
    assert not torch.equal(expected, plain)
    with torch.no_grad():
        assert torch.equal(generate_batch(model, _prompts(200), [], PAD, 8), expected)


def _random_model(family: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = SMALL | FAMILIES[family]
    if family == "falcon":
        del settings["head_dim"]  # computed there
    config = AutoConfig.for_model(family, **settings)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)  # so that texts differ
    return model


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_given_prefix_is_decoded_here_whatever_its_layers(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without padding, which a sliding window would count."""
    model = _random_model(family)
    beginning = _prompts(60, (9,))[0]
    prompts = [beginning + rest for rest in _prompts(60, (5, 5, 5))]
    expected = _reference(model, prompts, [7, 11], 10)
    with torch.no_grad():
        prefix = encode_prefix(model, tuple(beginning), torch.device("cpu"))
        assert prefix.is_plain == (family == "llama")
        monkeypatch.setattr(type(model), "_sample", None)
        found = generate_batch(model, prompts, [7, 11], PAD, 10, prefix=prefix)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_decodes_as_in_transformers(family: str) -> None:
    model = _random_model(family)
    beginning = _prompts(60, (9,))[0]
    prompts = [beginning + rest for rest in _prompts(60)]
    expected = _reference(model, prompts, [7, 11], 10)
    with torch.no_grad():
        assert torch.equal(generate_batch(model, prompts, [7, 11], PAD, 10), expected)


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("adapter", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_real_model_gives_the_same_tokens_in_4_bits(
    real_backbone: Backbone, dtype: torch.dtype, adapter: bool
) -> None:
    tokenizer = real_backbone.tokenizer
    model: Any = real_backbone.model
    if dtype == torch.bfloat16:
        from lora_kit.backbone import load as backbones

        spec = real_backbone.spec.model_copy(update={"dtype": "bfloat16", "attention": "auto"})
        model = backbones.load(real_backbone.files, spec).model
    if adapter:
        model = _random_lora(model)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": f"What is {n} plus {n * n}?{' Be kind.' * (n % 3)}"}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for n in range(3, 9)
    ]
    stops = [tokenizer.eos_token_id]
    expected = _reference(model, prompts, stops, 12)
    with torch.no_grad():
        found = generate_batch(model, prompts, stops, PAD, 12)
    if dtype == torch.float32:
        assert torch.equal(found, expected)
    else:
        _require_equal_but_for_rounding(model, prompts, found, expected)


def _require_equal_but_for_rounding(
    model: Any, prompts: Sequence[Sequence[int]], found: torch.Tensor, expected: torch.Tensor
) -> None:
    """Compare rows until a place at which two tokens are as likely, to the digits of bfloat16.

    Processors with matrix units sum batches of other sizes in another order.
    """
    ties = 0
    for prompt, one, other in zip(prompts, found.tolist(), expected.tolist(), strict=True):
        places = [n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b]
        if not places:
            continue
        [place, *_], ties = places, ties + 1
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *other[:place]]])).logits[0, -1].float()
        a, b = logits[one[place]], logits[other[place]]
        assert abs(a - b) <= 2**-6 * max(abs(a), abs(b))
        assert max(a, b) >= logits.max() - 2**-6 * abs(logits.max())
    assert ties <= len(prompts) // 2


def test_what_cannot_be_decoded_here_is_left_to_transformers(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A static cache has no rows that leave."""
    left = []
    sample = type(tiny_backbone.model)._sample

    def noted(*args: Any, **kwargs: Any) -> Any:
        left.append(1)
        return sample(*args, **kwargs)

    monkeypatch.setattr(type(tiny_backbone.model), "_sample", noted)
    expected = generate_batch(tiny_backbone.model, _prompts(200), [], PAD, 4)
    assert not left
    static = {"cache_implementation": "static"}
    found = generate_batch(tiny_backbone.model, _prompts(200), [], PAD, 4, **static)
    assert left
    assert torch.equal(found, expected)


def test_layers_are_restored(tiny_backbone: Backbone) -> None:
    model = _random_lora(copy.deepcopy(tiny_backbone.model))
    generate_batch(model, _prompts(200), [], PAD, 3)
    assert not any("forward" in module.__dict__ for module in model.modules())
