"""Masked language models: an encoder with the head that predicts its hidden tokens."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.backbone.encoder_decoder import language_model_class
from lora_kit.backbone.heads import (
    Head,
    HeadOutputs,
    cast_input,
    convert_to_float32,
    limit_positions,
    reinitialize,
)
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# A new head has the same weights whenever its backbone is loaded.
SEED = 0


def model_class(config: PretrainedConfig, reference: str, masked: bool) -> Any:
    """Return the transformers auto class of a language model, or of a masked one.

    Raises:
        BackboneError: as `masked_model_class`.
    """
    return masked_model_class(config, reference) if masked else language_model_class(config)


def masked_model_class(config: PretrainedConfig, reference: str) -> Any:
    """Return the transformers auto class of masked language models.

    Args:
        config: configuration of the backbone.
        reference: reference of the backbone, for messages.

    Raises:
        BackboneError: for a decoder or an encoder-decoder.
    """
    from transformers import AutoModelForMaskedLM

    is_encoder = type(config) in AutoModelForMaskedLM._model_mapping
    if is_encoder and not config.is_encoder_decoder and not getattr(config, "is_decoder", False):
        return AutoModelForMaskedLM
    kind = "an encoder-decoder" if config.is_encoder_decoder else "a decoder"
    instead = "sft" if config.is_encoder_decoder else "text"
    raise BackboneError(
        f"backbone.model: {reference}: {kind} predicts no masked tokens from both sides (got "
        f"{config.model_type}). Fix: choose an encoder, or set training.objective: {instead}"
    )


def prepare_masked(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    outputs: HeadOutputs,
    missing: Collection[str],
) -> Head:
    """Prepare a loaded masked language model, and initialize the part of its head that is new.

    The output layer is the embedding, frozen as all of the encoder; a bias of it that the
    checkpoint lacks stays 0. The layers between encoder and output layer are trained, in float32,
    if the checkpoint lacks them.

    Args:
        model: masked language model of transformers.
        tokenizer: tokenizer of the model.
        outputs: outputs of the head.
        missing: names of the parameters that the checkpoint does not have.

    Raises:
        BackboneError: if the tokenizer has no mask token, the checkpoint lacks weights of the
            encoder or of an output layer of its own, or a new layer is quantized.
    """
    reference = model.name_or_path
    if tokenizer.mask_token_id is None:
        raise BackboneError(
            f"backbone.model: {reference}: its tokenizer has no mask token (got none). Fix: choose "
            "an encoder that was trained to predict masked tokens"
        )
    layer = model.get_output_embeddings()
    if layer is None:
        raise BackboneError(
            f"backbone.model: {reference}: transformers does not name the output layer of this "
            f"model (got {type(model).__name__}). Fix: choose another encoder"
        )
    encoder = f"{model.base_model_prefix}."
    needed = sorted(name for name in missing if name.startswith(encoder))
    if needed:
        raise BackboneError(
            f"backbone.model: {reference}: not the weights of such an encoder (missing: "
            f"{needed[0]} and {len(needed) - 1} others). Fix: choose an encoder"
        )
    limit_positions(model, tokenizer)
    trained = {name.rpartition(".")[0] for name in missing if _is_of_a_layer(model, name, layer)}
    head = Head(outputs, "", tuple(sorted(trained)))
    if head.newly_initialized:
        _initialize(model, head, layer)
    return head


def report_new_layers(head: Head | None, reference: str) -> None:
    """Report the layers of a masked language model's head that are trained from the beginning.

    Args:
        head: head of a backbone; nothing is reported for others.
        reference: reference of the backbone.
    """
    if head is not None and head.kind == "mlm" and head.newly_initialized:
        say(
            f"backbone.model: {reference} has no head for masked tokens; "
            f"{' and '.join(head.newly_initialized)} begin at random, are trained, and are saved "
            "with the adapter. Without the adapter, tokens are predicted at random"
        )


def _is_of_a_layer(model: PreTrainedModel, name: str, output_layer: torch.nn.Module) -> bool:
    """Return true for a parameter of a new layer, false for a bias of the output layer.

    Raises:
        BackboneError: if the output layer itself has no weights.
    """
    owner = model.get_submodule(name.rpartition(".")[0])
    if owner is not output_layer and next(owner.children(), None) is None:
        return True
    if model.get_parameter(name).ndim != 1:
        raise BackboneError(
            f"backbone.model: {model.name_or_path}: the output layer is not tied to the embedding, "
            f"and has no weights (missing: {name}). Fix: choose an encoder with a head for masked "
            "tokens, or set tie_word_embeddings: true in a copy's config.json"
        )
    return False


def _initialize(model: PreTrainedModel, head: Head, output_layer: torch.nn.Module) -> None:
    for name in head.newly_initialized:
        convert_to_float32(model, name)
    output_layer.register_forward_pre_hook(cast_input)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        reinitialize(model, head)
