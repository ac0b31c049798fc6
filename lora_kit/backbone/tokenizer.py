"""A tokenizer made ready for training: its end and padding tokens, template, and known tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lora_kit.backbone.chat_template import require_valid_template
from lora_kit.runtime.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, reference: str, has_head: bool
) -> None:
    """Set the end and padding tokens that a tokenizer lacks, and check it against its model.

    Args:
        tokenizer: tokenizer of the model; changed in place.
        model: model with its configuration.
        reference: reference of the backbone, for messages.
        has_head: true for a classifier or reward model, which needs no end token.

    Raises:
        BackboneError: if the tokenizer has no end or no padding token, has several chat templates
            of which none is the default, or the model has no embedding of a token.
    """
    place = f"backbone.model: {reference}"
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = _configured_end(tokenizer, model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    needed = "pad_token" if has_head else "eos_token"
    if getattr(tokenizer, needed) is None:
        raise BackboneError(
            f"{place}: its tokenizer has no {needed}, and config.json names no eos_token_id that "
            f"it knows (got none). Fix: set {needed} in a copy's tokenizer_config.json"
        )
    templates = tokenizer.chat_template
    if isinstance(templates, dict) and "default" not in templates:
        raise BackboneError(
            f"{place}: its tokenizer has several chat templates and none is named default (got "
            f"{', '.join(map(str, templates))}). Fix: name one of them default in a copy's "
            "tokenizer_config.json"
        )
    for template in templates.values() if isinstance(templates, dict) else [templates or ""]:
        require_valid_template(template, place)
    rows = embedding_rows(model)
    for token, number in written_beyond(tokenizer, rows).items():
        raise BackboneError(
            f"{place}: the model has no embedding of its tokenizer's token {token} (got id "
            f"{number}, and {rows} rows, the ids 0 to {rows - 1}). Fix: replace the token in a "
            "copy's tokenizer files by one that the model has"
        )


def embedding_rows(model: Any) -> int:
    """Return the number of token ids that a model has embeddings of."""
    return int(model.get_input_embeddings().weight.shape[0])


def without_embedding(
    input_ids: Iterable[int], rows: int, tokenizer: PreTrainedTokenizerBase
) -> str:
    """Describe the first token that a model has no embedding of; empty if it has all.

    Args:
        input_ids: token ids of a text.
        rows: result of `embedding_rows`.
        tokenizer: tokenizer of the model.
    """
    number = next((number for number in input_ids if number >= rows), None)
    if number is None:
        return ""
    token = tokenizer.convert_ids_to_tokens(number)
    return f"has the token {token}, of which there is no embedding (got id {number}, {rows} rows)"


def _configured_end(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> str | None:
    """Return the end token that the model's configuration names; `None` if it names none."""
    for config in (getattr(model, "generation_config", None), model.config.get_text_config()):
        configured = getattr(config, "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        for number in ids:
            token = None if number is None else tokenizer.convert_ids_to_tokens(number)
            if token is not None:
                return str(token)
    return None


def written_beyond(tokenizer: PreTrainedTokenizerBase, rows: int) -> dict[str, int]:
    """Return the ids without an embedding that stand in examples, or that any text can contain.

    Special tokens that no template writes often have no embedding and need none, such as those of
    images in the tokenizer of Gemma 3 1B, which reads texts only.

    Args:
        tokenizer: tokenizer.
        rows: result of `embedding_rows`.
    """
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    padding_and_ends = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
    template, added = str(tokenizer.chat_template), tokenizer.added_tokens_decoder
    return {
        token: number
        for token, number in beyond.items()
        if not (number in added and added[number].special)
        or number in padding_and_ends
        or token in template
    }
