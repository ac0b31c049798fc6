"""Models of an encoder and a decoder (sequence to sequence), read as one text.

Their tokens are kept as any other backbone's: one sequence, in which the source, up to and with the
token that ends it, comes before what the decoder begins with and the answer. Labels, lengths,
batches and likelihoods are those of a decoder alone; where the model is called, and nowhere else,
the sequence is divided.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.runtime.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Among a tokenizer's inputs of the model, it says that there are two stacks.
DECODER_INPUTS = "decoder_input_ids"
# PEFT's name for what such a model does.
SEQUENCE_TO_SEQUENCE = "SEQ_2_SEQ_LM"
# The turns before the answer are the source, a line each, whoever said them.
TEMPLATE = """\
{%- if add_generation_prompt -%}{%- set asked = messages -%}
{%- else -%}{%- set asked = messages[:-1] -%}{%- endif -%}
{{- BEGIN + (asked | map(attribute="content") | join("\\n")) + END + START -}}
{%- if not add_generation_prompt -%}{{- messages[-1]["content"] + END -}}{%- endif -%}"""


def language_model_class(config: PretrainedConfig) -> Any:
    """The class of transformers that loads or builds a language model of this configuration."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def is_divided(model: Any) -> bool:
    """Whether a model, as it is or wrapped for several processes, has an encoder and a decoder.

    A decoder's bare forward, which has no configuration, has not.
    """
    config = getattr(getattr(model, "module", model), "config", None)
    return bool(getattr(config, "is_encoder_decoder", False))


def writes_pairs(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer is that of an encoder with a decoder, which answers and does no more."""
    return DECODER_INPUTS in tokenizer.model_input_names


def prepare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, reference: str) -> None:
    """Let a tokenizer write source and answer as one text, and a model answer greedily.

    Args:
        model: with an encoder and a decoder.
        tokenizer: its; gets a chat template.
        reference: of the backbone, for messages.

    Raises:
        BackboneError: if what is written so is not tokenized as source and answer are.
    """
    start, end = answer_greedily(model, reference), tokenizer.eos_token_id
    if getattr(tokenizer, "tgt_lang", "") is None:
        raise BackboneError(
            f"backbone.model: {reference}: answers of this backbone begin with their language, and "
            "its tokenizer is not told which; set `src_lang` and `tgt_lang` in a copy's "
            "tokenizer_config.json"
        )
    source, target = tokenizer("")["input_ids"], tokenizer(text_target="")["input_ids"]
    if end != model.generation_config.eos_token_id or any(
        ids[-1:] != [end] or end in ids[:-1] for ids in (source, target)
    ):
        raise BackboneError(
            f"backbone.model: {reference}: its tokenizer does not end a text with the "
            "end-of-sequence token, by which source and answer are told apart"
        )
    # Else transformers' trainer would set it, with a line in a log.
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    if not writes_pairs(tokenizer):
        tokenizer.model_input_names = [*tokenizer.model_input_names, DECODER_INPUTS]
    tokenizer.chat_template = _template(
        BEGIN=_text(tokenizer, source[:-1]),
        END=_text(tokenizer, [end]),
        START=_text(tokenizer, [start, *target[:-1]]),
    )
    if not _writes_what_it_reads(tokenizer, start):
        raise BackboneError(
            f"backbone.model: {reference}: its tokenizer does not read source and answer in one "
            "text as it reads them by themselves, so that the decoder would see other tokens than "
            "it was trained on"
        )


def answer_greedily(model: PreTrainedModel, reference: str) -> int:
    """Leave of a model's generation settings the tokens that begin, end and fill a text.

    The others are of what it was made for (beams, least lengths), and would be measured along with
    the adapter.

    Returns:
        The token that the decoder begins with.

    Raises:
        BackboneError: if one of them is nowhere said.
    """
    from transformers import GenerationConfig

    tokens = {}
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        said = (getattr(one, name, None) for one in (model.generation_config, model.config))
        token = next((token for token in said if token is not None), None)
        if token is None:
            raise BackboneError(
                f"backbone.model: {reference}: neither config.json nor generation_config.json has "
                f"`{name}`, which an encoder with a decoder needs"
            )
        tokens[name] = token if isinstance(token, int) else token[0]
    model.generation_config = GenerationConfig(**tokens)
    return int(tokens["decoder_start_token_id"])


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(list(ids)))


def _template(**texts: str) -> str:
    template = TEMPLATE
    for name, text in texts.items():
        template = template.replace(name, json.dumps(text, ensure_ascii=False))
    return template


def _writes_what_it_reads(tokenizer: PreTrainedTokenizerBase, start: int) -> bool:
    source, answer = "Name two birds: one of them black.", "Crow, wren."
    turns = [{"role": "user", "content": source}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    wanted = [
        *tokenizer(source)["input_ids"],
        start,
        *tokenizer(text_target=answer)["input_ids"],
    ]
    return bool(tokenizer(text, add_special_tokens=False)["input_ids"] == wanted)


@dataclass(frozen=True)
class Seq2SeqBatch:
    """A batch as an encoder and a decoder take it.

    Attributes:
        inputs: `input_ids` and `attention_mask` of the encoder, each (rows, longest source) and
            filled on the right, since some encoders count positions from the first column, and
            `decoder_input_ids` (rows, longest rest). The decoder looks back alone, so that what
            fills its rows on the right is seen by nothing that is scored.
        starts: (rows,) int64, the column of the undivided batch that the decoder begins with.
    """

    inputs: dict[str, torch.Tensor]
    starts: torch.Tensor

    @classmethod
    def of(cls, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Seq2SeqBatch:
        """Divide each row behind the first token that ends a text.

        Args:
            model: an encoder with a decoder, `prepare`d.
            input_ids: (rows, length) int64, filled on the left.
            attention_mask: as large.
        """
        settings = getattr(model, "module", model).generation_config
        ends = (input_ids == settings.eos_token_id) & attention_mask.bool()
        starts = ends.int().argmax(dim=1) + 1
        first = attention_mask.int().argmax(dim=1)
        source, of_source = _stretch(input_ids, first, starts, settings.pad_token_id)
        whole = torch.full_like(starts, input_ids.shape[1])
        rest, _ = _stretch(input_ids, starts, whole, settings.pad_token_id)
        return cls({"input_ids": source, "attention_mask": of_source, DECODER_INPUTS: rest}, starts)


def _stretch(
    ids: torch.Tensor, first: torch.Tensor, end: torch.Tensor, filler: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row what lies from `first` to before `end`, at the left, and where that is."""
    columns = torch.arange(int((end - first).max()), device=ids.device)
    places = first[:, None] + columns
    there = places < end[:, None]
    found = ids.gather(1, places.clamp(max=ids.shape[1] - 1)).masked_fill(~there, filler)
    return found, there.long()
