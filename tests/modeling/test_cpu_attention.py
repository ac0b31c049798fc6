"""Gradient of attention by products: as exact as sdpa's, and sdpa's own where it does not apply."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lora_kit.modeling import cpu_attention
from lora_kit.modeling.cpu_attention import attention, products_in_backward

ROWS, HEADS, GROUPS, TOKENS, SIZE = 3, 6, 2, 40, 16


def tensors(dtype: torch.dtype = torch.bfloat16, tokens: int = TOKENS) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(ROWS, tokens, heads, SIZE, dtype=dtype).transpose(1, 2).requires_grad_()
        for heads in (HEADS, GROUPS, GROUPS)
    ]


def layer(is_causal: bool = True) -> Any:
    return SimpleNamespace(is_causal=is_causal, num_key_value_groups=HEADS // GROUPS)


def padded(tokens: int = TOKENS) -> torch.Tensor:
    """A causal mask of rows padded on the left by 0, 5 and 10 tokens, which see nothing."""
    mask = torch.ones(ROWS, 1, tokens, tokens, dtype=torch.bool).tril_()
    for row in range(ROWS):
        mask[row, :, :, : 5 * row] = False
    return mask


def results(attend: Any, inputs: list[torch.Tensor], *arguments: Any) -> Any:
    output, _ = attend(*arguments[:1], *inputs, *arguments[1:])
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    output.backward(upstream.to(output.dtype))
    return output.detach(), [one.grad for one in inputs]


@pytest.mark.parametrize("scores", [1, 10**9], ids=["a group at a time", "at once"])
@pytest.mark.parametrize("mask", [None, padded()], ids=["causal", "padded"])
def test_gradients_are_as_exact_as_those_of_sdpa(
    mask: torch.Tensor | None, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "SCORES", scores)
    _, exact = results(
        sdpa_attention_forward,
        [one.detach().double().requires_grad_() for one in tensors()],
        layer(), mask,
    )  # fmt: skip
    output, theirs = results(sdpa_attention_forward, tensors(), layer(), mask)
    own, ours = results(attention, tensors(), layer(), mask)
    assert torch.equal(own, output)
    for one, other, truth in zip(ours, theirs, exact, strict=True):
        assert torch.isfinite(one).all()
        assert (one - truth).norm() < 2 * (other - truth).norm()
        assert (one - truth).norm() < 0.01 * truth.norm()


def test_attention_that_is_not_causal_sees_all_tokens() -> None:
    _, theirs = results(sdpa_attention_forward, tensors(), layer(is_causal=False), None)
    _, ours = results(attention, tensors(), layer(is_causal=False), None)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() < 0.01 * other.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_float32_and_long_rows_take_the_gradient_of_sdpa(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "LONGEST", TOKENS - 1)
    _, theirs = results(sdpa_attention_forward, tensors(dtype), layer(), None)
    _, ours = results(attention, tensors(dtype), layer(), None)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_a_model_learns_by_products_and_is_as_before_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, dtype=torch.bfloat16,
    )  # fmt: skip
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa").train()
    ids, mask = torch.arange(24).view(2, 12), torch.ones(2, 12, dtype=torch.int64)
    mask[1, :4] = 0
    calls = []
    original = cpu_attention._ProductsInBackward.apply

    def count(*arguments: Any) -> Any:
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(cpu_attention._ProductsInBackward, "apply", count)

    def gradient(of: Any = model) -> torch.Tensor:
        of.zero_grad()
        labels = ids.masked_fill(mask == 0, -100)
        of(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
        return torch.cat([p.grad.float().flatten() for p in of.parameters()])

    exact = gradient(copy.deepcopy(model).float())
    before = gradient()
    with products_in_backward(model):
        ours = gradient()
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask)
    assert len(calls) == 2
    assert model.config._attn_implementation == "sdpa"
    assert (ours - exact).norm() < 1.5 * (before - exact).norm()
    assert (ours - exact).norm() < 0.1 * exact.norm()
    assert torch.equal(gradient(), before)
