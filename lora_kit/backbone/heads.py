"""Classification and reward heads: loading, initialization, and their files beside an adapter."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.backbone.encoder_decoder import SEQUENCE_TO_SEQUENCE, is_encoder_decoder
from lora_kit.backbone.positions import learned_positions
from lora_kit.runtime.errors import AdapterError, BackboneError
from lora_kit.runtime.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Module names of heads in transformers; PEFT saves them with an adapter.
HEAD_NAMES = ("score", "classifier")
# The only output of a reward model. A classifier has at least two.
REWARD = ("reward",)
# Files beside an adapter: transformers' configuration with the names of the outputs, for other
# programs; statistics of the training rows, for the baselines of an evaluation.
CONFIG = "config.json"
CLASSES = "classes.json"
PAIRS = "reward.json"


@dataclass(frozen=True)
class Head:
    """Head that maps a text's representation to classes or to a reward.

    Attributes:
        classes: class names in the order of the outputs; `REWARD` for a reward model.
        module: module name of the head.
        newly_initialized: modules without weights in the checkpoint; they include the head unless
            the checkpoint is a classifier with the same number of classes.
    """

    classes: tuple[str, ...]
    module: str
    newly_initialized: tuple[str, ...]

    @property
    def is_reward(self) -> bool:
        """True for a reward model, which has a single output."""
        return self.classes == REWARD

    @property
    def extra_modules(self) -> tuple[str, ...]:
        """Newly initialized modules besides the head, which PEFT does not save by default."""
        return tuple(name for name in self.newly_initialized if name != self.module)


@dataclass(frozen=True)
class SavedClasses:
    """Classes of a saved adapter.

    Attributes:
        rows: number of training rows per class, in the order of the outputs.
    """

    rows: dict[str, int]

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in the order of the outputs."""
        return tuple(self.rows)

    @property
    def most_frequent(self) -> str:
        """The class with the most training rows; the first in output order on ties."""
        return max(self.rows, key=self.rows.__getitem__)


@dataclass(frozen=True)
class SavedReward:
    """Training pairs of a saved reward model.

    Attributes:
        pairs: number of training pairs.
        per_token: log-odds that an answer is the chosen one, per token that it is longer than the
            other; the information in length alone.
    """

    pairs: int
    per_token: float

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return REWARD


def label_config(classes: Sequence[str]) -> dict[str, Any]:
    """Return the label arguments of `from_pretrained`; empty without classes."""
    if not classes:
        return {}
    return {
        "num_labels": len(classes),
        "id2label": dict(enumerate(classes)),
        "label2id": {name: number for number, name in enumerate(classes)},
    }


def prepare_head(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    classes: Sequence[str],
    missing: Collection[str],
) -> Head:
    """Prepare the head of a loaded model for training, computing in float32.

    Sets the padding token of the model and the maximum length of the tokenizer.

    Args:
        model: sequence classifier of transformers.
        tokenizer: tokenizer of the model.
        classes: class names in the order of the outputs.
        missing: names of the parameters that the checkpoint does not have.

    Raises:
        BackboneError: if PEFT does not save a head of this name, the tokenizer cannot pad, or a
            module without weights in the checkpoint is quantized.
    """
    module = next((name for name in HEAD_NAMES if hasattr(model, name)), None)
    if module is None:
        raise BackboneError(
            f"backbone.model: PEFT saves only heads named {' or '.join(HEAD_NAMES)}, and "
            f"{type(model).__name__} has neither. Fix: choose another backbone."
        )
    if tokenizer.pad_token_id is None:
        raise BackboneError(
            "backbone.model: its tokenizer has neither a padding nor an end token. Fix: set "
            "pad_token in a copy's tokenizer_config.json."
        )
    # A decoder's head finds the last token of a row by the padding token.
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    # An encoder has only the positions it was trained with; longer texts are truncated.
    configured = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    positions = learned_positions(model) or configured
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions or math.inf)
    owners = {name.rpartition(".")[0] for name in missing}
    newly_initialized = {
        module if f"{owner}.".startswith(f"{module}.") else owner for owner in owners
    }
    for name in sorted({module, *newly_initialized}):
        _convert_to_float32(model, name)
    return Head(tuple(classes), module, tuple(sorted(newly_initialized)))


def _convert_to_float32(model: torch.nn.Module, name: str) -> None:
    """Convert a module to float32 before PEFT copies it; its linear layers cast their input."""
    part = model.get_submodule(name)
    # The quantized linear layers of bitsandbytes are subclasses of torch.nn.Linear.
    if any(
        isinstance(m, torch.nn.Linear) and type(m) is not torch.nn.Linear for m in part.modules()
    ):
        raise BackboneError(
            f"backbone.quantization: the checkpoint has no weights for {name}, which would be "
            "quantized with random weights and never trained. Fix: set quantization: none."
        )
    part.float()
    for module in part.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(_cast)


def _cast(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
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


def peft_task_type(model: torch.nn.Module) -> str:
    """Return PEFT's task type of a model."""
    if is_classifier(model):
        return "SEQ_CLS"
    return SEQUENCE_TO_SEQUENCE if is_encoder_decoder(model) else "CAUSAL_LM"


def is_classifier(model: torch.nn.Module) -> bool:
    """Return true if a transformers model is a sequence classifier; works on the meta device."""
    return type(model).__name__.endswith("ForSequenceClassification")


def save_head(config: Any, saved: SavedClasses | SavedReward, directory: Path) -> None:
    """Write a head's files beside an adapter.

    Args:
        config: transformers' configuration of the model, which other programs need to load the
            head.
        saved: statistics of the training rows, for the baselines of an evaluation.
        directory: directory of the adapter.
    """
    # The backbone's path and quantization are specific to this machine.
    local = ("quantization_config", "_name_or_path")
    values = {name: value for name, value in config.to_dict().items() if name not in local}
    write_json(directory / CONFIG, values)
    if isinstance(saved, SavedReward):
        write_json(directory / PAIRS, asdict(saved))
    else:
        write_json(directory / CLASSES, {"training_rows": saved.rows})


def read_saved_head(adapter: Path) -> SavedClasses | SavedReward | None:
    """Read the description of an adapter's head; `None` for a language model's adapter.

    Raises:
        AdapterError: if the adapter has a head without a valid description of its outputs.
    """
    config = read_json(adapter / "adapter_config.json", AdapterError)
    if config.get("task_type") != "SEQ_CLS":
        return None
    if (adapter / PAIRS).is_file():
        return _saved_reward(adapter / PAIRS)
    path = adapter / CLASSES
    if not path.is_file():
        raise AdapterError(
            f"{adapter}: an adapter with a head (SEQ_CLS) without {CLASSES} or {PAIRS}, which name "
            "its outputs. Fix: restore the file, or evaluate an adapter trained by lora-kit."
        )
    rows = read_json(path, AdapterError).get("training_rows")
    if not isinstance(rows, dict) or not rows or not all(isinstance(n, int) for n in rows.values()):
        raise AdapterError(
            f"{path}: training_rows must be a number of rows for each class (got {rows!r:.80}). "
            "Fix: restore the file from the run that trained the adapter."
        )
    return SavedClasses(rows)


def _saved_reward(path: Path) -> SavedReward:
    value = read_json(path, AdapterError)
    pairs, per_token = value.get("pairs"), value.get("per_token")
    if not isinstance(pairs, int) or not isinstance(per_token, float | int):
        raise AdapterError(
            f"{path}: pairs must be a whole number and per_token a number (got {pairs!r:.40} and "
            f"{per_token!r:.40}). Fix: restore the file from the run that trained the adapter."
        )
    return SavedReward(pairs, float(per_token))
