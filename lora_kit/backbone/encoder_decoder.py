"""Encoder-decoder (seq2seq) models, with source and answer in one token sequence.

An example is stored as for a decoder-only model, as one sequence: the source, its end token, the
decoder's start tokens, the answer. Labels, lengths, batches and likelihoods are the same as for a
decoder-only model; the sequence is split only where the model is called.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.runtime.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Model input that marks the tokenizer of an encoder-decoder in `model_input_names`.
DECODER_INPUTS = "decoder_input_ids"
# PEFT's task type.
SEQUENCE_TO_SEQUENCE = "SEQ_2_SEQ_LM"
# All turns before the answer form the source, one line per turn, without roles.
CHAT_TEMPLATE = """\
{%- if add_generation_prompt -%}{%- set asked = messages -%}
{%- else -%}{%- set asked = messages[:-1] -%}{%- endif -%}
{{- BEGIN + (asked | map(attribute="content") | join("\\n")) + END + START -}}
{%- if not add_generation_prompt -%}{{- messages[-1]["content"] + END -}}{%- endif -%}"""


def language_model_class(config: PretrainedConfig) -> Any:
    """Return the transformers auto class that loads or builds this configuration's model."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def is_encoder_decoder(model: Any) -> bool:
    """Return true if a model, bare or wrapped for several processes, is an encoder-decoder.

    A plain forward function, which has no configuration, counts as decoder-only.
    """
    config = getattr(getattr(model, "module", model), "config", None)
    return bool(getattr(config, "is_encoder_decoder", False))


def is_seq2seq_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return true if a tokenizer belongs to an encoder-decoder prepared by `prepare_seq2seq`."""
    return DECODER_INPUTS in tokenizer.model_input_names


def prepare_seq2seq(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, reference: str
) -> None:
    """Set a chat template that joins source and answer in one text, and greedy generation.

    Args:
        model: encoder-decoder; its generation settings are replaced.
        tokenizer: tokenizer of the model; its chat template is replaced.
        reference: reference of the backbone, for messages.

    Raises:
        BackboneError: if the joined text gives other tokens than source and answer separately.
    """
    start, end = set_greedy_generation(model, reference), tokenizer.eos_token_id
    if getattr(tokenizer, "tgt_lang", "") is None:
        raise BackboneError(
            f"backbone.model: {reference}: the decoder starts with the target language, which its "
            "tokenizer does not set. Fix: set `src_lang` and `tgt_lang` in a copy's "
            "tokenizer_config.json"
        )
    source, target = tokenizer("")["input_ids"], tokenizer(text_target="")["input_ids"]
    if end != model.generation_config.eos_token_id or any(
        ids[-1:] != [end] or end in ids[:-1] for ids in (source, target)
    ):
        raise BackboneError(
            f"backbone.model: {reference}: its tokenizer does not end a text with the "
            "end-of-sequence token, which separates source and answer. Fix: choose another "
            "backbone"
        )
    # Otherwise transformers' trainer sets it and logs a line about it.
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    if not is_seq2seq_tokenizer(tokenizer):
        tokenizer.model_input_names = [*tokenizer.model_input_names, DECODER_INPUTS]
    template = CHAT_TEMPLATE
    for name, ids in (("BEGIN", source[:-1]), ("END", [end]), ("START", [start, *target[:-1]])):
        text = "".join(tokenizer.convert_ids_to_tokens(ids))
        template = template.replace(name, json.dumps(text, ensure_ascii=False))
    tokenizer.chat_template = template
    if not _joined_tokens_are_equal(tokenizer, start):
        raise BackboneError(
            f"backbone.model: {reference}: its tokenizer gives other tokens for source and answer "
            "in one text than for each of them, so the decoder would see tokens that it was not "
            "trained on. Fix: choose another backbone"
        )


def set_greedy_generation(model: PreTrainedModel, reference: str) -> int:
    """Reduce a model's generation settings to the start, end and padding tokens.

    The others belong to the model's original task (beam search, minimum lengths) and would be
    measured along with the adapter.

    Returns:
        Start token id of the decoder.

    Raises:
        BackboneError: if no configuration file sets one of the tokens.
    """
    from transformers import GenerationConfig

    tokens = {}
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        candidates = (getattr(one, name, None) for one in (model.generation_config, model.config))
        token = next((token for token in candidates if token is not None), None)
        if token is None:
            raise BackboneError(
                f"backbone.model: {reference}: an encoder-decoder needs `{name}`, which neither "
                "config.json nor generation_config.json has. Fix: set it in a copy's config.json"
            )
        tokens[name] = token if isinstance(token, int) else token[0]
    model.generation_config = GenerationConfig(**tokens)
    return int(tokens["decoder_start_token_id"])


def _joined_tokens_are_equal(tokenizer: PreTrainedTokenizerBase, start: int) -> bool:
    source, answer = "Name two birds: one of them black.", "Crow, wren."
    turns = [{"role": "user", "content": source}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    expected = [
        *tokenizer(source)["input_ids"],
        start,
        *tokenizer(text_target=answer)["input_ids"],
    ]
    return bool(tokenizer(text, add_special_tokens=False)["input_ids"] == expected)


@dataclass(frozen=True)
class Seq2SeqBatch:
    """Inputs of an encoder-decoder, split from a batch of joined sequences.

    Attributes:
        inputs: `input_ids` and `attention_mask` of the encoder, each (rows, longest source) int64,
            right-padded since some encoders count positions from the first column; and
            `decoder_input_ids`, (rows, longest rest) int64. The decoder is causal, so no scored
            token sees its right padding.
        starts: (rows,) int64, column of the joined batch where the decoder's part begins.
    """

    inputs: dict[str, torch.Tensor]
    starts: torch.Tensor

    @classmethod
    def of(cls, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Seq2SeqBatch:
        """Split each row after its first end-of-sequence token.

        Args:
            model: encoder-decoder, after `prepare_seq2seq`.
            input_ids: (rows, length) int64, left-padded.
            attention_mask: (rows, length) int64.
        """
        settings = getattr(model, "module", model).generation_config
        ends = (input_ids == settings.eos_token_id) & attention_mask.bool()
        starts = ends.int().argmax(dim=1) + 1
        first = attention_mask.int().argmax(dim=1)
        source, mask = _left_aligned(input_ids, first, starts, settings.pad_token_id)
        length = torch.full_like(starts, input_ids.shape[1])
        rest, _ = _left_aligned(input_ids, starts, length, settings.pad_token_id)
        return cls({"input_ids": source, "attention_mask": mask, DECODER_INPUTS: rest}, starts)


def _left_aligned(
    ids: torch.Tensor, start: torch.Tensor, end: torch.Tensor, pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return columns `start` to `end` (exclusive) of each row, left-aligned, and their mask.

    Args:
        ids: (rows, length) int64.
        start: (rows,) int64.
        end: (rows,) int64.
        pad_token_id: token id of the padding.

    Returns:
        Token ids and mask, each (rows, longest stretch) int64.
    """
    columns = torch.arange(int((end - start).max()), device=ids.device)
    positions = start[:, None] + columns
    inside = positions < end[:, None]
    aligned = ids.gather(1, positions.clamp(max=ids.shape[1] - 1))
    return aligned.masked_fill(~inside, pad_token_id), inside.long()
