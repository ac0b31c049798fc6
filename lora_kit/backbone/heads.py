"""Heads of texts, words and answers, and models without one that embed texts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from lora_kit.backbone.encoder_decoder import SEQUENCE_TO_SEQUENCE, is_encoder_decoder
from lora_kit.backbone.positions import learned_positions
from lora_kit.recipe.embedding import Pooling
from lora_kit.recipe.objective import HeadObjective
from lora_kit.runtime.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Module names of heads in transformers; PEFT saves them with an adapter.
HEAD_NAMES = ("score", "classifier")
# PEFT's task types of heads, by the end of the name of transformers' class.
HEAD_TASK_TYPES: Mapping[str, str] = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
}
# PEFT's task type of a model without a head.
FEATURE_EXTRACTION = "FEATURE_EXTRACTION"
# End of the name of transformers' class of a masked language model.
MASKED_LM = "ForMaskedLM"
# Module of an encoder above its last hidden states, which an embedding does not use.
POOLER = "pooler"
# How transformers calls the problem of a head of texts in its configuration; not for rewards.
PROBLEM_TYPES: Mapping[HeadObjective, str] = {
    "classification": "single_label_classification",
    "regression": "regression",
    "multi-label": "multi_label_classification",
}


@dataclass(frozen=True)
class HeadOutputs:
    """Outputs of a head: what they are, and their names.

    Attributes:
        kind: objective that trains such a head.
        names: names in the order of the outputs, such as those of classes.
        pooling: hidden states that become the vector of a text, for an embedding; `auto` until the
            model is known.
    """

    kind: HeadObjective
    names: tuple[str, ...]
    pooling: Literal["auto"] | Pooling | None = None

    def configuration(self) -> dict[str, Any]:
        """Return the arguments of `from_pretrained` for a head of these outputs."""
        if self.kind in ("embedding", "mlm"):
            return {}
        problem = PROBLEM_TYPES.get(self.kind)
        return {
            "num_labels": len(self.names),
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: number for number, name in enumerate(self.names)},
            **({"problem_type": problem} if problem else {}),
        }


# The only output of a reward model.
REWARD = HeadOutputs("reward", ("reward",))
# The outputs of a masked language model, which are those of its vocabulary.
MASKED = HeadOutputs("mlm", ("token",))


@dataclass(frozen=True)
class Head:
    """Head that maps a text's representation to its outputs.

    Attributes:
        outputs: the outputs.
        module: module name of the head; empty for an embedding, which is the whole model, and for a
            masked language model, whose output layer is frozen.
        newly_initialized: modules without weights in the checkpoint; they include the head unless
            the checkpoint has a head with the same number of outputs.
    """

    outputs: HeadOutputs
    module: str
    newly_initialized: tuple[str, ...]

    @property
    def kind(self) -> HeadObjective:
        """Objective that trains such a head."""
        return self.outputs.kind

    @property
    def trained_modules(self) -> tuple[str, ...]:
        """Modules of which something has to be trained."""
        return (self.module, *(self.newly_initialized if self.kind == "mlm" else ()))

    @property
    def pooling(self) -> Pooling:
        """Pooling of an embedding."""
        pooling = self.outputs.pooling
        assert pooling is not None  # only embeddings are pooled
        assert pooling != "auto"  # `prepare_embedding` has chosen
        return pooling

    @property
    def extra_modules(self) -> tuple[str, ...]:
        """Newly initialized modules besides the head, which PEFT does not save by default."""
        return tuple(name for name in self.newly_initialized if name != self.module)


def prepare_head(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    outputs: HeadOutputs,
    missing: Collection[str],
) -> Head:
    """Prepare the head of a loaded model for training, computing in float32.

    Sets the padding token of the model and the maximum length of the tokenizer.

    Args:
        model: sequence or token classifier of transformers.
        tokenizer: tokenizer of the model.
        outputs: outputs of the head.
        missing: names of the parameters that the checkpoint does not have.

    Raises:
        BackboneError: if PEFT does not save a head of this name, or a module without weights in
            the checkpoint is quantized.
    """
    module = next((name for name in HEAD_NAMES if hasattr(model, name)), None)
    if module is None:
        raise BackboneError(
            f"backbone.model: PEFT saves only heads named {' or '.join(HEAD_NAMES)}, and "
            f"{type(model).__name__} has neither. Fix: choose another backbone"
        )
    limit_positions(model, tokenizer)
    owners = {name.rpartition(".")[0] for name in missing}
    newly_initialized = {
        module if f"{owner}.".startswith(f"{module}.") else owner for owner in owners
    }
    for name in sorted({module, *newly_initialized}):
        convert_to_float32(model, name)
    return Head(outputs, module, tuple(sorted(newly_initialized)))


def embedding_outputs(pooling: Literal["auto"] | Pooling) -> HeadOutputs:
    """Return the output of an embedding."""
    return HeadOutputs("embedding", ("embedding",), pooling)


def prepare_embedding(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    outputs: HeadOutputs,
    missing: Collection[str],
) -> Head:
    """Prepare a loaded model without a head for embeddings, and choose the pooling of `auto`.

    Sets the padding token of the model and the maximum length of the tokenizer.

    Args:
        model: base model of transformers.
        tokenizer: tokenizer of the model.
        outputs: pooling.
        missing: names of the parameters that the checkpoint does not have.

    Raises:
        BackboneError: if parameters that embeddings depend on have no weights, or `cls` would pool
            a token that sees no other.
    """
    needed = sorted(name for name in missing if not name.startswith(f"{POOLER}."))
    if needed:
        raise BackboneError(
            f"backbone.model: {model.name_or_path}: not the weights of such a model (missing: "
            f"{needed[0]} and {len(needed) - 1} others). Fix: choose an encoder or a decoder"
        )
    has_causal_attention = any(getattr(one, "is_causal", False) for one in model.modules())
    pooling = outputs.pooling
    if pooling == "auto":
        pooling = "last" if has_causal_attention else "mean"
    if pooling == "cls" and has_causal_attention:
        raise BackboneError(
            "embedding.pooling: the first token of a decoder sees no other, so that all texts "
            "would be the same (got cls). Fix: use last or mean"
        )
    limit_positions(model, tokenizer)
    return Head(replace(outputs, pooling=pooling), "", ())


def limit_positions(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the padding token of the model and the maximum length of the tokenizer."""
    # A decoder's head finds the last token of a row by the padding token.
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    # An encoder has only the positions it was trained with; longer texts are truncated.
    configured = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    positions = learned_positions(model) or configured
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions or math.inf)


def convert_to_float32(model: torch.nn.Module, name: str) -> None:
    """Convert a module to float32 before PEFT copies it; its linear layers cast their input."""
    part = model.get_submodule(name)
    # The quantized linear layers of bitsandbytes are subclasses of torch.nn.Linear.
    if any(
        isinstance(m, torch.nn.Linear) and type(m) is not torch.nn.Linear for m in part.modules()
    ):
        raise BackboneError(
            f"backbone.quantization: the checkpoint has no weights for {name}, which would be "
            "quantized with random weights and never trained. Fix: set quantization: none"
        )
    part.float()
    for module in part.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(cast_input)


def cast_input(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Return the input of a layer in the dtype of its weight."""
    return (inputs[0].to(module.weight.dtype), *inputs[1:])  # type: ignore[arg-type]


def reinitialize(model: torch.nn.Module, head: Head) -> None:
    """Draw the newly initialized weights again, so that they depend on the current seed.

    Weights are normal with the model's `initializer_range` and biases 0, as in transformers.
    """
    deviation = float(getattr(model.config, "initializer_range", 0.02))
    for name in head.newly_initialized:
        for module in model.get_submodule(name).modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=deviation)
                if module.bias is not None:
                    torch.nn.init.zeros_(module.bias)


def pad_right(rows: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pad texts on the right; an encoder's head reads the first position of a row.

    Args:
        rows: token ids of each text, none empty.
        pad_token_id: token id of the padding.

    Returns:
        `input_ids` and `attention_mask`, each (batch, length) int64.
    """
    length = max(map(len, rows))
    ids = [[*row, *[pad_token_id] * (length - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def peft_task_type(model: torch.nn.Module) -> str | None:
    """Return PEFT's task type of a model; it has none for masked language models."""
    if is_masked_model(model):
        return None
    if is_base_model(model):
        return FEATURE_EXTRACTION
    other = SEQUENCE_TO_SEQUENCE if is_encoder_decoder(model) else "CAUSAL_LM"
    return _head_task_type(model) or other


def is_classifier(model: torch.nn.Module) -> bool:
    """Return true if a model of transformers classifies texts or words; also on the meta device."""
    return _head_task_type(model) is not None


def is_masked_model(model: Any) -> bool:
    """Return true if a transformers model, bare or with an adapter, predicts masked tokens."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(base).__name__.endswith(MASKED_LM)


def is_base_model(model: torch.nn.Module) -> bool:
    """Return true if a transformers model has no head; works on the meta device."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    kind = getattr(getattr(model, "config", None), "model_type", "")
    names = MODEL_MAPPING_NAMES.get(kind, ())
    return type(model).__name__ in ([names] if isinstance(names, str) else list(names))


def _head_task_type(model: torch.nn.Module) -> str | None:
    name = type(model).__name__
    return next((task for end, task in HEAD_TASK_TYPES.items() if name.endswith(end)), None)
