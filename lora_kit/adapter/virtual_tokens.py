"""Virtual tokens: what PEFT's prompt methods put before the text, as keys and values.

Prefix tuning (Li & Liang 2021, arXiv:2101.00190) trains keys and values of each layer themselves;
prompt tuning (Lester et al. 2021, arXiv:2104.08691) and p-tuning (Liu et al. 2021,
arXiv:2103.10385) train embeddings, which the transformer makes keys and values of. PEFT puts
embeddings into each row of the text and gives back a row that is as much longer; here they are run
through the transformer by themselves, once for all rows. A decoder's tokens do not see what comes
after them, so that the numbers are the same, and whatever is made of the text keeps its shape.
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
from lora_kit.runtime.errors import AdapterError


class VirtualTokensModel(PeftModelForCausalLM):
    """PEFT's model of a prompt method, whose outputs have the shape of the text.

    Wherever the transformer inside is called (by the model, by `generate`, by itself for its hidden
    states), it finds the virtual tokens' keys and values before the text; with the adapter switched
    off, nothing. A cache that comes in filled has them already.
    """

    _adapters_disabled: bool  # PEFT's own, which it reads in other places too

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the backbone's: (batch, length) token ids give (batch, length, vocabulary) logits."""
        return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As the backbone's; a cache that is given holds the virtual tokens and what is after them.

        Returns:
            (batch, length + new) token ids, as the backbone does.
        """
        cache = kwargs.get("past_key_values")
        if self._adapters_disabled or cache is None or not cache.get_seq_length():
            return self.base_model.generate(*args, **kwargs)
        # What transformers 5.23 leaves away of the ids is as long as the cache, virtual tokens
        # included; where less comes in than the mask covers, it takes the ids as they are.
        input_ids = kwargs["input_ids"]
        seen = cache.get_seq_length() - self.active_peft_config.num_virtual_tokens
        found = self.base_model.generate(*args, **kwargs | {"input_ids": input_ids[:, seen:]})
        return torch.cat([input_ids[:, :seen], found], dim=1)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The backbone alone while open."""
        before = self._adapters_disabled
        self._adapters_disabled = True
        try:
            yield
        finally:
            self._adapters_disabled = before

    def put_before(
        self, transformer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """What the transformer is called with, and the virtual tokens before it.

        Args:
            transformer: that is called.
            args: the token ids, or nothing.
            kwargs: its other inputs. `attention_mask` is (batch, keys), or (batch, 1, length, keys)
                of what is added to the scores; the keys are those of the text.
        """
        if self._adapters_disabled:
            return None
        text = args[0] if args else kwargs.get("input_ids")
        rows = len(kwargs["inputs_embeds"] if text is None else text)
        count = self.active_peft_config.num_virtual_tokens
        changed = dict(kwargs)
        cache = kwargs.get("past_key_values")
        if cache is None or not cache.get_seq_length():
            changed["past_key_values"] = self._encoded(transformer, rows)
        mask = kwargs.get("attention_mask")
        if mask is not None:
            seen = 0 if mask.is_floating_point() and mask.dim() == 4 else 1
            before = mask.new_full((*mask.shape[:-1], count), seen)
            changed["attention_mask"] = torch.cat([before, mask], dim=-1)
        if kwargs.get("position_ids") is not None:
            changed["position_ids"] = kwargs["position_ids"] + count
        return args, changed

    def _encoded(self, transformer: torch.nn.Module, rows: int) -> Any:
        """Keys and values of the virtual tokens for a batch, a cache of its own."""
        found = self.get_prompt(batch_size=1)
        if not isinstance(found, DynamicCache):
            embeddings = found.to(self.base_model.get_input_embeddings().weight.dtype)
            found = DynamicCache(config=self.base_model.config)
            # Not by a call, which would put virtual tokens before them.
            transformer.forward(inputs_embeds=embeddings, past_key_values=found, use_cache=True)
        found.batch_repeat_interleave(rows)
        return found


def stand_before(model: PeftModel) -> None:
    """Let the tokens of a prompt method, just attached by PEFT, stand before the text.

    Args:
        model: is changed if its adapter is of such a method.
    """
    if not model.active_peft_config.is_prompt_learning:
        return
    model.__class__ = VirtualTokensModel
    transformer = model.base_model.get_decoder()
    # A method of the model, so that in a copy of the model it is the copy's.
    transformer.register_forward_pre_hook(model.put_before, with_kwargs=True)


def tokens_before(model: Any) -> int:
    """How many virtual tokens a model puts before the text; 0 where its adapter puts none."""
    if not isinstance(model, VirtualTokensModel):
        return 0
    return int(model.active_peft_config.num_virtual_tokens)


def require_known(config: PeftConfig, directory: Path) -> None:
    """Refuse a saved adapter that puts something else before the text.

    Args:
        config: PEFT's, of any method.
        directory: of the adapter.

    Raises:
        AdapterError: naming what is possible.
    """
    method = config.peft_type.value.lower()
    if not config.is_prompt_learning or (method in VIRTUAL and config.task_type == "CAUSAL_LM"):
        return
    what = f"{method} of task_type {config.task_type}" if method in VIRTUAL else method
    raise AdapterError(
        f"{directory}: {what} puts tokens of its own before the text, which can be evaluated of "
        f"{', '.join(VIRTUAL)} for CAUSAL_LM alone"
    )


def require_heeded(model: PeftModel, named: str) -> None:
    """Refuse a backbone that does not make of virtual tokens what PEFT does.

    Layers that carry a state along the row instead of keys and values (state spaces, linear
    attention) may pass by what stands before the text, without an error.

    Args:
        model: in evaluation mode; one without virtual tokens is let through.
        named: what is at fault, in the error.

    Raises:
        AdapterError: if a short text's logits are others than PEFT's.
    """
    if not isinstance(model, VirtualTokensModel):
        return
    try:
        found = _difference_from_peft(model)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise AdapterError(
            f"{named}: this backbone takes no keys and values before the text: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    # What rounding moves: 1e-4 in float32; in half precision some tenths.
    if not found <= (1e-3 if model.dtype == torch.float32 else 0.5):
        raise AdapterError(
            f"{named}: with this backbone, keys and values before the text are not what tokens "
            f"before it are (logits differ by {found:.2g}); use lora"
        )


@torch.no_grad()
def _difference_from_peft(model: VirtualTokensModel) -> float:
    """The largest difference of a short text's logits from those that PEFT computes itself."""
    length = 8
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(length, device=model.device)[None] % vocabulary
    found = model(input_ids=ids, use_cache=False).logits
    with model.disable_adapter():
        wanted = PeftModelForCausalLM.forward(model, input_ids=ids, use_cache=False).logits
    return float((found - wanted[:, -length:]).abs().max())
