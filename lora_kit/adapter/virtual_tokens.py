"""Virtual tokens of PEFT's prompt methods, prepended as keys and values.

Prefix tuning (Li & Liang 2021, arXiv:2101.00190) trains the keys and values of each layer directly;
prompt tuning (Lester et al. 2021, arXiv:2104.08691) and p-tuning (Liu et al. 2021,
arXiv:2103.10385) train embeddings, from which the transformer computes keys and values. PEFT
prepends the embeddings to each row and returns longer rows. Here, the transformer encodes the
embeddings once for all rows into a cache. A decoder is causal, so the results are the same, and
outputs keep the shape of the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftModelForCausalLM
from transformers import DynamicCache

from lora_kit.recipe.adapter import VIRTUAL
from lora_kit.runtime.errors import AdapterError, first_line


class VirtualTokensModel(PeftModelForCausalLM):
    """PEFT's model of a prompt method, with outputs in the shape of the text.

    A forward pre-hook prepends the virtual tokens' keys and values wherever the transformer is
    called: by the model, by `generate`, or directly for its hidden states. The hook does nothing
    while the adapter is disabled, or if the given cache is filled: such a cache already holds the
    virtual tokens.
    """

    _adapters_disabled: bool  # attribute of PEFT, which reads it in other places too

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the backbone: (batch, length) ids to (batch, length, vocabulary) logits."""
        return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with the backbone; a given cache holds virtual tokens, then text.

        Returns:
            (batch, length + new tokens) int64, as the backbone does.
        """
        cache = kwargs.get("past_key_values")
        if self._adapters_disabled or cache is None or not cache.get_seq_length():
            return self.base_model.generate(*args, **kwargs)
        # transformers 5.23 cuts as many ids as the cache holds, virtual tokens included. If it gets
        # fewer ids than the mask covers, it cuts none; so the cached ids are removed here.
        input_ids = kwargs["input_ids"]
        cached = cache.get_seq_length() - self.active_peft_config.num_virtual_tokens
        output = self.base_model.generate(*args, **kwargs | {"input_ids": input_ids[:, cached:]})
        return torch.cat([input_ids[:, :cached], output], dim=1)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Disable the adapter while open."""
        before = self._adapters_disabled
        self._adapters_disabled = True
        try:
            yield
        finally:
            self._adapters_disabled = before

    def prepend_virtual_tokens(
        self, transformer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Extend the transformer's inputs by the virtual tokens; a forward pre-hook.

        Args:
            transformer: transformer that is called.
            args: (batch, length) token ids, or empty.
            kwargs: other inputs. `attention_mask` is (batch, keys), or (batch, 1, length, keys)
                float, added to the attention scores; its keys are those of the text.

        Returns:
            Positional and keyword inputs; `None`, for no change, while the adapter is disabled.
        """
        if self._adapters_disabled:
            return None
        text = args[0] if args else kwargs.get("input_ids")
        rows = len(kwargs["inputs_embeds"] if text is None else text)
        count = self.active_peft_config.num_virtual_tokens
        changed = dict(kwargs)
        cache = kwargs.get("past_key_values")
        if cache is None or not cache.get_seq_length():
            changed["past_key_values"] = self._virtual_cache(transformer, rows)
        mask = kwargs.get("attention_mask")
        if mask is not None:
            visible = 0 if mask.is_floating_point() and mask.dim() == 4 else 1
            virtual = mask.new_full((*mask.shape[:-1], count), visible)
            changed["attention_mask"] = torch.cat([virtual, mask], dim=-1)
        if kwargs.get("position_ids") is not None:
            changed["position_ids"] = kwargs["position_ids"] + count
        return args, changed

    def _virtual_cache(self, transformer: torch.nn.Module, rows: int) -> Any:
        """Return a new cache with the virtual tokens' keys and values for each row."""
        cache = self.get_prompt(batch_size=1)
        if not isinstance(cache, DynamicCache):
            embeddings = cache.to(self.base_model.get_input_embeddings().weight.dtype)
            cache = DynamicCache(config=self.base_model.config)
            # `forward` skips the hook, which would prepend virtual tokens again.
            transformer.forward(inputs_embeds=embeddings, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(rows)
        return cache


def add_virtual_tokens(model: PeftModel) -> None:
    """Turn PEFT's model of a prompt method into a `VirtualTokensModel`, in place.

    Args:
        model: model with a new adapter; not changed if its method is not a prompt method.
    """
    if not model.active_peft_config.is_prompt_learning:
        return
    model.__class__ = VirtualTokensModel
    transformer = model.base_model.get_decoder()
    # A bound method, so that a deep copy of the model calls the copy's method.
    transformer.register_forward_pre_hook(model.prepend_virtual_tokens, with_kwargs=True)


def virtual_token_count(model: Any) -> int:
    """Return the number of virtual tokens that a model prepends; 0 without a prompt method."""
    if not isinstance(model, VirtualTokensModel):
        return 0
    return int(model.active_peft_config.num_virtual_tokens)


def require_supported_prompt_method(config: PeftConfig, directory: Path) -> None:
    """Refuse a saved adapter of a prompt method that is not supported.

    Args:
        config: PEFT's configuration, of any method.
        directory: directory of the adapter.

    Raises:
        AdapterError: naming the supported methods.
    """
    method = config.peft_type.value.lower()
    if not config.is_prompt_learning or (method in VIRTUAL and config.task_type == "CAUSAL_LM"):
        return
    prompt_method = f"{method} of task_type {config.task_type}" if method in VIRTUAL else method
    raise AdapterError(
        f"{directory}: {prompt_method} is not supported. Fix: use a prompt method of "
        f"{', '.join(VIRTUAL)} with task_type CAUSAL_LM, or a method that changes layers"
    )


def require_virtual_tokens_attended(model: PeftModel, field: str) -> None:
    """Refuse a backbone whose layers do not attend to virtual tokens as in PEFT.

    Layers with a recurrent state instead of keys and values (state spaces, linear attention) may
    ignore virtual tokens without an error.

    Args:
        model: model in evaluation mode; no check without virtual tokens.
        field: start of the error: field or directory of the adapter.

    Raises:
        AdapterError: if a short text's logits differ from PEFT's.
    """
    if not isinstance(model, VirtualTokensModel):
        return
    try:
        difference = _difference_from_peft(model)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise AdapterError(
            f"{field}: this backbone does not support prepended keys and values "
            f"({first_line(error)}). Fix: use lora"
        ) from error
    # Differences by rounding: up to 1e-4 in float32, some tenths in half precision.
    if not difference <= (1e-3 if model.dtype == torch.float32 else 0.5):
        raise AdapterError(
            f"{field}: layers of this backbone ignore prepended keys and values (logits differ by "
            f"{difference:.2g} from those with prepended embeddings). Fix: use lora"
        )


@torch.no_grad()
def _difference_from_peft(model: VirtualTokensModel) -> float:
    """Return the largest absolute difference of a short text's logits from PEFT's own."""
    length = 8
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(length, device=model.device)[None] % vocabulary
    logits = model(input_ids=ids, use_cache=False).logits
    with model.disable_adapter():
        expected = PeftModelForCausalLM.forward(model, input_ids=ids, use_cache=False).logits
    return float((logits - expected[:, -length:]).abs().max())
