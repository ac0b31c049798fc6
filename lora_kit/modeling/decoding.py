"""Greedy decoding with the same tokens as transformers' `generate`, in less time.

transformers prepares the inputs, the cache, and the criteria on which a row ends, and its models
compute each step by their own forward pass. Its loop is replaced: rows that have ended leave the
batch, and the cache has room for the new tokens (`growing_cache`).
"""

from __future__ import annotations

from typing import Any

import torch

from lora_kit.modeling.growing_cache import is_row_selectable
from lora_kit.modeling.held_weights import held_weights
from lora_kit.modeling.packed_layers import packed_layers
from lora_kit.modeling.prefix import Prefix
from lora_kit.modeling.prompt_encoding import ROW_INPUTS, encode_prompts

OTHER_INPUTS = ("past_key_values", "use_cache", "logits_to_keep")
# Share of the rows that have ended from which on they leave: the others' cache is copied then.
ENDED_SHARE = 1 / 16


def decode_greedily(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    prefix: Prefix | None = None,
    **inputs: Any,
) -> torch.Tensor:
    """Continue prompts with the most likely token; a `custom_generate` of transformers.

    Args:
        model: transformers model.
        input_ids: (rows, tokens) int64, padded on the left.
        logits_processor: changes of the logits that the generation configuration asks for.
        stopping_criteria: criteria on which rows end.
        generation_config: configuration of the generation.
        prefix: encoded tokens that all prompts begin with.
        inputs: further inputs of the model.

    Returns:
        (rows, tokens) int64 with the prompts; rows that end early are padded.
    """
    if not _is_decodable(generation_config, inputs):
        output: torch.Tensor = type(model)._sample(
            model, input_ids, logits_processor, stopping_criteria, generation_config, **inputs
        )
        return output
    batch = _Batch(input_ids, generation_config, inputs)
    outputs = encode_prompts(model, input_ids, generation_config, inputs, prefix)
    with (
        held_weights(model) as held,
        model._optimize_model_for_decode(),
        packed_layers(model, held),
    ):
        while True:
            batch.inputs = model._update_model_kwargs_for_generation(outputs, batch.inputs)
            logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)
            del outputs
            scores = logits_processor(batch.ids, logits.to(input_ids.device))
            if batch.append(scores.argmax(dim=-1), stopping_criteria):
                return batch.output[:, : batch.length]
            step = model.prepare_inputs_for_generation(
                batch.ids, next_sequence_length=1, **batch.inputs
            )
            outputs = model(**step, return_dict=True)


def _is_decodable(generation_config: Any, inputs: dict[str, Any]) -> bool:
    """Return true for plain greedy decoding with a cache whose rows can leave."""
    plain = not (
        generation_config.do_sample
        or generation_config.num_beams > 1
        or generation_config.return_dict_in_generate
        or generation_config.prefill_chunk_size is not None
        or generation_config.assistant_early_exit is not None
    )
    cache = inputs.get("past_key_values")
    # Positions of several kinds have the rows in their second dimension.
    positions = inputs.get("position_ids")
    return (
        plain
        and cache is not None
        and is_row_selectable(cache)
        and (positions is None or positions.dim() == 2)
        and all(
            name in OTHER_INPUTS or name in ROW_INPUTS or value is None
            for name, value in inputs.items()
        )
    )


class _Batch:
    """Rows that are generated.

    Attributes:
        output: (rows, longest) int64 of all rows, padded; prompts first.
        length: tokens of the output so far.
        ids: (active rows, length) int64.
        inputs: inputs of the model for the active rows.
    """

    def __init__(self, input_ids: torch.Tensor, config: Any, inputs: dict[str, Any]) -> None:
        rows, self.length = input_ids.shape
        self._pad = config._pad_token_tensor
        self.output = input_ids.new_zeros((rows, max(config.max_length, self.length)))
        if self._pad is not None:
            self.output[:] = self._pad
        self.output[:, : self.length] = input_ids
        self._tokens = self.output
        # Rows of the output that are active, and true for those that have not ended.
        self._rows: torch.Tensor | None = None
        self._going = torch.ones(rows, dtype=torch.bool, device=input_ids.device)
        self.inputs = inputs

    @property
    def ids(self) -> torch.Tensor:
        """Tokens of the active rows so far."""
        return self._tokens[:, : self.length]

    def append(self, tokens: torch.Tensor, stopping_criteria: Any) -> bool:
        """Append one token (active rows,) int64 to each row; return true once all have ended."""
        if self._pad is not None:
            tokens = tokens.where(self._going, self._pad)
        self._tokens[:, self.length] = tokens
        if self._rows is not None:
            self.output[self._rows, self.length] = tokens
        self.length += 1
        if self.length == self.output.shape[1]:
            return True
        self._going &= ~stopping_criteria(self.ids, None)
        going = int(self._going.sum())
        if going and going <= len(tokens) - max(ENDED_SHARE * len(tokens), 1):
            self._leave()
        return not going

    def _leave(self) -> None:
        """Drop the rows that have ended from what is computed."""
        kept = self._going.nonzero().squeeze(1)
        self._rows = kept if self._rows is None else self._rows[kept]
        self._tokens, self._going = self._tokens[kept], self._going[kept]
        for name in ROW_INPUTS:
            value = self.inputs.get(name)
            if value is not None and len(value) > 1:
                self.inputs[name] = value[kept]
        self.inputs["past_key_values"].batch_select_indices(kept)
